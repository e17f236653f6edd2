"""Numbers as answers write them, read exactly: integers, decimals, fractions, percentages, with a unit or without."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ibtpo.rewards.math.spelling import ALL_TEXT
from ibtpo.rewards.math.units import MAX_NUMBER_CHARACTERS, without_unit

_PERCENT = re.compile(r"\s?(?:\\?%|percent|\\text\s?\{\s?percent\s?\})$")
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = re.compile(rf"([+-]?)(?:({_UNSIGNED})(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?\d{{1,3}}))?")
_SLASH = re.compile(rf"([+-]?)(?:(\d+) )?({_UNSIGNED})/({_UNSIGNED})")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar) ?(?:\{(\d+)\}|(\d))")
_LATEX_FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:\{(-?\d+)\}|(\d))(?:\{(\d+)\}|(\d))")


@dataclass(frozen=True)
class Number:
    """A number as written. value: exact, of a percentage the number before the sign; decimals: written with some."""

    value: Fraction
    decimals: bool = False
    percent: bool = False


def read_number(text: str, plain_words: bool) -> Number | None:
    r"""The number that a text is (an integer, decimal, repeating decimal, a/b, \frac or mixed number, with a unit or a
    percent sign or without, in a text command or not), else None."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    command = ALL_TEXT.fullmatch(text)
    text = command.group(1).strip() if command else text
    percent = _PERCENT.search(text)
    text = text[: percent.start()] if percent else without_unit(text, plain_words)
    text = text.replace(" ", "") if "\\frac" in text else text
    match = _DECIMAL.fullmatch(text)
    if match:
        sign, whole, decimals, only_decimals, exponent = match.groups()
        decimals = decimals or only_decimals or ""
        value = Fraction(f"{(whole or '0').replace(',', '')}.{decimals or '0'}e{exponent or 0}")
        return Number(-value if sign == "-" else value, bool(decimals.strip("0")), bool(percent))
    match = _REPEATING.fullmatch(text)
    if match:
        sign, whole, decimals, repeated, repeated_digit = match.groups()
        repeated = repeated or repeated_digit
        # 1.2333... is (123 - 12) / 90.
        difference = int(whole + decimals + repeated) - int(whole + decimals or "0")
        value = Fraction(difference, 10 ** len(decimals) * (10 ** len(repeated) - 1))
        return Number(-value if sign == "-" else value, percent=bool(percent))
    match = _SLASH.fullmatch(text)
    if match:
        sign, whole, top, bottom = match.groups()
    else:
        match = _LATEX_FRACTION.fullmatch(text)
        if match is None:
            return None
        sign, whole, top, top_digit, bottom, bottom_digit = match.groups()
        top, bottom = top or top_digit, bottom or bottom_digit
    numerator, denominator = int(top.replace(",", "")), int(bottom.replace(",", ""))
    if denominator == 0:
        return None
    if whole:
        if not 0 <= numerator < denominator:  # a product rather than a mixed number, perhaps
            return None
        numerator += int(whole) * denominator
    value = Fraction(numerator, denominator)
    return Number(-value if sign == "-" else value, percent=bool(percent))
