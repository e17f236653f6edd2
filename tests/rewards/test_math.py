"""Grading mathematics: properties of extraction, and real answers in every usual phrasing."""

import json
import logging
import random
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.math import (
    TAIL_CHARACTERS,
    _slow_grade,
    extract_answer,
    fast_grade,
    find_boxes,
    reward,
    verify,
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --------------------------------------------------------------------------------------- extraction


@st.composite
def balanced(draw, depth=2):
    """Text whose braces balance, with escaped braces and commands between them."""
    parts = draw(
        st.lists(
            st.sampled_from(["1", "x", " ", r"\frac", r"\{", r"\}", r"\\", "+", "{}", "é"]),
            max_size=5,
        )
    )
    if depth and draw(st.booleans()):
        parts.append("{" + draw(balanced(depth=depth - 1)) + "}")
    return "".join(parts)


@given(balanced(), balanced(), st.sampled_from(["", " so ", "\n\n", " 12 "]))
def test_the_last_box_is_returned_whole(first, last, between):
    text = rf"We get \boxed{{{first}}}{between}\boxed{{{last}}} as asked"
    assert extract_answer(text) == (last.strip() or None)
    assert extract_answer(rf"\boxed{{a \boxed{{{last}}} b}}") == rf"a \boxed{{{last}}} b"
    assert extract_answer(text + r" and \boxed{\frac{1}{2") == (last.strip() or None)


@given(st.text(alphabet="\\boxed{} 0123456789.,-/$#answer is:\n*", max_size=60))
def test_any_text_is_extracted_and_compared_without_error(text):
    answer = extract_answer(text)
    assert answer is None or (answer == answer.strip() and answer in text.replace("**", ""))
    assert fast_grade(answer, "7") in (True, False, None)


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{5} then 7", "5"),
        (r"the answer is 9, no: \boxed{5", "9, no"),
        (r"\boxed{18", None),
        (r"x \\\boxed{18}", "18"),
        (r"7 \\boxed{18}", "18"),
        (r"7 \\boxed{x} \boxed{3}", "3"),
        (r"I get 4. \boxed{18", "4"),
        (r"\fbox{6}", "6"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("work <<2+2=4>>\n#### 1,234", "1,234"),
        ("#### 3\n#### 4 ", "4"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is: $\\frac{1}{2}$.", r"\frac{1}{2}"),
        ("**The answer is 12** hours. Done.", "12 hours"),
        ("Final Answer: 2**3", "2**3"),
        ("the answer is the point $(1, 2)$, as shown", "(1, 2)"),
        ("so x = 5-3", "3"),
        ("so x = -3 or 1,000.25 m", "1,000.25"),
        ("it is -3", "-3"),
        ("about 3/4 of it", "3/4"),
        ("no idea", None),
        ("", None),
        (r"\boxed{}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


# {} is the answer: each must extract it, for numbers, formulas and words alike.
STATEMENTS = [
    "The answer is:\n\n{}", "The answer is:\n\n$${}$$", "The final answer is:\n$$\n{}\n$$", "**Answer:**\n\n{}",
    "The answer is:\n\\[\n{}\n\\]\nThis holds for n = 3.", "The answer is\n\\[ {} \\]\n", "The answer is: $$\n{}\n$$",
    "Answer:\n${}$\nI hope it is correct.", "The answer is:\n```\n{}\n```", "The answer is:\n\n**{}**\n\nCheck: 6*7.",
    "The answer is \\[{}\\]", "The answer is {}, because 3*6=18.", "So the answer is {} (since 3*6).",
    "The answer is ${}$, since $x=1$.", "The answer is {} because of it", "The answer is `{}`.", "The answer is `{}.`",
    "The answer is {},", "The answer is {};", "The answer is {}:", "Final Answer: The final answer is {}. I hope so.",
    "Answer: Therefore, the answer is {}.", "It is 3*6, so the answer is {}.",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("answer", ["42", "-7", "−7", "1,234.5", r"\frac{1}{2}", "(1, 2)", "x^2+1", "Friday"])
def test_an_answer_is_found_in_every_statement(statement, answer):
    assert extract_answer("We have 3 + 4 = 7.\n\n" + statement.replace("{}", answer)) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The answer is therefore 18.", "18"),
        ("The answer is therefore equal to −18.", "−18"),
        ("The answer is 18, so Janet makes that.", "18"),
        ("The answer is 18. This answer is correct.", "18"),
        ("Answer: Janet makes 18 dollars every day.", "18 dollars"),
        ("Answer: Janet's profit is $1,800 in a year.", "1,800"),
        ("Answer: therefore 18 km, as required.", "18 km"),
        ("The answer is 18 km.", "18 km"),
        ("The answer is therefore 18%.", "18"),
        ("The answer is 3*6, so the answer is 18.", "18"),
        ("The answer is 5. Wait, the answer is 6.", "6"),
        ("I get −3", "−3"),
        ("The result is −3.", "−3"),
        ("Answer:\n16 - 3 - 4 = 9 eggs\n9*2 = 18", "18"),  # reasoning: the last number
        ("Answer:\nJanet sells 9 eggs for 18 dollars.", "18"),
        ("Answer:\n$$3x=6$$\n$$x=2$$", "2"),
        ("It is 42. The answer is:", "42"),
        ("It is 42. The answer is: **", "42"),
    ],
)
def test_the_number_of_a_sentence(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "sentence",
    [
        "Friday", "Janet", "x = 5", "March 5", "5 May", "Room 12", "day 3", "10:30", "3:2", "n!", "(n-1)!", "5! + 3",
        "5! Or 6", "5 and not 6", "3 or 4", "5 or maybe 6", "either 5 or 6", "not 5", "not 5, but 6", "5, 6",
        "5 or more", "9, no",
        "5, because it is even, or maybe 6", "5 (since 6 is too large, or maybe not)", "2x = 6, so x = 3", "about 18",
        "greater than 5", "half of 18", "a multiple of 5", "negative 5", "obtained by adding 5", "in step 3", "2 xy",
        "therefore 2x", "18, but it could be 19", 
    ],
)  # fmt: skip
def test_other_sentences_are_the_answer_as_they_stand(sentence):
    for head in ("The answer is ", "The answer is:\n\n"):
        assert extract_answer(f"We add 3.\n{head}{sentence}.") == sentence


HEDGES = [
    "{a} or {b}", "{a} and not {b}", "{a} or maybe {b}", "{a}; maybe {b}", "{a} (or {b})", "not {a}, but {b}",
    "{a}, {b}", "{a} and {b}", "{a}, since it is not {b}, or {b}", "{a} (since {b} is large, or maybe {b})",
    "{a}! Or {b}", "`{a}` or `{b}`", "${a}$ or ${b}$", "$${a}$$ or $${b}$$", "{a}-{b}",
]  # fmt: skip


@pytest.mark.parametrize("hedge", HEDGES)
def test_no_statement_makes_one_of_two_answers_right(hedge):
    for head in ("The answer is ", "The answer is: ", "The answer is:\n\n", "Answer: ", "Final Answer: The answer is "):
        text = f"We add 2.\n{head}{hedge.format(a=5, b=8)}."
        assert not verify(text, "5") and not verify(text, "8"), text


def test_only_the_tail_is_read():
    assert extract_answer(r"\boxed{1}" + " " * TAIL_CHARACTERS) is None
    assert extract_answer(r"\boxed{1}" + " " * (TAIL_CHARACTERS - 9)) == "1"


HOSTILE = [
    "{", "}", r"\boxed{", r"\boxed{1", "#", "####", "answer is ", "answer is \\(", "$", " ", "\\",
    "answer is: \n", "answer:\n", "answer is \\[", "answer is $$1", "so the answer is 5 ", "Final answer: the ", "\n",
    "! ", "!", "!A", ". ", "`", ",", ", ", ", so ", " (as ", "because ", "or ", "$$1$$ or ", "\n or ", "(B) ", "−",
    r"\overline{3}", "0.", "answer: 1. ", ",\n",
    "9", "9,", "9/", "1.", "word ", "1 word ", r"\text{", r"\text{a}", r"^\circ", "**", "-",
    r"\frac{1}{2}", r"\! ", "~", "1 m/", "√", "π", r"\boxed{1} or ", "% ",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_repetitions_take_bounded_time(unit):
    """The fast path runs in the training process: no text may hold it up, however long."""
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for wrapped in (
        text,
        rf"\boxed{{{text[:8000]}}}",
        f"the answer is {text[:8000]}",
        f"answer is 5 {text[:8000]}, so x",
    ):
        fast_grade(extract_answer(wrapped), r"\frac{3}{7}")
        fast_grade(extract_answer(wrapped), r"5\text{ cm}")
    assert time.process_time() - start < 0.3


# ---------------------------------------------------------------------------------------- fast path


@given(st.fractions(max_denominator=10_000), st.fractions(max_denominator=10_000))
def test_fractions_are_compared_exactly(a, b):
    def forms(x):
        yield f"{x.numerator}/{x.denominator}"
        yield rf"\frac{{{x.numerator}}}{{{x.denominator}}}"
        minus = "-" if x < 0 else ""
        yield rf"{minus}\dfrac {{{abs(x.numerator)}}} {{{x.denominator}}} \text{{ cm}}^2"
        if abs(x) > 1 and x.denominator > 1:
            whole, rest = divmod(abs(x.numerator), x.denominator)
            yield rf"${'-' if x < 0 else ''}{whole}\tfrac{{{rest}}}{{{x.denominator}}}$"

    for left in forms(a):
        assert all(fast_grade(left, right) is True for right in forms(a))
        assert all(fast_grade(left, right) is (a == b) for right in forms(b))


@given(st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_integers_and_decimals_in_every_style(value, places):
    exact = Fraction(value, 10**places)
    sign, digits = ("-" if value < 0 else ""), str(abs(value)).zfill(places + 1)
    whole, decimals = (digits[:-places], digits[-places:]) if places else (digits, "")
    tail = f".{decimals}" if places else ""
    grouped = f"{int(whole):,}"
    for text in (
        f"{sign}{whole}{tail}",
        f"{sign}{grouped}{tail}",
        f"{sign}{grouped.replace(',', '{,}')}{tail}",
        f"{sign}{grouped.replace(',', ',' + chr(92) + '! ')}{tail}",
        rf"{sign}\${grouped}{tail}",
        f"${sign}{grouped}{tail}$.",
        f"{sign}{whole}{tail} dollars per day",
        rf"{sign}{whole}{tail}\text{{ dollars}}",
        rf"\left {sign}{whole}{tail} \right",
        f"{sign}{whole}{tail}{'' if places else '.'}00",
        f"00{whole}{tail}" if not sign else f"-00{whole}{tail}",
    ):
        assert fast_grade(text, f"{exact.numerator}/{exact.denominator}") is True, text
        assert fast_grade(text, str(exact.numerator + exact.denominator)) is (
            exact == exact.numerator + exact.denominator
        )


@pytest.mark.parametrize(
    "answer, reference, grade",
    [
        (None, "1", False),
        ("", "1", False),
        (r"90^\circ", "90", True),
        (r"90^{\circ}", r"90^\circ", True),
        (r"\text{(C)}", "C", True),
        ("(C)", r"\text{(C)}", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})", True),
        ("27", "27.0", True),
        ("27", 27.0, True),
        ("25", "025", True),
        ("2516_8", "2516_{8}", True),
        ("2516_9", "2516_8", False),
        (r"1\frac{4}{5}", "9/5", True),
        (r"\frac43", r"\frac{4}{3}", True),
        (r"\boxed{\boxed{4}}", "4", True),
        (r"50\%", "50", True),
        ("50 percent", r"50\%", True),
        ("0.5", r"50\%", True),
        (r"0.5\%", r"50\%", False),
        (r"50\%", "5000", False),
        ("1.5e3", "1500", True),
        ("1e400", "1", False),
        ("2 1/2", "5/2", True),
        ("2 3/2", "7/2", None),
        ("5 m/s", "5", True),
        ("5 cm", r"5\text{ centimeters}", True),
        (r"5\text{ km}", r"5\text{ cm}", False),
        (r"\sqrt{2} km", r"\sqrt2 cm", False),
        ("42,", "42", True),
        (r"\text{\$3.50}", "3.5", True),
        (r"\text{3.50 dollars}", "3.6", False),
        (r"0.\overline{3}", r"\frac13", True),
        (r"-1.2\overline{3}", "-37/30", True),
        (r".\overline{43}", r"\frac{43}{99}", True),
        (r"0.\overline{3}", "0.3", False),
        (r"5\text{ apples}", r"5\text{ pieces}", True),
        # Left to Math-Verify:
        ("2 xy", "2", None),
        ("2 million", "2", None),
        (r"2\text{ hundred}", "2", None),
        ("18 or more", "18", None),
        ("18 dollars", r"18 x", None),
        ("0.333333", r"\frac13", None),
        (r"\sqrt{4}", "2", None),
        ("1/0", "0", None),
        ("2**3", "23", None),
        ("9" * 5000, "9", None),
        # and 0.33 is not a third:
        ("0.33", r"\frac13", False),
        ("1,234", "1234.5", False),
    ],
)
def test_fast_grade(answer, reference, grade):
    assert fast_grade(answer, reference) is grade


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


def test_an_empty_reference_is_an_error():
    with pytest.raises(ValueError, match="reference answer is empty"):
        fast_grade("1", " ")


# ---------------------------------------------------------------------------------------- slow path


@pytest.mark.parametrize(
    "answer, reference, right",
    [
        (r"\sqrt{8}", r"2\sqrt{2}", True),
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
    ("surd", [r"2\sqrt3", r"\sqrt{12}", r"2 \sqrt{3}", "2√3", "2*sqrt(3)", r"6/\sqrt3"], r"2\sqrt{3}", r"3\sqrt2"),
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


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"$x=\boxed{1}$ and $x=\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{2} \text{ or } \boxed{3}", "1, 2, 3"),
        (r"$\boxed{3}$ or $\boxed{3}$", "3"),
        (r"\boxed{1}. And then \boxed{2}", "2"),
        (r"\boxed{1} and so we get \boxed{2}", "2"),
        (r"\boxed{0}, so \boxed{1} or \boxed{2}", "1, 2"),
        (r"\boxed{\boxed{1}, \boxed{2}}", r"\boxed{1}, \boxed{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
    ],
)
def test_several_boxes_are_one_answer_only_if_joined(text, answer):
    assert extract_answer(text) == answer


def test_alternatives_are_one_answer_of_a_reference_and_several_of_a_response():
    text = r"$\boxed{1\frac12},$ or $\boxed{\frac32}$ inches"
    assert find_boxes(text)[0] == r"\frac32"
    assert find_boxes(text, alternatives=True)[0] == r"1\frac12, \frac32"
    assert find_boxes(r"\boxed{1} and \boxed{2}")[0] == "1, 2"


def test_hedging_between_boxes_is_wrong():
    hedged = r"$\boxed{1}$ or $\boxed{2}$"
    assert not verify(hedged, "2") and not verify(hedged, "1")
    assert verify(hedged, "2, 1") and verify(r"\boxed{1.5} or \boxed{\frac32}", "3/2")


# ------------------------------------------------------------------------------------- real answers


def test_every_gsm8k_answer_in_every_phrasing(shared_data):
    rows = read(shared_data / "gsm8k_test.jsonl")
    assert len(rows) == 1319
    for row in rows:
        text = row["answer"].split("####")[1].strip()
        value = int(text.replace(",", ""))
        assert fast_grade(extract_answer(row["answer"]), text) is True
        phrasings = [
            r"\boxed{%s}",
            "#### %s",
            "The answer is %s.",
            r"\boxed{%s \text{ dollars}}",
            r"The answer is \boxed{%s}.",
            "So it is $%s$. The answer is $%s dollars per week.",
        ]
        for phrasing in phrasings:
            for written in (str(value), f"{value:,}", f"{value}.00"):
                response = f"3 + 4 = 7\n\n{phrasing.replace('%s', written)}"
                assert fast_grade(extract_answer(response), text) is True, response
            for wrong in (value + 1, -value - 1, value * 10 + 7):
                response = f"It is not {value}.\n\n{phrasing.replace('%s', str(wrong))}"
                assert fast_grade(extract_answer(response), text) is False, response


@pytest.mark.parametrize("name, count", [("aime24", 30), ("aime25", 30), ("amc23", 40)])
def test_competition_answers(shared_data, name, count):
    rows = read(shared_data / f"{name}_test.jsonl")
    assert len(rows) == count
    for row in rows:
        for reference in (row["answer"], str(row["answer"])):
            value = int(float(reference))
            assert fast_grade(extract_answer(rf"Thus \boxed{{{value}}}."), reference) is True
            assert fast_grade(extract_answer(rf"Thus \boxed{{{value + 1}}}."), reference) is False


def test_math500_solutions_against_their_own_answers(shared_data):
    rows = read(shared_data / "math500_test.jsonl")
    assert len(rows) == 500
    for row in rows:
        assert verify(row["solution"], row["answer"]), row["answer"]
        # Math-Verify alone must agree, since it decides wherever the spelling differs.
        assert _slow_grade(extract_answer(row["solution"]), row["answer"]), row["answer"]


# MATH-500 answers spelled differently that are accepted for one another, unordered; all others are
# told apart.
SAME_VALUE = {
    frozenset(pair)
    for pair in [
        (r"10,\!080", "10080"),
        (r"2 \sqrt{5}", r"2\sqrt{5}"),
        ("1,-2", "-2,1"),  # the same two roots
        ("x=5", "5"),
        # The unit or currency is not part of the value.
        ("15", r"15\mbox{ cm}^2"),
        ("36", r"\$36"),
        (r"\frac14", r"\frac{1}{4}"),
        (r"36^\circ", r"\$36"),
        *((number, rf"{number}^\circ") for number in ("30", "36", "90", "120")),
        # Math-Verify is lenient: a pair and a list, a base left out, the right-hand side of an
        # equation.
        ("(-2,1)", "-2,1"),
        ("(-2,1)", "1,-2"),
        ("40", "40_9"),
        ("5x - 7y + 11z + 4 = 0", "0"),
    ]
}


def test_math500_solutions_against_other_answers(shared_data):
    """Each solution against another problem's answer: accepted only where both mean the same."""
    rows = read(shared_data / "math500_test.jsonl")
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    rejected = 0
    for i, j in zip(order, order[1:] + order[:1]):
        mine, other = rows[i]["answer"], rows[j]["answer"]
        accepted = verify(rows[i]["solution"], other)
        rejected += not accepted
        if mine == other:
            assert accepted, (mine, other)
        elif accepted:
            assert frozenset((mine, other)) in SAME_VALUE, (mine, other)
    assert rejected > 450


def test_answers_that_mean_the_same_are_accepted_for_one_another():
    for pair in SAME_VALUE:
        first, second = sorted(pair)
        assert verify(rf"\boxed{{{first}}}", second) or verify(rf"\boxed{{{second}}}", first), pair


@pytest.mark.slow
def test_math500_answers_are_told_apart_in_many_pairings(shared_data):
    answers = sorted({row["answer"] for row in read(shared_data / "math500_test.jsonl")})
    pairs = random.Random(1).choices([(a, b) for a in answers for b in answers if a != b], k=4_000)
    for mine, other in pairs:
        if verify(rf"\boxed{{{mine}}}", other):
            assert frozenset((mine, other)) in SAME_VALUE, (mine, other)


@pytest.mark.slow
def test_every_math_solution_yields_its_boxed_answer(shared_data):
    rows = read(shared_data / "math4500_train.jsonl")
    assert len(rows) == 4500
    wrong, joined = [], 0
    for row in rows:
        answer = extract_answer(row["solution"])
        assert answer is not None, row["idx"]
        boxed = re.sub(r"\\f?box(ed)?\s*\{\s*", r"\\boxed{", row["solution"])
        if rf"\boxed{{{answer}" not in boxed:  # several boxes: each is there
            joined += 1
            assert all(rf"\boxed{{{part}" in boxed for part in re.split(r", (?![^(]*\))", answer)), row["idx"]
        if not _slow_grade(answer, answer):
            wrong.append(answer)
    assert not wrong and 5 <= joined <= 15
