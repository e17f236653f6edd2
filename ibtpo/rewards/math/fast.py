"""Compares an answer with its reference by spelling, exact value and shape, without sympy, in microseconds."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from ibtpo.errors import UserError
from ibtpo.rewards.math import inequalities, shapes
from ibtpo.rewards.math.numbers import Number, equal_numbers, is_rounded, read_number
from ibtpo.rewards.math.spelling import (
    ALL_TEXT,
    DEGREES_BEHIND,
    normalise,
    spelling_of,
    split_approximation,
    split_label,
)
from ibtpo.rewards.math.units import convert, is_angle, plain_unit, read_unit
from ibtpo.rewards.math.words import FUNCTIONS, GREEK, HEDGES, SCALE_WORDS, opposite, phrase_of

Formula = Callable[[str, str], bool | None]  # whether two formulas are equal: None, not looked at

_ARITHMETIC = re.compile(r"(?:[\d+\-*/(). ]|\\(?:times|cdot)(?![a-zA-Z]))+")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SHORT_WORDS = frozenset("or and not no of by to in is at if so on up do am pm as be".split())
_VARIABLES = re.compile("[abcxyz]{2,3}")
_UNIT_BEHIND = re.compile(r"(?<=[^\s]) ?(\\text ?\{[^{}]*\}(?: ?\^ ?\{?-?\d\}?)?)$")
_PLAIN_UNIT_BEHIND = re.compile(r"(?<=[\d})]) ((?:[A-Za-z]+(?:\^\d)?(?: ?/ ?| ))*[A-Za-z]+(?:\^\d)?)$")
_CHANGING = (HEDGES - {"and"}) | SCALE_WORDS.keys()
_MANY = re.compile(r"\\(?:begin|cup|cap|mid|le|ge|leq|geq|ldots|dots|pmod|setminus|mathbb)(?![a-zA-Z])|[<>=|]")


@dataclass(frozen=True)
class _Side:
    """A normalised answer or reference, with what is read from it."""

    text: str
    spelling: str
    degrees: bool = False  # whether a degree sign, which normalising removes, ends it

    @functools.cached_property
    def number(self) -> Number | None:
        return read_number(self.text)


def _side(text: str, degrees: bool = False) -> _Side:
    return _Side(text, spelling_of(text), degrees)


@functools.lru_cache(8192)  # one reference serves all responses to its question
def _expected(reference: str) -> _Side:
    return _side(shapes.with_base(normalise(reference)), DEGREES_BEHIND.search(reference) is not None)


def fast_grade(answer_text: str | None, reference: str, *, unevaluated: bool = False) -> bool | None:
    r"""Compares an extracted answer with the reference without sympy.

    In this order; what an answer is follows from its reference:

    1. equal spelling (after removing markup that carries no value) is right; of "(B) 27" the value counts, or the
       letter if the reference is one;
    2. times, ratios and numerals in a base are compared as such, never as quotients or plain numbers;
    3. a reference that is a number is answered by a number: exact values decide, see `numbers.equal_numbers`. An
       expression that would have to be evaluated is wrong, or left open with `unevaluated`;
    4. lists, sets, pairs, intervals and matrices are compared part by part; an inequality in one variable is an
       interval;
    5. where one side has words beside or instead of a value, both must have the same;
    6. other formulas are left open.

    A missing answer is wrong.

    Args:
      answer_text: the result of `extract_answer`.
      reference: the reference answer, in the same notation.
      unevaluated: `reward.unevaluated`.

    Returns:
      True, False, or None where only symbolic comparison can tell.

    Raises:
      UserError: the reference is empty.
    """
    return decide(answer_text, reference, lambda *_: None, unevaluated)


def decide(answer_text: str | None, reference: str, formula: Formula, unevaluated: bool) -> bool | None:
    """`fast_grade`, with `formula` for the pairs that it leaves open."""
    expected = _expected(str(reference))
    if not expected.text:
        raise UserError(f"the reference answer is empty ({reference!r}): check data.answer_field")
    if answer_text is None:
        return False
    answer = normalise(answer_text)
    if not answer:
        return False
    if "\\approx" in answer and "\\approx" not in expected.text:
        answer = _without_approximation(answer, expected)
    label, value = split_label(answer, expected.text)
    if label and re.fullmatch("[A-E]", expected.spelling):
        return label == expected.spelling and _CHANGING.isdisjoint(re.findall("[a-z]+", value.lower()))
    degrees = ("circ" in answer_text or "°" in answer_text) and DEGREES_BEHIND.search(answer_text) is not None
    return _compare(_side(shapes.with_base(value if label else answer), degrees), expected, formula, unevaluated)


def _without_approximation(answer: str, expected: _Side) -> str:
    r"""The value of "x \approx 5" or "\frac{22}{7} \approx 3.14", the rounded one where that is the reference; the
    answer as it stands where its values differ, or only symbolic comparison can tell."""
    parts = split_approximation(answer)
    if parts is None:
        return answer
    value = shapes.strip_name(parts[0])[1] if "=" in parts[0] else parts[0]
    if shapes.is_name(value) and "\\pi" not in value:
        return answer[answer.index("\\approx") + len("\\approx") :].strip()
    exact, rounded = read_number(value), read_number(parts[1])
    if exact is None or rounded is None or not is_rounded(exact.value, rounded):
        return answer
    return parts[1] if expected.number and equal_numbers(rounded, expected.number) else value


def _compare(answer: _Side, expected: _Side, formula: Formula, unevaluated: bool, depth: int = 0) -> bool | None:
    """The grade of two sides; `depth` of nested shapes."""
    if answer.degrees != expected.degrees:
        other = (expected if answer.degrees else answer).number
        if other and other.words and not is_angle(other.unit):  # of 36° and $36 the signs go unread
            return False
    if answer.spelling == expected.spelling:
        return True
    if answer.number and expected.number:
        same = equal_numbers(answer.number, expected.number)
        if not same and "," in answer.text and (listed := _as_lists(answer.text, expected.text)):
            return _compare_shapes(*listed, formula, unevaluated, depth)
        return same
    if not expected.number and (ranges := _as_intervals(answer.text, expected.text)):
        return _compare_intervals(*ranges, formula, unevaluated, depth)
    left, right = shapes.strip_member(answer.text), shapes.strip_member(expected.text)
    (left_name, left), (right_name, right) = _value_of(left), _value_of(right)
    special = _compare_special(left, right)
    if special is not None:
        return special
    if left_name and right_name and left_name != right_name:
        return formula(answer.text, expected.text) if len(left_name + right_name) > 2 else False
    right_number = expected.number or (read_number(right) if right_name else None)
    if right_number:
        left_number = read_number(left) or read_number(_unwrapped(left))
        if left_number:
            return equal_numbers(left_number, right_number)
        return _against_number(left, right, right_number, formula, unevaluated, depth)
    if left_name or right_name:
        if spelling_of(left) == spelling_of(right):
            return True
        if len(spelling_of(left)) == len(spelling_of(right)) == 1:  # "z = c" for "C"
            return False
    shaped = _compare_structure(left, right, formula, unevaluated, depth)
    if shaped is not NotImplemented:
        return shaped
    return _compare_formulas(answer.text, expected.text, formula)


def _value_of(text: str) -> tuple[str, str]:
    return shapes.strip_name(text) if "=" in text and shapes.read_shape(text) is None else ("", text)


def _unwrapped(text: str) -> str:
    """The only value of a set or in brackets."""
    match = re.fullmatch(r"\\\{ ?([^{},]{1,100}) ?\\\}|\(([^(),]{1,100})\)", text)
    return (match.group(1) or match.group(2)).strip() if match else text


def _as_lists(answer: str, expected: str) -> tuple[shapes.Shape, shapes.Shape] | None:
    """Two lists, where one side is a list for certain and "100,200" on the other may be one."""
    left, right = shapes.read_shape(answer), shapes.read_shape(expected)
    left = left or (shapes.three_digit_list(answer) if right else None)
    right = right or (shapes.three_digit_list(expected) if left else None)
    return (left, right) if left and right else None


def _as_intervals(answer: str, expected: str) -> tuple[list, list] | None:
    """The intervals that both sides are, one being an inequality or all numbers and the other written otherwise."""
    relations = [inequalities.has_relation(side) for side in (answer, expected)]
    if not any(relations) and "real" not in answer + expected and "mathbb" not in answer + expected:
        return None
    if all(relations) and not re.search(r"\b(?:than|at)\b", answer + expected):
        return None
    left, right = inequalities.read_intervals(answer), inequalities.read_intervals(expected)
    if left is None or right is None or (left[0] and right[0] and left[0] != right[0]):
        return None
    return left[1], right[1]


def _compare_intervals(mine: list, other: list, formula: Formula, unevaluated: bool, depth: int) -> bool | None:
    """Interval by interval, in any order: brackets and both ends."""

    def grade(a: inequalities.Interval, b: inequalities.Interval) -> bool | None:
        ends = [(_side(a.low), _side(b.low)), (_side(a.high), _side(b.high))]
        grades = [_compare(*end, formula, unevaluated, depth + 1) for end in ends]
        return False if a.kind != b.kind or False in grades else None if None in grades else True

    return len(mine) == len(other) and _in_any_order(mine, other, grade)


def _in_any_order(mine: list, other: list, grade: Callable) -> bool | None:
    """Whether each of the others has one of mine for itself."""
    open_pair, free = False, list(mine)
    for b in other:
        grades = [grade(a, b) for a in free]
        if True in grades:
            free.pop(grades.index(True))
        elif None in grades:
            open_pair = True
        else:
            return False
    return None if open_pair else True


def _compare_special(answer: str, expected: str) -> bool | None:
    """The grade where one side is a time, a ratio or in a base; None where neither is."""
    left, right = shapes.read_time(answer), shapes.read_time(expected)
    if right and right[1] and answer.isdigit():  # "9" for "9 a.m."
        left = shapes.read_time(f"{answer}:00")
    if left and right:
        return shapes.same_time(left, right)
    if left or right:
        return False if not (shapes.read_ratio(answer) and shapes.read_ratio(expected)) else _ratios(answer, expected)
    if shapes.read_ratio(answer) or shapes.read_ratio(expected):
        return _ratios(answer, expected)
    if shapes.has_base(answer) or shapes.has_base(expected):
        return shapes.same_base(answer, expected)
    return None


def _ratios(answer: str, expected: str) -> bool:
    left, right = shapes.read_ratio(answer), shapes.read_ratio(expected)
    return bool(left and right and shapes.same_ratio(left, right))


def _against_number(left: str, right: str, number: Number, formula: Formula, unevaluated: bool, depth: int):
    """The grade of an answer that is no number itself, for a reference that is one."""
    if listed := _as_lists(left, right):
        return _compare_shapes(*listed, formula, unevaluated, depth)
    several = shapes.read_shape(left)
    if several and several.kind in ("list", "{}"):  # "1.5 or 3/2"
        values = [read_number(shapes.strip_name(part)[1]) for part in several.parts]
        return all(value is not None and equal_numbers(value, number) for value in values)
    head, equals, last = left.rpartition("=")
    stated = read_number(last.strip()) if equals and _ARITHMETIC.fullmatch(head) else None
    if stated:  # "9*2 = 18"
        return formula(last, head) if equal_numbers(stated, number) else False
    if equals and (first := read_number(head.strip())) and (same := read_number(last.strip())):  # "5/8 = 0.625"
        return equal_numbers(first, same) and equal_numbers(same, number)
    if not unevaluated or several or _words_of(left) or equals:
        return False
    return formula(left, right)


def _compare_structure(left: str, right: str, formula: Formula, unevaluated: bool, depth: int):
    """The grade of two shapes; NotImplemented where the reference is none, or the answer may be one in other form."""
    if depth > 3:
        return False
    left, right = (whole.group(1).strip() if (whole := ALL_TEXT.fullmatch(side)) else side for side in (left, right))
    mine, other = shapes.read_shape(left), shapes.read_shape(right)
    mine = mine or (shapes.three_digit_list(left) if other else None)
    other = other or (shapes.three_digit_list(right) if mine else None)
    if mine and other:
        return _compare_shapes(mine, other, formula, unevaluated, depth)
    if other and other.kind == "{}" and len(other.parts) == 1:
        return _compare(_side(left), _side(other.parts[0]), formula, unevaluated, depth + 1)
    if mine and mine.kind == "{}" and len(mine.parts) == 1:
        return _compare(_side(mine.parts[0]), _side(right), formula, unevaluated, depth + 1)
    if mine and mine.kind == "list" and not _MANY.search(right):  # "1.5 or 3/2"
        grades = [_compare(_side(part), _side(right), formula, unevaluated, depth + 1) for part in mine.parts]
        return False if False in grades else None if None in grades else True
    if (other and not _MANY.search(left)) or (mine and not _MANY.search(right)):
        return False
    return NotImplemented


def _compare_shapes(mine: shapes.Shape, other: shapes.Shape, formula: Formula, unevaluated: bool, depth: int):
    """Part by part: in order unless both are lists or sets."""
    kinds = {mine.kind, other.kind}
    if mine.kind != other.kind:
        vectors = [shape for shape in (mine, other) if shapes.is_vector(shape)]
        if not (kinds == {"list", "{}"} or kinds == {"list", "()"} or (len(vectors) == 1 and "()" in kinds)):
            return False
    if len(mine.parts) != len(other.parts):
        return False
    left, right = [_part(part) for part in mine.parts], [_part(part) for part in other.parts]
    named = [all(name for name, _ in side) for side in (left, right)]
    in_order = mine.ordered or other.ordered or (any(named) and not all(named) and _names_differ(left + right))
    if any(named) and not all(named):  # coordinates have an order of their own: "y = 2, x = 1" for "(1, 2)"
        left, right = (sorted(s, key=lambda p: p[0]) if {p[0] for p in s} <= set("xyz") else s for s in (left, right))
    if not all(named):  # "x = 1, y = 2" for "1, 2"
        left, right = ([("", value) for _, value in side] for side in (left, right))

    def grade(a: tuple[str, _Side], b: tuple[str, _Side]) -> bool | None:
        return a[0] == b[0] and _compare(a[1], b[1], formula, unevaluated, depth + 1)

    if in_order:
        grades = [grade(a, b) for a, b in zip(left, right)]
        return False if False in grades else None if None in grades else True
    return _in_any_order(left, right, grade)


def _part(text: str) -> tuple[str, _Side]:
    """(name, value) of "x = 1"."""
    name, value = shapes.strip_name(text)
    return name.replace("{", "").replace("}", ""), _side(value)


def _names_differ(parts: list[tuple[str, _Side]]) -> bool:
    """Whether the side with names has different ones, so that its order says which value is whose: x_1 and x_2, the
    roots of one equation, do not."""
    return len({name.split("_")[0] for name, _ in parts if name}) > 1


def _compare_formulas(answer: str, expected: str, formula: Formula) -> bool | None:
    """The grade of two formulas, with their units, or of words."""
    (left, left_unit), (right, right_unit) = _split_unit(answer), _split_unit(expected)
    if left_unit and right_unit:
        rate = convert(left_unit[0], right_unit[0])
        if rate is None or rate != 1 or opposite(set(left_unit[1]), set(right_unit[1])):
            return False
    if spelling_of(left) == spelling_of(right):
        return True
    mine, other = _words_of(left), _words_of(right)
    if len(spelling_of(left)) == len(spelling_of(right)) == 1:  # two letters
        return False
    if mine or other:
        if phrase_of(shapes.flat(left)) == phrase_of(shapes.flat(right)):
            return True
        # Formulas among the same words.
        if mine != other or not re.search(r"[\d\\=^]", ALL_TEXT.sub("", left)):
            return False
        return formula(left, right)
    return formula(left, right)


def _split_unit(text: str) -> tuple[str, tuple | None]:
    r"""(value, unit as of `read_unit`) of a formula with a unit behind it; (text, None) of any other."""
    text = text.removeprefix("$") if text.startswith("$") else text
    behind = _UNIT_BEHIND.search(text)
    if behind is None:
        behind = _PLAIN_UNIT_BEHIND.search(text) if len(text) <= 400 else None
        if behind is None or not plain_unit(behind.group(1)):
            return text, None
    unit = read_unit(ALL_TEXT.sub(r" \1 ", behind.group(1)).strip())
    return (text[: behind.start()].strip(), unit) if unit else (text, None)


def _words_of(text: str) -> list[str]:
    """The words of an answer: letters in text commands, and letters in a row that are no function and no product."""
    words = [word for content in ALL_TEXT.findall(text) for word in re.findall(r"[a-z]+", content.lower())]
    rest = ALL_TEXT.sub(" ", text)
    rest = re.sub(r"\\(?:begin|end) ?\{[a-zA-Z]*\}|\\math[a-z]+ ?\{[^{}]*\}", " ", rest)
    for match in _WORD.finditer(rest):
        word = match.group().lower()
        if word in FUNCTIONS or word in GREEK or (len(word) == 2 and word not in _SHORT_WORDS):
            continue
        alone = match.start() == 0 and match.end() == len(rest)
        known = len(word) > 3 or word in HEDGES or word in _SHORT_WORDS
        if (alone or known) and not _VARIABLES.fullmatch(match.group()):
            words.append(word)
    if not words and re.fullmatch(r"[A-Za-z]{2}", rest) and not _VARIABLES.fullmatch(rest):
        words.append(rest)
    return [word for word in words if len(word) > 1 or len(words) > 1]


def is_number(text: str) -> bool:
    """Whether an answer is a number as `fast_grade` reads one, and so asks for one."""
    return read_number(normalise(text)) is not None


def canonical(answer: str) -> str:
    """One spelling of an answer that many spellings share, to count votes by: a number's exact value ("1/2" for "0.50"
    and a LaTeX fraction), of anything else the text without markup and blanks. Equal answers may still differ."""
    text = normalise(answer)
    number = read_number(text)
    return str(number.value) if number else spelling_of(text)
