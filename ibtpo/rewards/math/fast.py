"""Compares an answer with its reference by spelling and exact value, without sympy, in microseconds."""

import functools
import re
from fractions import Fraction

from ibtpo.errors import UserError
from ibtpo.rewards.math.numbers import Number, read_number
from ibtpo.rewards.math.spelling import normalise, spelling_of, split_label
from ibtpo.rewards.math.units import unit_of

_IN_BASE = re.compile(r"([0-9A-Z]+) ?_ ?\{? ?(\d+) ?\}?")


@functools.lru_cache(8192)  # one reference serves all responses to its question
def _expected(reference: str) -> tuple[str, str, Number | None]:
    """(normalised, its spelling, its number) of a reference."""
    expected = normalise(reference)
    return expected, spelling_of(expected), read_number(expected, plain_words=False)


def fast_grade(answer_text: str | None, reference: str) -> bool | None:
    r"""Compares an extracted answer with the reference without sympy.

    Equal spelling (after removing markup that carries no value) is right. Where both sides are
    numbers (integers, decimals, a/b, `\frac`, mixed numbers; thousands commas, currency and a
    trailing unit ignored) their exact values decide, except that a decimal within 1e-5 of an
    unequal value is left open, because Math-Verify rounds decimals. 50 % is 50 or 1/2, unless both
    sides are percentages. Two known units must be the same. Numerals that both name a base must
    agree in digits and base. Of "(B) 27" the value counts, or the letter if the reference is one; the
    label stays if the reference has one too. A missing answer is wrong.

    Args:
      answer_text: the result of `extract_answer`.
      reference: the reference answer, in the same notation.

    Returns:
      True, False, or None where only symbolic comparison can tell.

    Raises:
      UserError: the reference is empty.
    """
    expected, spelling, right = _expected(str(reference))
    if not expected:
        raise UserError(f"the reference answer is empty ({reference!r}): check data.answer_field")
    if answer_text is None:
        return False
    answer = normalise(answer_text)
    if not answer:
        return False
    if spelling_of(answer) == spelling:
        return True
    label, answer = split_label(answer, expected)
    if label and re.fullmatch("[A-E]", spelling):
        return label == spelling
    if label and spelling_of(answer) == spelling:
        return True
    numeral, expected_numeral = _IN_BASE.fullmatch(answer), _IN_BASE.fullmatch(expected)
    if numeral and expected_numeral:  # Math-Verify ignores the base
        return numeral.groups() == expected_numeral.groups()
    if (unit := unit_of(expected)) and (unit_of(answer) or unit) != unit:
        return False
    left = read_number(answer, plain_words=True)
    if left is None or right is None:
        return None
    # A percentage may be written as its number or as a fraction of one.
    scales = (1,) if left.percent == right.percent else (1, 100)
    values = [(left.value * (k if right.percent else 1), right.value * (k if left.percent else 1)) for k in scales]
    if any(x == y for x, y in values):
        return True
    if (left.decimals or right.decimals) and any(abs(x - y) < Fraction(1, 100_000) for x, y in values):
        return None
    return False


def canonical(answer: str) -> str:
    """One spelling of an answer that many spellings share, to count votes by: a number's exact value ("1/2" for "0.50"
    and a LaTeX fraction), of anything else the text without markup and blanks. Equal answers may still differ."""
    text = normalise(answer)
    number = read_number(text, plain_words=True)
    return str(number.value) if number else spelling_of(text)
