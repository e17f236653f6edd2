r"""Inequalities in one variable as the intervals that they are: "x > 3", "0 \le t < 1", "|x| < 2", "greater than 5"."""

import re
from dataclasses import dataclass

from ibtpo.rewards.math.numbers import read_number
from ibtpo.rewards.math.shapes import flat, read_shape, strip_member

_MAX_CHARACTERS = 300
_RELATION = re.compile(
    r"[<>]|\\(?:leq?s?(?:lant)?|geq?s?(?:lant)?|neq?|lt|gt)(?![a-zA-Z])|\b(?:than|at (?:least|most))\b"
)
_SIGNS = [
    (re.compile(r"\\leq?s?(?:lant)?(?![a-zA-Z])|<=|=<"), "≤"),
    (re.compile(r"\\geq?s?(?:lant)?(?![a-zA-Z])|>=|=>"), "≥"),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\neq?(?![a-zA-Z])|!="), "≠"),
]
_THAN = r"(?:is |are |must be )?(?:strictly )?(?:%s) than"
_WORDS = [
    (re.compile(rf"{_THAN % 'greater|more|larger|bigger'} or equal to|(?:is )?at least"), "≥"),
    (re.compile(rf"{_THAN % 'less|smaller|fewer'} or equal to|(?:is )?at most"), "≤"),
    (re.compile(_THAN % "greater|more|larger|bigger"), ">"),
    (re.compile(_THAN % "less|smaller|fewer"), "<"),
]
_ALL = re.compile(r"\\mathbb ?\{? ?r ?\}?|all real (?:numbers|values)|all reals|all (?:real )?x")
_OF_NUMBERS = re.compile(
    r"^(?:all )?(?:real )?(?:numbers|values)(?: of)? ?(?:that are )?(?=[a-z] |[<>≤≥≠])|^all (?=[a-z] )"
)
_BUILDER = re.compile(r"\\\{ ?[a-z](?: ?\\in ?\\mathbb ?\{? ?r ?\}?)? ?(?::|\||\\mid) ?(.+?) ?\\\}")
_OR = re.compile(r"(?<![a-z\\])or(?![a-z])|\\l?or(?![a-z])|\\vee(?![a-z])")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_SPLIT = re.compile(r"([<>≤≥≠])")
_VARIABLE = re.compile(r"[a-z]|\\(?:theta|alpha|beta|lambda)")
_INFINITY, _MINUS_INFINITY = r"\infty", r"-\infty"
_BRACKETS = {"<": "()", ">": "()", "≤": "[]", "≥": "[]"}


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, as written; kind: its brackets, "[)"."""

    kind: str
    low: str
    high: str


def has_relation(text: str) -> bool:
    """Whether a text is an inequality, in signs or in words."""
    return _RELATION.search(text) is not None


def read_intervals(text: str) -> tuple[str, list[Interval]] | None:
    """(its variable or "", the intervals that are joined) of an inequality, an interval, or a union; else None."""
    if len(text) > _MAX_CHARACTERS:
        return None
    if not has_relation(text):
        return _of_union(text)
    if "," in text:
        return None
    text = flat(text)
    if builder := _BUILDER.fullmatch(text):
        text = builder.group(1)
    for pattern, sign in _SIGNS + _WORDS:
        text = pattern.sub(sign, text)
    text = _OF_NUMBERS.sub("", text)
    names, found = set(), []
    for piece in _OR.split(text):
        read = _of_inequality(piece.strip())
        if read is None:
            return None
        names.add(read[0])
        found += read[1]
    return (names.pop(), found) if len(names) == 1 else None


def _of_union(text: str) -> tuple[str, list[Interval]] | None:
    if _ALL.fullmatch(flat(text)):
        return "", [Interval("()", _MINUS_INFINITY, _INFINITY)]
    found = []
    for piece in _CUP.split(strip_member(text)):
        shape = read_shape(piece.strip())
        if shape is None or len(shape.parts) != 2 or shape.kind not in ("()", "[)", "(]", "[]"):
            return None
        found.append(Interval(shape.kind, shape.parts[0], shape.parts[1].removeprefix("+").strip()))
    return "", found


def _of_inequality(text: str) -> tuple[str, list[Interval]] | None:
    """(variable, intervals) of one inequality in signs."""
    *sides, last = _SPLIT.split(text)
    terms, signs = [side.strip() for side in [*sides[::2], last]], sides[1::2]
    if len(signs) == 2:
        if not _VARIABLE.fullmatch(terms[1]) or not (set(signs) <= {"<", "≤"} or set(signs) <= {">", "≥"}):
            return None
        low, high = (0, 2) if signs[0] in "<≤" else (2, 0)
        kind = _BRACKETS[signs[low // 2]][0] + _BRACKETS[signs[high // 2]][1]
        return (terms[1], [Interval(kind, terms[low], terms[high])]) if terms[0] and terms[2] else None
    if len(signs) != 1:
        return None
    (left, right), sign = terms, signs[0]
    if _VARIABLE.fullmatch(right.strip("| ")) and not _VARIABLE.fullmatch(left.strip("| ")):
        left, right, sign = right, left, {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}.get(sign, sign)
    name = left.strip("| ")
    if not right or (name and not _VARIABLE.fullmatch(name)):
        return None
    open_, close = tuple(_BRACKETS.get(sign, "()"))
    below, above = Interval(f"({close}", _MINUS_INFINITY, right), Interval(f"{open_})", right, _INFINITY)
    if left.startswith("|"):
        number = read_number(right)
        if not left.endswith("|") or number is None or number.value <= 0 or sign == "≠":
            return None
        if sign in "<≤":
            return name, [Interval(open_ + close, f"-{right}", right)]
        return name, [Interval(below.kind, _MINUS_INFINITY, f"-{right}"), above]
    return name, [below, above] if sign == "≠" else [below] if sign in "<≤" else [above]
