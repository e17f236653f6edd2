"""Every kind of answer in the ways it is written, through all stages."""

import logging

import pytest

from ibtpo.rewards.math import reward, verify


@pytest.mark.parametrize(
    "label",
    [r"\textbf{(B)} ", r"\textbf{(B) }", r"\text{(B)}\ ", r"\mathrm{(B)}\quad ", r"\textbf{(B)}", "(B) ", "(B)~"],
)
def test_the_label_of_a_choice_is_not_part_of_its_value(label):
    for value, other in [("27", "28"), ("-27", "27"), (r"\frac{1}{2}", "2"), (r"\$27", "28"), ("27", "A"), ("27", "C")]:
        assert verify(rf"\boxed{{{label}{value}}}", value)
        assert not verify(rf"\boxed{{{label}{value}}}", other)
        assert verify(rf"\boxed{{{label}{value}}}", "B") and verify(rf"\boxed{{{label}{value}}}", r"\text{(B)}")
        assert verify(rf"\boxed{{{label}{value}}}", rf"(B) {value}")
    assert verify(rf"\boxed{{{label}\sqrt{{8}}}}", r"2\sqrt2")  # by Math-Verify
    assert verify(r"\boxed{(B)}", "B") and not verify(r"\boxed{(B)}", "27")
    assert verify(r"\boxed{(C)(x+1)}", "C(x+1)")


@pytest.mark.parametrize(
    "answer, reference, right",
    [
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\sqrt{18}", r"3\sqrt{2}", False),
        (r"\frac{4}{\sqrt{2}}", r"2\sqrt{2}", True),
        ("-5i + 6", "6 - 5i", True),
        ("x/2", r"\frac{1}{2}x", True),
        ("2, 1", "1, 2", True),
        ("5", "x=5", True),
        (
            r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
            r"\begin{pmatrix}-\frac13\\[2pt] \frac23\end{pmatrix}",
            True,
        ),
        ("(3, 4)", "(3,4]", False),
        ("5, 6", "5", False),
        ("q - p", "p - q", False),
        (r"\text{west}", r"\text{east}", False),
        ("18 or 19", "19", False),
        (r"\frac{", "1", False),
        (r"__import__('os').system('exit 1')", "1", False),
        ("hence we are left with 1", "1", False),
        ("4", "4t", False),
        (r"\text{(B)} \text{ or } 17", "B", False),
        ("x=443_5", "443_5", True),
        ("9", r"9\text{ a.m.}", True),
        (r"99\pi", r"99\pi \text{ square inches}", True),
        ("8{, }880", "8{,}880", True),
        ("x+10^{-20}", "x", False),
        (r"\sqrt{x^2}", "x", False),
        (r"\frac{\sin x}{\cos x}", r"\tan x", True),
        ("__import__('sys')", "__import__('os')", False),
    ],
)
def test_symbolic_answers(answer, reference, right, caplog):
    with caplog.at_level(logging.DEBUG):
        assert verify(rf"So \boxed{{{answer}}}.", reference) is right
        assert reward(rf"So \boxed{{{answer}}}.", reference) == float(right)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# (kind of answer, how it may be written, reference, another value)
WRITTEN = [
    ("integer", ["-7", "-7.0", "−7", "$-7$", r"\text{-7}", "-7."], "-7", "7"),
    ("decimal", ["0.5", ".5", "0.50", "1/2", r"\frac12", "5e-1"], "0.5", "0.05"),
    ("fraction", [r"-\frac{3}{4}", r"\frac{-3}{4}", r"\frac{3}{-4}", "-3/4", r"-\dfrac34", "-0.75"], "-3/4", "-4/3"),
    ("mixed number", ["2 1/2", r"2\frac12", r"2 \frac{1}{2}", "2.5", "5/2", "2½"], r"\frac{5}{2}", r"1\frac12"),
    ("percentage", [r"12.5\%", "12.5%", "12.5 percent", "12.5", r"12.5\text{ percent}"], r"12.5\%", r"1.25\%"),
    ("unit", ["5", "5 cm", r"5\text{ cm}", r"5\,\mathrm{cm}", "5 centimeters"], r"5\text{ cm}", r"5\text{ km}"),
    ("speed", ["5", "5 m/s", r"5\text{ m/s}", "5 meters per second"], "5", "6 m/s"),
    ("money", ["36", r"\$36", "$36.00", "36 dollars", r"36\text{ dollars}"], "36", "36.5"),
    ("large", ["10080", "10,080", r"10{,}080", r"10,\!080", r"1.008\times 10^4"], "10080", "1008"),
    (
        "surd",
        [r"2\sqrt3", r"\sqrt{12}", r"2\cdot3^{1/2}", r"2 \sqrt{3}", "2√3", "2*sqrt(3)", r"6/\sqrt3"],
        r"2\sqrt{3}",
        r"3\sqrt2",
    ),
    ("set", [r"\{1,2,3\}", r"\{3, 1, 2\}", r"\left\{2,1,3\right\}", "1,2,3"], r"\{1,2,3\}", r"\{1,2\}"),
    ("list", ["1,-2", "-2, 1", r"1 \text{ and } -2", "1 and -2", r"x=1 \text{ or } x=-2"], "1,-2", "1,2"),
    ("interval", [r"[1,\infty)", r"\left[1, \infty\right)", "[1,∞)"], r"[1,\infty)", r"(1,\infty)"),
    ("union", [r"(-\infty,1)\cup(2,3)", r"(2,3) \cup (-\infty, 1)", "(-∞,1)∪(2,3)"], r"(-\infty,1)\cup(2,3)", "(2,3)"),
    ("tuple", ["(1,2)", "(1, 2)", r"\left(1,\frac{4}{2}\right)", "(1.0, 2)"], "(1,2)", "(2,1)"),
    (
        "matrix",
        [r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}"],
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&3\\2&4\end{pmatrix}",
    ),
    ("text", ["Monday", r"\text{Monday}", r"\textbf{Monday}", r"\text{monday}", "Monday."], r"\text{Monday}", "Sunday"),
    ("expression", ["(x+1)^2", "x^2+2x+1", "1+2x+x^2", "y=(x+1)^2"], "x^2+2x+1", "x^2+1"),
    ("equation", ["y=2x+1", "2x+1=y", "2x+1"], "y=2x+1", "y=2x"),
    ("constant", [r"2\pi", "2pi", "2π", r"2 \cdot \pi", r"\pi\cdot2"], r"2\pi", r"\pi"),
    ("complex", ["3+4i", "4i + 3"], "3+4i", "3-4i"),
    ("base", ["101_2", "101_{2}", r"101_{2}."], "101_2", "101_3"),
    ("degrees", ["90", r"90^\circ", r"90^{\circ}", "90°", "90 degrees"], r"90^\circ", "45"),
]  # fmt: skip


@pytest.mark.parametrize("kind, forms, reference, wrong", WRITTEN, ids=[row[0] for row in WRITTEN])
def test_every_kind_of_answer(kind, forms, reference, wrong):
    for form in forms:
        for text in (rf"So \boxed{{{form}}}.", f"Not {wrong}. The answer is: ${form}$", rf"\boxed{{\boxed{{{form}}}}}"):
            assert verify(text, reference), text
    assert not verify(rf"It is {reference}, no: \boxed{{{wrong}}}", reference)
    assert not verify(rf"\boxed{{{reference[:-1]}", wrong)  # unclosed
