"""Mathematics in the viewer, drawn by the browser without a network; what is not known stays as it was written."""

import json

import pytest

from ibtpo.pages import asset, render

SHOW = """(source) => {{ const box = document.createElement("div"); box.append(renderMath(source));
    document.body.append(box); return [box.querySelectorAll("math").length, box.textContent,
      [...new Set([...box.querySelectorAll("math *")].map((e) => e.localName))].sort(),
      [...box.querySelectorAll("math *")].every((e) => e.namespaceURI.endsWith("MathML"))]; }}"""


@pytest.fixture(scope="module")
def view(browser, tmp_path_factory):
    """view(text): (number of formulas, the text that is seen, names of MathML elements)."""
    path = tmp_path_factory.mktemp("math") / "math.html"
    path.write_text("<!DOCTYPE html><body><script>" + asset("math_view.js") + "</script></body>", encoding="utf-8")
    browser.open(path)
    assert render and browser.errors == []

    def view(text):
        number, seen, names, all_mathml = browser.run(f"({SHOW.format()})({json.dumps(text)})")
        assert all_mathml and browser.errors == []
        return number, seen, names

    return view


@pytest.mark.parametrize(
    "source, seen, elements",
    [
        (r"$x^2$", "x2", ["mi", "mn", "mrow", "msup"]),
        (r"\(\frac{1}{2}\)", "12", ["mfrac", "mn", "mrow"]),
        (r"\[\sqrt{2} + \sqrt[3]{x}\]", "2+x3", ["mi", "mn", "mo", "mroot", "mrow", "msqrt"]),
        (r"$$\sum_{i=1}^{n} i$$", "∑i=1ni", ["mi", "mn", "mo", "mrow", "munderover"]),
        (r"$\alpha \le \beta \ne \pi$", "α≤β≠π", ["mi", "mo", "mrow"]),
        (r"$x_1^2$", "x12", ["mi", "mn", "mrow", "msubsup"]),
        (r"$3.14 \times 10^{-5}$", "3.14×10−5", ["mn", "mo", "mrow", "msup"]),
        (r"$\boxed{42}$", "42", ["mn", "mrow"]),
        (r"\boxed{\frac{1}{\sqrt{2}}}", "12", ["mfrac", "mn", "mrow", "msqrt"]),
        (r"$\left( \dfrac{a}{b} \right)$", "(ab)", ["mfrac", "mi", "mo", "mrow"]),
        (r"$\text{if } x > 0$", "if\xa0x>0", ["mi", "mn", "mo", "mrow", "mtext"]),
        (r"$\mathbb{R} \mathbf{v} \mathrm{d}x$", "ℝ𝐯dx", ["mi", "mrow"]),
        (r"$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$", "(1234)", ["mn", "mo", "mrow", "mtable", "mtd", "mtr"]),
        (r"\begin{align*} a &= 1 \\ b &= 2 \end{align*}", "a=1b=2", ["mi", "mn", "mo", "mrow", "mtable", "mtd", "mtr"]),
        (r"$\begin{cases} 1 & x>0 \\ 0 & x \le 0 \end{cases}$", "{1x>00x≤0", None),
        (r"$\binom{n}{k}$", "(nk)", ["mfrac", "mi", "mo", "mrow"]),
        (r"$\lim_{x \to 0} \frac{\sin x}{x}$", "limx→0sinxx", None),
        (r"$f'(x) = \overline{z}$", "f′(x)=z¯", None),
        (r"$90^\circ$ and $50\%$ and $\$5$", "90∘ and 50% and $5", None),
        (r"$x \equiv 3 \pmod{7}$", "x≡3(mod7)", None),
        (r"$\frac12$", "12", ["mfrac", "mn", "mrow"]),
        (r"$2^{10}=1{,}024$", "210=1,024", None),
        (r"$a\,b\quad c$", "abc", None),
        (r"$\vec{a} \cdot \hat{b}$", "a→⋅b^", None),
        (r"$\underbrace{a+b}_{c}$", "a+b⏟c", ["mi", "mo", "mrow", "munder"]),
        (r"$\overbrace{a}^{2}$", "a⏞2", ["mi", "mn", "mo", "mover", "mrow"]),
    ],
)
def test_mathematics_is_drawn(view, source, seen, elements):
    number, text, names = view(source)
    assert number == source.count(" and ") + 1 and text == seen
    assert elements is None or names == elements


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and then $7 more.",
        "From $5-$7 a piece, $12.50 in all",
        "A price of $5, and $x without an end",
        r"\$5 and \$6",
        r"$\unknown{x}$",
        r"$\frac{1}$ is not whole",
        r"$\begin{tabular} a \end{tabular}$",
        r"$x^{2$ is open",
        r"$a } b$",
        r"$\left( x$",
        r"$\begin{pmatrix} 1 \end{bmatrix}$",
        r"\(never closed",
        "$" + "{" * 200 + "x" + "}" * 200 + "$",
        r"$\def\x{\x\x}\x$",
        r"$\href{javascript:alert(1)}{x}$",
        "no mathematics at all",
        "",
    ],
)
def test_what_is_not_known_is_left_as_it_is(view, text):
    assert view(text) == (0, text, [])


def test_markup_in_mathematics_is_text(view, browser):
    number, text, names = view(r"$\text{<img src=x onerror=alert(1)>} <b>$ <i>x</i>")
    assert number == 1 and "<img" in text.replace("\xa0", " ") and "<i>x</i>" in text and "img" not in names
    assert browser.run("document.querySelectorAll('img, b, i').length") == 0


def test_long_text_takes_no_long_time(view, browser):
    """No pattern that backtracks: dollars, brackets and boxes that never end."""
    for piece in ("$x", "\\[", "\\(", "\\boxed{", "{", "$$", "\\begin{align}", "$a\\", "$ "):
        count = browser.run(f"renderMath({json.dumps(piece)}.repeat(3000)).textContent.length")
        assert count > 0
