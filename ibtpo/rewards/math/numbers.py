"""Numbers as answers write them, read exactly: integers, decimals, fractions, percentages, with a unit or without."""

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from ibtpo.rewards.math.spelling import ALL_TEXT
from ibtpo.rewards.math.units import (
    MAX_NUMBER_CHARACTERS,
    UNIT_NAMES,
    Unit,
    convert,
    currency,
    plain_unit,
    read_unit,
    sum_of_units,
)
from ibtpo.rewards.math.words import FRACTION_WORDS, SCALE_WORDS, opposite, read_number_words

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?! ?\d)|\d+)"
_IN_FRACTION = r"(?:\{ ?(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?) ?\}|(\d))"
# One of these at a time, behind the sign: which group matched says which form it is.
_LITERAL = re.compile(
    rf"(?:(?P<european>\d{{1,3}}(?:\.\d{{3}})+),(?P<cents>\d+)(?!\d)"
    r"|(?P<ahead>\d*)\.(?P<between>\d*)\\(?:overline|bar|dot) ?(?:\{(?P<repeated>\d+)\}|(?P<digit>\d))"
    rf"|(?P<whole>\d*) ?\\frac ?(?P<parts>{_IN_FRACTION} ?{_IN_FRACTION})"
    rf"|(?:(?P<mixed>\d+)[ -])?(?P<top>{_UNSIGNED})/(?P<bottom>{_UNSIGNED})(?![.\d])"
    rf"|(?P<units>{_UNSIGNED})?(?:(?<=\d)\.(?P<decimals>\d*)|\.(?P<only>\d+))?"
    r"(?:[eE](?P<e>[+-]?\d{1,3})(?!\d)"
    r"|\s?(?:\\times|\\cdot|\*|x)\s?10\s?(?:\^|\*\*)\s?(?:\{ ?(?P<power>[+-]?\d{1,4}) ?\}|(?P<short>[+-]?\d{1,4})))?)"
)
_INTEGER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)")
_SIGN = re.compile(r"([+-]?) ?([$€£¥₹]?) ?([+-]?) ?")
_PERCENT = re.compile(r"\s?(?:\\?%|(?:percent|pct)(?![a-z])|\\text\s?\{\s?percent\s?\})")
_ORDINAL = re.compile(r"\s?(?:\^ ?\{?)? ?(?:\\text ?\{ ?)?(st|nd|rd|th)(?: ?\})*(?![a-z])")
_UNIT_FRACTION = re.compile(r"\\frac ?\{ ?\\text ?\{([^{}]*)\} ?\} ?\{ ?\\text ?\{([^{}]*)\} ?\}")
_CODES = re.compile(r"^(?:\\text ?\{ ?)?(usd|eur|gbp|jpy|cny|inr|rs\.?)(?: ?\})? ?(?=[-\d.])", re.IGNORECASE)
_CURRENCY_OF = {"usd": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹", "rs": "₹"}
_HALF_OF_DAY = re.compile(r"[ap]\. ?m\b|[ap]m\b", re.IGNORECASE)
_SAME_IN_WORDS = re.compile(r" ?\(([A-Za-z -]+)\)$")
_NEGATIVE_TOP = re.compile(r"\(-(\d+)\)(?=/\d)")
_ABOUT = re.compile(r"(?:about|approximately|roughly|around) (?=[-$\d.\\])", re.IGNORECASE)
_SUM = re.compile(r"\d+(?:\.\d+)? ?[A-Za-z]+\.?(?:,? (?:and )?\d+(?:\.\d+)? ?[A-Za-z]+\.?){1,3}")
_PART = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")
_FEET = re.compile(r"(\d+)' ?(\d+(?:\.\d+)?) ?(?:\"|'')")
_ONE = Fraction(1)
_DIGITS = 30  # of a rounded value, more than any answer has


@dataclass(frozen=True)
class Number:
    """A number as written. value: exact, of a percentage the number before the sign; places: of its decimals, 0 for a
    whole number or a fraction; unit: if it is known; words: all behind the number; summed: of several
    units, "5 feet 6 inches", in the first one."""

    value: Fraction
    places: int = 0
    percent: bool = False
    unit: Unit | None = None
    words: frozenset[str] = frozenset()
    summed: bool = False


def read_number(text: str) -> Number | None:
    r"""The number that a text is, with a currency, a percent sign, a unit or without, in a text command or not; else
    None. Of the forms: 12, 1,234.5, 1 234, 1.234,56, 2/3, \frac23, 2 1/2, 0.\overline{3}, 1.5e3, 1.5\times 10^3, 5th,
    5 million, 2 thirds, twenty-five."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    if _INTEGER.fullmatch(text):
        return Number(Fraction(int(text.replace(",", ""))))
    if "\\" in text and (command := ALL_TEXT.fullmatch(text)):
        text = command.group(1).strip()
    words = frozenset[str]()
    if text[:2] == "(-" and (negative := _NEGATIVE_TOP.match(text)):
        text = text[negative.end() :].join((f"-{negative.group(1)}", ""))
    if text[:1] in "aArR" and (about := _ABOUT.match(text)):
        text = text[about.end() :]
    if code := _CODES.match(text):
        text = _CURRENCY_OF.get(code.group(1).lower().strip("."), "¥") + text[code.end() :]
    start = _SIGN.match(text)
    if start is None:
        return None
    literal = _LITERAL.match(text, start.end())
    found = _value(literal) if literal and literal.end() > start.end() else None
    if found is None or literal is None:
        value = read_number_words(text) if text[:1].isalpha() else None
        return None if value is None else Number(value)
    value, places = found
    if "-" in (start.group(1) + start.group(3)):
        if start.group(1) and start.group(3):
            return None
        value = -value
    rest = text[literal.end() :]
    if not rest and not start.group(2):
        return Number(value, places)
    unit: Unit | None = currency(start.group(2)) if start.group(2) else None
    needed = value if "(" in rest or _ORDINAL.match(rest) else None
    read = _read_rest(rest, needed, whole=not places and value.denominator == 1)
    if read is None:
        return _read_sum(text)
    factor, percent, counted, words = read
    if unit is not None and counted is not None and counted.powers != unit.powers:
        # "$5 per hour"
        product = dict(unit.powers)
        for name, power in counted.powers:
            product[name] = product.get(name, 0) + power
        if not any(power < 0 for _, power in counted.powers):
            return None
        counted = Unit(unit.worth * counted.worth, tuple(sorted((n, p) for n, p in product.items() if p)))
    return Number(value if factor is _ONE else value * factor, places, percent, counted or unit, words)


def _read_sum(text: str) -> Number | None:
    """A value with several units, "5 feet 6 inches", "$3 and 50 cents"; else None."""
    if "'" in text:
        text = _FEET.sub(r"\1 feet \2 inches", text)
    plain = re.sub(r" +", " ", ALL_TEXT.sub(r" \1 ", text)).strip()
    if plain.startswith("$"):
        plain = re.sub(r"^\$ ?(\d+) ", r"\1 dollars ", plain)
    if not _SUM.fullmatch(plain):
        return None
    total = sum_of_units([(Fraction(count), name) for count, name in _PART.findall(plain)])
    return None if total is None else Number(total[0], 6, unit=total[1], summed=True)


def _whole(text: str | None) -> int:
    return int((text or "0").replace(",", "").replace(" ", ""))


def _value(match: re.Match) -> tuple[Fraction, int] | None:
    """(value, decimals written) of a literal."""
    part = match.groupdict()
    if part["european"]:
        digits = part["european"].replace(".", "")
        return Fraction(f"{digits}.{part['cents']}"), len(part["cents"])
    if part["between"] is not None:
        ahead, between, repeated = part["ahead"], part["between"], part["repeated"] or part["digit"]
        # 1.2333... is (123 - 12) / 90.
        difference = int(ahead + between + repeated) - int(ahead + between or "0")
        return Fraction(difference, 10 ** len(between) * (10 ** len(repeated) - 1)), 0
    if part["parts"] or part["bottom"]:
        if part["parts"]:
            numbers = [group for group in re.findall(r"-?[\d.,]+", part["parts"])]
            if len(numbers) == 1:  # \frac12
                numbers = list(numbers[0])
            top, bottom = (Fraction(number.replace(",", "")) for number in numbers)
            whole = part["whole"]
        else:
            top, bottom, whole = Fraction(_whole(part["top"])), Fraction(_whole(part["bottom"])), part["mixed"]
        if bottom == 0:
            return None
        if whole:
            if not 0 <= top < bottom:  # a product rather than a mixed number, perhaps
                return None
            top += int(whole) * bottom
        return top / bottom, 0
    if part["units"] is None and part["only"] is None:
        return None
    decimals = part["decimals"] or part["only"] or ""
    exponent = int(part["e"] or part["power"] or part["short"] or 0)
    units = _whole(part["units"])
    value = Fraction(int(f"{units}{decimals}"), 10 ** len(decimals)) if decimals else Fraction(units)
    value = value * Fraction(10) ** exponent if exponent else value
    return value, max(0, len(decimals) - exponent) if decimals.strip("0") else 0


@functools.lru_cache(4096)  # few units, many numbers
def _read_rest(
    rest: str, value: Fraction | None, *, whole: bool
) -> tuple[Fraction, bool, Unit | None, frozenset[str]] | None:
    """(factor, whether a percentage, unit, words) of what stands behind a number; None where it is no unit. The value
    is needed of one in words too or with an ending, "5 (five)", "5th"."""
    factor, none = _ONE, frozenset[str]()
    if in_words := _SAME_IN_WORDS.match(rest):
        return (factor, False, None, none) if read_number_words(in_words.group(1)) == value else None
    percent = bool(match := _PERCENT.match(rest))
    rest = rest[match.end() :] if match else rest
    if whole and value is not None and value >= 0 and (match := _ORDINAL.match(rest)):
        if match.group(1) != ordinal_ending(int(value)):
            return None
        rest = rest[match.end() :]
    if not rest.strip(" .,"):
        return factor, percent, None, none
    rest = _UNIT_FRACTION.sub(r"\\text{\1/\2}", rest)
    plain, attached = not rest.lstrip().startswith("\\text"), rest[:1].isalpha()
    words = ALL_TEXT.sub(r" \1 ", rest).replace("{}", " ")
    words = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])", " ", words).strip()
    words = re.sub(r"^of (?=\S)|^-(?=[a-z])", "", words)
    if _HALF_OF_DAY.match(words):
        return None
    first = re.match(r"[A-Za-z]+", words)
    name = first.group().lower() if first else ""
    if attached and not (len(name) > 1 and name in UNIT_NAMES):
        return None
    if plain and not plain_unit(words):
        return None
    while not percent and first and (name in SCALE_WORDS or (name in FRACTION_WORDS and whole)):
        factor *= SCALE_WORDS[name] if name in SCALE_WORDS else Fraction(1, FRACTION_WORDS[name])
        whole = False
        words = re.sub(r"^of (?:an? |the )?", "", words[first.end() :].strip())
        first = re.match(r"[A-Za-z]+", words)
        name = first.group().lower() if first else ""
    if not words.strip(" .,"):
        return factor, percent, None, none
    read = read_unit(words)
    return None if read is None else (factor, percent, *read)


def ordinal_ending(number: int) -> str:
    """"th" of 11th."""
    last = number % 10 if number % 100 not in (11, 12, 13) else 0
    return {1: "st", 2: "nd", 3: "rd"}.get(last, "th")


def equal_numbers(answer: Number, expected: Number) -> bool:
    """Whether two numbers are the same: exactly, or one is the other rounded to its six or more decimals. A percentage
    may be written as its number or as a fraction of one; two known units are converted into each other, others have
    no value, but opposite words differ."""
    if answer.words and expected.words and opposite(set(answer.words), set(expected.words)):
        return False
    rate = convert(answer.unit, expected.unit)
    if rate is None:
        return False
    if (answer.summed and not expected.unit) or (expected.summed and not answer.unit):
        return False
    if answer.percent != expected.percent and (expected.unit if answer.percent else answer.unit):
        return False
    equal = answer.value.as_integer_ratio() == expected.value.as_integer_ratio()
    if equal and answer.percent == expected.percent and rate == 1:
        return True
    if not (answer.percent or expected.percent or answer.places or expected.places or rate != 1):
        return False
    scales = (1,) if answer.percent == expected.percent else (1, 100)
    for k in scales:
        left = answer.value * rate * (k if expected.percent else 1)
        right = expected.value * (k if answer.percent else 1)
        if left == right:
            return True
        if k == 1 and rate == 1 and (rounds_to(left, right, expected.places) or rounds_to(right, left, answer.places)):
            return True
    return False


def is_rounded(exact: Fraction, rounded: Number) -> bool:
    """Whether a number as written is a value rounded, or cut off, at its last digit."""
    return abs(exact - rounded.value) < Fraction(1, 10**rounded.places)


def rounds_to(exact: Fraction, rounded: Fraction, places: int) -> bool:
    """Whether a number written with six or more decimals is a value rounded to them."""
    if places < 6 or abs(rounded) * 10**min(places, _DIGITS) < 10**5:  # of fewer digits
        return False
    return abs(exact - rounded) * 10**places <= Fraction(1, 2)
