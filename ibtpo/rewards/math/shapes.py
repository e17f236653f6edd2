"""Shapes of answers that are no plain number: times, ratios, numerals in a base, lists, pairs, sets, columns."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ibtpo.rewards.math.spelling import ALL_TEXT
from ibtpo.rewards.math.words import read_number_words

_MAX_CHARACTERS = 4000
_MAX_PARTS = 32

# Names that a value is given: x, x_1, f(x), f(3), AB, m+n, \angle ABC, (x, y), \text{Area}.
_NAME = re.compile(
    r"(?!-)(?:[A-Za-z']|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|phi|varphi|omega|pi|Delta|angle|triangle"
    r"|overline|vec|text)(?![A-Za-z])|[{}()+\-,/ ]|_\w|_\{\w{1,5}\}|(?<=[A-Za-z'])\(-?\d{1,3}\)){1,60}"
)
_TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))? ?(?:([ap])\.? ?m\.?)?")
_RATIO_IN_WORDS = re.compile(r"\d+(?: to \d+)+")
_BASE_WORD = re.compile(
    r"(?<=[0-9A-Z]) ?(?:_ ?\{? ?(?:\\text ?\{ ?([A-Za-z]+) ?\}|\((\d+)\)|([A-Za-z]{3,})) ?\}?"
    r"|\(?(?:\\text ?\{ ?)?\(?(?:in )?base[ -]?(?:\} ?)?(\d+|[a-z]+)\)?(?: ?\})?\)?)"
)
_BRACKETED_NUMERAL = re.compile(r"\(([0-9A-Z]*\d[0-9A-Z]*)\)(?= ?_)")
_IN_BASE = re.compile(r"(-?[0-9A-Z]+(?:\.[0-9A-Z]+)?) ?_ ?\{? ?(\d+) ?\}?")
_HAS_BASE = re.compile(r"(?<![A-Za-z\\])[0-9A-Z]*\d[0-9A-Z]* ?_ ?\{? ?\d")
_AND = re.compile(r",? ?(?:\\text ?\{ ?,? ?(?:and|or) ?,? ?\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])),?|;")
_MEMBER = re.compile(r"[A-Za-z] ?(?:\\in(?![A-Za-z]))")
_COLUMN = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_ANGLES = (re.compile(r"\\langle(?![a-zA-Z]) ?"), re.compile(r" ?\\rangle(?![a-zA-Z])"))
_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")": "(", "]": "[", "}": "{"}
_TOKEN = re.compile(r"\\[{}]|\\\\|[()\[\]{},]")
_THOUSANDS = re.compile(r"[1-9]\d{2}(?:,[1-9]\d{2})+")


@dataclass(frozen=True)
class Shape:
    """Several values. kind: "list" (commas alone), "{}", "()", "[)" and so on, or "matrix rows x columns"."""

    kind: str
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        return self.kind not in ("list", "{}")


def strip_name(text: str) -> tuple[str, str]:
    """("x", "5") of "x = 5" and of "x = 2 + 3 = 5"; ("", text) where no name begins the text, or where a number that is
    not the last value is claimed on the way ("x = 4 = 5")."""
    head, equals, rest = text.partition("=")
    head = head.strip()
    if not equals or head.endswith(("<", ">", "!", "\\")) or not head or not _NAME.fullmatch(head):
        return "", text
    *middle, last = re.split(r"(?<![<>!\\])=", rest)
    if "+" in head and last.strip() == "0":  # an equation
        return "", text
    if not last.strip() or any(re.fullmatch(r"\s*-?[\d.,/]+\s*", part) for part in middle):
        return "", text
    return head.replace(" ", ""), last.strip()


def is_name(text: str) -> bool:
    """Whether a text is a name that a value may be given."""
    return _NAME.fullmatch(text) is not None


def strip_member(text: str) -> str:
    r"""What x is in, of "x \in [0, 1]"."""
    match = _MEMBER.match(text)
    return text[match.end() :].strip() if match else text


def read_time(text: str) -> tuple[tuple[int, int, int], str] | None:
    """((hour, minute, second), "a", "p" or "") of a time of the day, "9:05", "9 p.m."; else None."""
    match = _TIME.fullmatch(flat(text).strip())
    if not match or (match.group(2) is None and match.group(4) is None):
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    return ((hour, minute, second), match.group(4) or "") if hour < 24 else None


def same_time(answer: tuple, expected: tuple) -> bool:
    """Whether two times agree; one without a.m. or p.m. agrees where its hour does, also on a clock of 24 hours."""
    (left, half), (right, other) = answer, expected
    if half and other:
        return (left, half) == (right, other)
    if half:
        return False  # the reference would say which half of the day
    if not other:
        return left == right
    in_24 = (right[0] % 12 + (12 if other == "p" else 0), *right[1:])
    return left in (right, in_24)


def read_ratio(text: str) -> list[str] | None:
    """The parts of a ratio or a time, "3:4" or "3 to 4"; None of anything else."""
    if _RATIO_IN_WORDS.fullmatch(plain := flat(text).strip()):
        return plain.split(" to ")
    if ":" not in text or "\\{" in text or re.search("[=<>|]", text):
        return None
    parts = [part.strip() for part in text.split(":")]
    return parts if all(parts) and len(parts) <= _MAX_PARTS else None


def same_ratio(answer: list[str], expected: list[str]) -> bool | None:
    """Whether two ratios are proportional; None where they have parts that are no numbers. One that could be a time is
    compared as it stands."""
    if len(answer) != len(expected):
        return False
    try:
        left, right = [Fraction(part) for part in answer], [Fraction(part) for part in expected]
    except (ValueError, ZeroDivisionError):
        return None
    if left == right:
        return True
    if any((len(part) > 1 and part[0] == "0") or re.fullmatch(r"[0-5]\d", part) for part in answer[1:] + expected[1:]):
        return False
    return all(left[0] * y == right[0] * x for x, y in zip(left, right)) and all(left) and all(right)


def with_base(text: str) -> str:
    """Bases written as a number behind "_": of "52 base 8", "52_{\\text{eight}}"."""

    def number(match: re.Match) -> str:
        name = next(filter(None, match.groups()))
        value = name if name.isdigit() else read_number_words(name)
        return match.group() if value is None else f"_{{{value}}}" if len(str(value)) > 1 else f"_{value}"

    if "_" not in text and "base" not in text:
        return text
    return _BASE_WORD.sub(number, _BRACKETED_NUMERAL.sub(r"\1", text))


def has_base(text: str) -> bool:
    """Whether a numeral in the text names its base."""
    return "_" in text and _HAS_BASE.search(text) is not None


def same_base(answer: str, expected: str) -> bool:
    """Whether two numerals, one of which names its base, are the same: digits and base. The reference's base may be
    left out; nothing else that names a base is compared."""
    left, right = _IN_BASE.fullmatch(answer), _IN_BASE.fullmatch(expected)
    if left and right:
        return left.groups() == right.groups()
    return bool(right and right.group(1) == answer)


def flat(text: str) -> str:
    """Text commands unwrapped, lower case, single blanks."""
    return re.sub(r"\s+", " ", ALL_TEXT.sub(r" \1 ", text)).strip().lower()


def read_shape(text: str) -> Shape | None:
    r"""The values of a list, set, pair, interval, column or matrix; of ± too. None of anything else."""
    if len(text) > _MAX_CHARACTERS:
        return None
    text = _AND.sub(",", text)
    if "\\langle" in text:
        text = _ANGLES[1].sub(")", _ANGLES[0].sub("(", text))
    if "\\begin" in text:
        return _read_matrix(text)
    parts = _split(text)
    if parts is None:
        return None
    if len(parts) > 1:
        named = [strip_name(part) for part in parts]
        parts = [part for both in parts for part in _both_signs(both)] if not all(n for n, _ in named) else parts
        return Shape("list", tuple(parts)) if all(parts) and len(parts) <= _MAX_PARTS else None
    signs = _both_signs(text)
    if len(signs) > 1:
        return Shape("list", tuple(signs))
    for opening, closing in (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        kind = opening[-1]
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            inner = _split(text[len(opening) : -len(closing)])
            if inner is None or not all(inner) or len(inner) > _MAX_PARTS:
                continue
            if len(inner) == 1 and kind != "{":
                continue
            if kind == "{":
                inner = [part for both in inner for part in _both_signs(both)]
            return Shape(kind + (closing[-1]), tuple(inner))
    return None


def _split(text: str) -> list[str] | None:
    """The parts between the commas outside of all brackets; None where brackets do not match (but for those of
    half-open intervals). A comma between three digits and the next three belongs to a number."""
    parts, depth, begin = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "\\\\":
            continue
        if token[-1] in "([{":
            depth += 1
        elif token[-1] in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0:
            thousands = re.search(r"(?<![\d,])\d{1,3}(?:,\d{3})*$", text[begin : match.start()][-20:])
            if thousands and re.match(r"\d{3}(?!\d)", text[match.end() : match.end() + 4]):
                continue
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    parts.append(text[begin:].strip())
    return parts if depth == 0 else None


def three_digit_list(text: str) -> Shape | None:
    """The list that "100,200" is if it is no number of six digits."""
    return Shape("list", tuple(text.split(","))) if _THOUSANDS.fullmatch(text) else None


def _both_signs(text: str) -> list[str]:
    r"""The two values of a text with \pm, else the text alone."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    plus = re.sub(r"\\mp(?![a-zA-Z]) ?", "-", re.sub(r"\\pm(?![a-zA-Z]) ?", "+", text))
    minus = re.sub(r"\\mp(?![a-zA-Z]) ?", "+", re.sub(r"\\pm(?![a-zA-Z]) ?", "-", text))
    return [plus.strip().removeprefix("+"), minus.strip().removeprefix("+")]


def _read_matrix(text: str) -> Shape | None:
    match = _COLUMN.fullmatch(text)
    if match is None or "\\begin" in match.group(2) or "v" in match.group(1).lower():
        return None
    rows = [row.strip() for row in match.group(2).split("\\\\")]
    rows = rows[:-1] if not rows[-1] else rows
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) > 1 or len(cells) * len(cells[0]) > _MAX_PARTS:
        return None
    return Shape(f"matrix {len(cells)} x {len(cells[0])}", tuple(cell for row in cells for cell in row))


def is_vector(shape: Shape) -> bool:
    """Whether a matrix has one row or one column."""
    return shape.kind.startswith("matrix") and (" 1 x" in shape.kind or shape.kind.endswith("x 1"))
