"""One spelling of answers: markup that carries no value goes, symbols become LaTeX commands, labels of choices part."""

import re
import unicodedata

from ibtpo.rewards.math.boxes import find_boxes

BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # not the power in 2**3
_SYMBOLS = str.maketrans(
    {"π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∪": r"\cup ", "∩": r"\cap ",
     "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ", "θ": r"\theta ", "÷": "/", "⁄": "/",
     "∶": ":", "、": ",", "。": ".", "〈": r"\langle ", "〉": r"\rangle ", "⟨": r"\langle ", "⟩": r"\rangle ",
     "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "∈": r"\in ", "≈": r"\approx ", "μ": r"\mu ", "µ": r"\mu ",
     "Ω": r"\Omega ", "’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "✓": "", "✔": "", "✅": "", "■": "", "□": "",
     "＄": r"\$", "元": " yuan"}
    | dict.fromkeys("−–—―‐‑‒﹣－", "-")
    | {char: rf"\frac{{{top}}}{{{bottom}}}" for char, top, bottom in
       [("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅖", 2, 5), ("⅗", 3, 5),
        ("⅘", 4, 5), ("⅙", 1, 6), ("⅚", 5, 6), ("⅛", 1, 8), ("⅜", 3, 8), ("⅝", 5, 8), ("⅞", 7, 8), ("⅐", 1, 7),
        ("⅑", 1, 9), ("⅒", 1, 10)]}
)  # fmt: skip
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_LEVEL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
_ROOT = re.compile(r"([√∛∜]) ?(?:\(([^()]{0,100})\)|(\d+(?:\.\d+)?))?")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_BLANKS = re.compile(r"\s+")
_LOOSE_BLANK = re.compile(r" (?!(?<=\d )\d)")
_BRACED_COMMA = re.compile(r"\{ ?, ?\}")
_PLAIN = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt(?=\s*\{)")
_BARE_RADICAND = re.compile(r"(\\sqrt ?\[ ?\w+ ?\]) ?(\w)")
_OVER = re.compile(r"\{?\s*([^{}\\=,]{1,50}?)\s*\\over(?![a-zA-Z])\s*([^{}\\=,]{1,50})\s*\}?")
_ROW_GAP = re.compile(r"\\\\ ?\[ ?-?[\d.]+ ?[a-z]{2} ?\]")
# "\\" starts a matrix row: the second of the two never begins a command.
_COMMAND = r"(?<!\\)\\"
# Any command but these few, which stay as they are.
_OTHER_COMMAND = re.compile(r"\\(?!(?:text|frac|sqrt|pi|cdot|times|circ|infty)(?![a-zA-Z]))|~")
_SPACING = re.compile(rf"\s*{_COMMAND}!\s*|{_COMMAND}(?:[,;: >]|(?:q?quad|enspace|thinspace)(?![a-zA-Z]))|~")
_SIZED_SPACE = re.compile(rf"{_COMMAND}(?:hspace|vspace|phantom|hphantom|tag|label)\*? ?\{{[^{{}}]*\}}")
_DECORATION = re.compile(
    rf"{_COMMAND}(?:(?:left|right) ?\.|(?:(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|bf|it"
    r"|rm|sf|tt|em|sl|bfseries|itshape|tiny|small|normalsize|footnotesize|large|Large|LARGE|huge|Huge|underline"
    r"|boldsymbol|pmb|bm|emph)(?![a-zA-Z])"
    r"|(?:text)?color ?\{[^{}]*\}|(?:checkmark|blacksquare|square|Box|qed|qedhere)(?=[\s}.\]]*$)|[()\[\]]))"
)
_TEXT_NAMES = re.compile(
    r"\\(?:mbox|hbox|mathrm|mathsf|mathtt|mathbf|mathit|text(?:bf|it|rm|sf|tt|sl|up|normal|md))(?=\s*\{)"
)
_OPERATOR = re.compile(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}")
_FRACTION = re.compile(r"\\(?:[dtc]|nice|s|x)frac(?![a-zA-Z])")
_RARE = re.compile(r"\\(?:div|lg|euro|pound|yen|(?:text)?cent|colon|[lr]brace|[lr]?vert|mid|varnothing|mu|Omega)")
_NAMES = [
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10}"),
    (re.compile(r"\\euro(?![a-zA-Z]) ?"), "€"),
    (re.compile(r"\\pounds?(?![a-zA-Z]) ?"), "£"),
    (re.compile(r"\\yen(?![a-zA-Z]) ?"), "¥"),
    (re.compile(r"\\(?:text)?cents?(?![a-zA-Z])"), "¢"),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"(?<=[\d }]) ?\\mu ?(?:\\text ?\{ ?m ?\}|m(?![a-zA-Z]))"), r"\\text{ um}"),
    (re.compile(r"(?<=[\d }]) ?(?:\\text ?\{ ?k ?\}|k)?\\Omega(?![a-zA-Z])"), r"\\text{ ohm}"),
]
_DEGREE = r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degrees?(?![a-zA-Z]))"
_DEGREES = re.compile(rf"\s*{_DEGREE}")
DEGREES_BEHIND = re.compile(rf"{_DEGREE}\s*[.$]*\s*$")
_TEMPERATURE = re.compile(rf"\s*{_DEGREE}\s*(?:\\text\s*\{{\s*([CF])\s*\}}|([CF])(?![A-Za-z]))")
_ANGLE = re.compile(
    rf"\\?(?<![A-Za-z])(sin|cos|tan|cot|sec|csc)(?![a-z])(\s*\^\s*\{{?\d\}}?)?\s*[({{]?\s*(-?\d+(?:\.\d+)?)\s*{_DEGREE}\s*[)}}]?"
)
_ONE_IN_BRACES = re.compile(r"([_^])\{(\w)\}")
_LEADING = re.compile(r"(?:[\s=:]|\\(?:therefore|implies|Rightarrow|Longrightarrow|approx|simeq)(?![a-zA-Z]))+")
_ANNOUNCED = re.compile(r"\\text\s*\{\s*(?:the )?(?:final )?answer(?: is|:)?:?\s*([^{}]*)\}\s*", re.IGNORECASE)
TEXT = r"\\text\s*\{([^{}]*)\}"
ALL_TEXT = re.compile(TEXT)
_MINUS = re.compile(r"\\text\s*\{\s*(?:minus|negative)\s*\}\s*(?=[\d.\\])")
_CHOICE = re.compile(r"\(([A-Z])\)")
# Of a multiple-choice answer with its value: "\textbf{(B)} 27".
_LABEL = re.compile(
    r"(\\text\s*\{\s*)?\(([A-E])\)(?(1)\s*\}|(?!\())\s*(?=-?[\w\\({\[.$])(?!\\(?:cup|cap|cdot|times|pm)\b)"
)
_APPROXIMATION = re.compile(r"((?:(?!\\approx).)+)\\approx ?\$?(-?\d[\d,]*(?:\.\d+)?)(?: ?\\?%| ?\\text ?\{[^{}]*\})?")
_CURRENCY = "\x00"  # a dollar sign that is money, not a delimiter


def normalise(text: str) -> str:
    r"""Removes symbols that carry no value: math delimiters, spacing, styles, colours, \left and \right, degrees
    outside of a function, a leading equals sign, a comma or full stop at the end; spells symbols as LaTeX commands and
    text commands as \text. A dollar sign that is left is money."""
    text = text if text.isascii() else _to_ascii(text)
    text = " ".join(text.split())
    if _PLAIN.fullmatch(text):
        return text.rstrip(",")
    if "{" in text:
        text = _BRACED_COMMA.sub(",", text)
    if "pi" in text:
        text = _PI.sub(r"\\pi", text)
    while text.startswith("\\boxed{"):
        content, _ = find_boxes(text)
        if content is None or len(content) != len(text) - len("\\boxed{}"):
            break
        text = content.strip()
    if "$" in text:
        text = text.replace("\\$", _CURRENCY)
        if text.count("$") == 1 and re.match(r"-? ?\$ ?[\d.]", text):
            text = text.replace("$", _CURRENCY)
        text = text.replace("$", "").replace(_CURRENCY, "$")
    if text.startswith('"') and text.count('"') == 2 and text.rstrip(".").endswith('"'):
        text = text.replace('"', "")
    if "**" in text:
        text = BOLD.sub("", text)
    if "sqrt" in text:
        text = _BARE_RADICAND.sub(r"\1{\2}", _PLAIN_ROOT.sub(r"\\sqrt", text))
    if "\\over" in text:
        text = _OVER.sub(r"\\frac{\1}{\2}", text)
    if "\\" in text or "~" in text:
        text = _without_commands(text)
    if "circ" in text or "°" in text or "\\degree" in text:
        text = _TEMPERATURE.sub(lambda match: f"\\text{{ {_SCALES[match.group(1) or match.group(2)]}}}", text)
        text = _DEGREES.sub("", _ANGLE.sub(r"\\\1\2(\\frac{\3\\pi}{180})", text))
    if "{" in text and ("_" in text or "^" in text):
        text = _ONE_IN_BRACES.sub(r"\1\2", text)
    text = (re.sub(r" +", " ", text) if "  " in text else text).strip().replace(":=", "=")
    if "+" in text:
        text = re.sub(r"(?<=[\w)}]) ?\+ ?-(?=[\d.\\])", " - ", text)
    if text[:1] in "\\=:" and (leading := _LEADING.match(text)):
        text = text[leading.end() :]
    if text.startswith("\\text") and (announced := _ANNOUNCED.match(text)):
        said = f"\\text{{{announced.group(1)}}}" if announced.group(1) else ""
        text = said + text[announced.end() :]
    if text.startswith("\\text") and (minus := _MINUS.match(text)):
        text = f"-{text[minus.end() :]}"
    text = _without_braces(text)
    if text.endswith((",", ";")):
        text = text[:-1].rstrip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


_SCALES = {"C": "celsius", "F": "fahrenheit"}


def _to_ascii(text: str) -> str:
    """Symbols as LaTeX, digits and letters of all widths as those of ASCII."""
    text = _ROOT.sub(_root, text).translate(_SYMBOLS)
    text = _RAISED.sub(lambda match: f"^{{{match.group().translate(_LEVEL)}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{match.group().translate(_LEVEL)}}}", text)
    text = unicodedata.normalize("NFKC", text)
    return re.sub(r"[^\x00-\x7f]", lambda match: _digit(match.group()), text)


def _digit(char: str) -> str:
    digit = unicodedata.decimal(char, None)
    return char if digit is None else str(digit)


def _root(match: re.Match) -> str:
    sign, bracketed, number = match.groups()
    content = bracketed if bracketed is not None else number
    return _ROOTS[sign] + (" " if content is None else f"{{{content}}}")


def _without_commands(text: str) -> str:
    """Without commands that carry no value, and with one name for those that are the same."""
    if not _OTHER_COMMAND.search(text):
        return text
    text = _ROW_GAP.sub(r"\\\\", text)
    text = _SPACING.sub(lambda match: "" if "!" in match.group() else " ", text)
    text = _DECORATION.sub("", _SIZED_SPACE.sub("", text))
    text = _TEXT_NAMES.sub(r"\\text", _OPERATOR.sub(r"\\\1 ", text))
    text = _FRACTION.sub(r"\\frac", text)
    if _RARE.search(text):
        for pattern, name in _NAMES:
            text = pattern.sub(name, text)
    return text


def split_approximation(text: str) -> tuple[str, str] | None:
    r"""("2\sqrt3", "3.46") of "2\sqrt3 \approx 3.46", also with a unit behind; None without such an end."""
    match = _APPROXIMATION.fullmatch(text) if "\\approx" in text else None
    return (match.group(1).strip(), match.group(2)) if match else None


def _without_braces(text: str) -> str:
    """Without braces around all of it."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    pairs, open_braces = {}, []
    for match in re.finditer(r"\\[\\{}]|[{}]", text):
        if match.group() == "{":
            open_braces.append(match.start())
        elif match.group() == "}" and open_braces:
            pairs[open_braces.pop()] = match.start()
    start, end = 0, len(text)
    while start < end and pairs.get(start) == end - 1:
        start, end = start + 1, end - 1
        while start < end and text[start] == " ":
            start += 1
        while start < end and text[end - 1] == " ":
            end -= 1
    return text[start:end]


def spelling_of(text: str) -> str:
    """The form in which two answers are compared as strings: text commands unwrapped, no money signs, no blanks but
    between digits, "(C)" as "C"."""
    text = ALL_TEXT.sub(r"\1", text) if "\\" in text else text
    text = text.replace("$", "")
    if " " in text:
        text = _LOOSE_BLANK.sub("", " ".join(text.split()))
    choice = _CHOICE.fullmatch(text) if text.startswith("(") else None
    return choice.group(1) if choice else text


def split_label(answer: str, reference: str) -> tuple[str, str]:
    r"""("B", "27") of a normalised answer "\text{(B)} 27"; ("", answer) without such a label, or where the reference,
    normalised too, has one."""
    whole = ALL_TEXT.fullmatch(answer)
    text = whole.group(1).strip() if whole else answer
    label = _LABEL.match(text)
    return (label.group(2), text[label.end() :]) if label and not _LABEL.match(reference) else ("", answer)
