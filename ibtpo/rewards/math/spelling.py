"""One spelling of answers: markup that carries no value goes, symbols become LaTeX commands, labels of choices part."""

import re

from ibtpo.rewards.math.boxes import find_boxes

BOLD = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")  # not the power in 2**3
_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "×": r"\times ", "·": r"\cdot ", "∪": r"\cup ",
     "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "θ": r"\theta ", "²": "^2", "³": "^3",
     "½": r"\frac12", "¼": r"\frac14", "¾": r"\frac34", "\u00a0": " ", "\u202f": " ", "，": ",", "％": "%"}
)  # fmt: skip
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_ROW_GAP = re.compile(r"\\\\ ?\[ ?-?[\d.]+ ?[a-z]{2} ?\]")
# "\\" starts a matrix row: the second of the two never begins a command.
_SPACING = re.compile(r"(?<!\\)(?:\\!\s*|\\[,;: ]|\\q?quad(?![a-zA-Z]))|~")
_DELIMITERS = re.compile(r"(?<!\\)\\(?:(?:left|right|displaystyle)(?![a-zA-Z])|[()\[\]$])|\$")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degrees?(?![a-zA-Z]))")
_ONE_IN_BRACES = re.compile(r"([_^])\{(\w)\}")
_TEXT_COMMAND = r"\\(?:text|mbox|mathrm|textbf|textit|mathbf|operatorname)\s*"
TEXT = rf"{_TEXT_COMMAND}\{{([^{{}}]*)\}}"
ALL_TEXT = re.compile(TEXT)
_CHOICE = re.compile(r"\(([A-Z])\)")
# Of a multiple-choice answer with its value: "\textbf{(B)} 27".
_LABEL = re.compile(
    rf"({_TEXT_COMMAND}\{{\s*)?\(([A-E])\)(?(1)\s*\}}|(?!\())\s*(?=-?[\w\\({{\[.])(?!\\(?:cup|cap|cdot|times|pm)\b)"
)


def normalise(text: str) -> str:
    r"""Removes symbols that carry no value: dollar signs, spacing, \left and \right, degrees, \frac's
    style, a comma or full stop at the end; spells symbols as LaTeX commands."""
    text = text if text.isascii() else text.translate(_SYMBOLS)
    text = _PI.sub(r"\\pi", re.sub(r"\s+", " ", text).strip().replace("{,}", ","))
    while text.startswith("\\boxed{"):
        content, _ = find_boxes(text)
        if content is None or len(content) != len(text) - len("\\boxed{}"):
            break
        text = content.strip()
    text = _ROW_GAP.sub(r"\\\\", text)
    text = _SPACING.sub(lambda match: "" if match.group().startswith("\\!") else " ", text)
    text = re.sub(r" +", " ", _DELIMITERS.sub("", BOLD.sub("", text)))
    text = _FRACTION.sub(r"\\frac", text)
    text = _DEGREES.sub("", text)
    text = _ONE_IN_BRACES.sub(r"\1\2", text)
    text = text.strip()
    if text.endswith((",", ";")):
        text = text[:-1].rstrip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text


def spelling_of(text: str) -> str:
    """The form in which two answers are compared as strings: text commands unwrapped, no blanks,
    "(C)" as "C"."""
    text = re.sub(r"\s+", "", ALL_TEXT.sub(r"\1", text))
    choice = _CHOICE.fullmatch(text)
    return choice.group(1) if choice else text


def split_label(answer: str, reference: str) -> tuple[str, str]:
    r"""("B", "27") of a normalised answer "\textbf{(B)} 27"; ("", answer) without such a label, or where the reference,
    normalised too, has one."""
    whole = ALL_TEXT.fullmatch(answer)
    text = whole.group(1).strip() if whole else answer
    label = _LABEL.match(text)
    return (label.group(2), text[label.end() :]) if label and not _LABEL.match(reference) else ("", answer)
