"""Units behind a number: which words are one, which two are the same, and how one is counted in another."""

import re
from dataclasses import dataclass
from fractions import Fraction

from ibtpo.rewards.math.words import NOT_UNITS

# Of a number with its unit: keeps int() and the patterns that read it cheap on hostile text.
MAX_NUMBER_CHARACTERS = 200


@dataclass(frozen=True)
class Unit:
    """A known unit: what one of it is worth in the basic units, ((name, power), ...) sorted by name."""

    worth: Fraction
    powers: tuple[tuple[str, int], ...]


# Basic unit: {worth: names}. The first name of a unit of length also takes part in products ("m/s").
_TABLE = {
    "length": {
        "1/1000000": "um micrometer micrometers micrometre micrometres",
        "1/1000": "mm millimeter millimeters millimetre millimetres",
        "1/100": "cm cms centimeter centimeters centimetre centimetres", "1/10": "dm decimeter decimeters",
        "1": "m meter meters metre metres", "1000": "km kms kilometer kilometers kilometre kilometres",
        "254/10000": "in inch inches", "3048/10000": "ft foot feet", "9144/10000": "yd yds yard yards",
        "1609344/1000": "mi mile miles",
    },
    "mass": {
        "1/1000": "mg milligram milligrams", "1": "g gm gram grams", "1000": "kg kgs kilogram kilograms kilo kilos",
    },
    "pound": {"1": "lb lbs pound pounds", "1/16": "oz ounce ounces"},
    "ton": {"1": "ton tons tonne tonnes"},
    "second": {
        "1/1000": "ms millisecond milliseconds", "1": "s sec secs second seconds", "60": "min mins minute minutes",
        "3600": "h hr hrs hour hours", "86400": "day days", "604800": "week weeks wk wks",
    },
    "month": {"1": "month months", "12": "year years yr yrs"},
    "liter": {"1/1000": "ml milliliter milliliters millilitre millilitres", "1": "l liter liters litre litres"},
    "gallon": {"1": "gal gallon gallons", "1/4": "qt quart quarts", "1/8": "pt pint pints", "1/16": "cup cups"},
    "dollar": {"1": "$ dollar dollars usd buck bucks", "1/100": "¢ cent cents"},
    "euro": {"1": "€ euro euros eur"},
    "sterling": {"1": "£ gbp", "1/100": "pence"},
    "yen": {"1": "¥ yen jpy"},
    "yuan": {"1": "yuan rmb cny"},
    "rupee": {"1": "₹ rupee rupees inr rs"},
    "radian": {"1": "rad radian radians"},
    "degree": {"1": "degree degrees deg"},
    "celsius": {"1": "celsius centigrade"},
    "fahrenheit": {"1": "fahrenheit"},
    "kelvin": {"1": "kelvin kelvins"},
    "hertz": {"1": "hz hertz", "1000": "khz", "1000000": "mhz"},
    "joule": {"1": "j joule joules", "1000": "kj", "3600000": "kwh", "4184/1000": "cal calorie calories"},
    "watt": {"1": "w watt watts", "1000": "kw kilowatt kilowatts"},
    "newton": {"1": "n newton newtons"},
    "volt": {"1": "v volt volts"},
    "ampere": {"1": "amp amps ampere amperes"},
    "ohm": {"1": "ohm ohms"},
    "pascal": {"1": "pascal pascals", "1000": "kpa"},
    "byte": {"1": "byte bytes", "1000": "kb", "1000000": "mb", "1000000000": "gb"},
    "unit": {"1": "unit units"},
}  # fmt: skip
_BASIC = {
    name: Unit(Fraction(worth), ((basic, 1),))
    for basic, rows in _TABLE.items()
    for worth, names in rows.items()
    for name in names.split()
}
_SPEEDS = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmph": ("km", "h"), "kmh": ("km", "h"), "mps": ("m", "s")}
UNIT_NAMES = _BASIC.keys() | _SPEEDS.keys()
CURRENCIES = "$€£¥₹¢"
_ONE = Fraction(1)
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_AFTER = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(r"([A-Za-z$€£¥₹¢]+)\.?(?:\s*\^\s*\{?(-?\d)\}?|(?<=[a-zA-Z])([23])(?![\d]))?|(/)|\S")
# Letters that alone are a unit behind a number, and words that may stand within one.
_LETTERS_IN_UNITS = frozenset("mgshLJNWV")
_WITHIN = frozenset("of in a an the each every".split())
# Letters that stand for a thousand, a million or a billion.
_SCALES = frozenset(("k", "M", "B", "bn", "mn", "mln"))
_SIZES = {"degree", "celsius", "fahrenheit"}


def read_unit(text: str) -> tuple[Unit | None, frozenset[str]] | None:
    """The unit that the words behind a number are: (the unit if all of its words are known, its words); None where
    they are no unit: one of them may change the number, or there is more than words."""
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    powers: dict[str, int] = {}
    worth, known, sign, before, last = Fraction(1), True, 1, 1, ""
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        word, power, digit, slash = match.groups()
        if slash or (word or "").lower() == "per":
            sign = -1
            words += ["per"]
            continue
        if word is None:
            if match.group() in ".,":
                continue
            return None
        if word in _SCALES:
            return None
        name = word.lower()
        if name in _POWER_AFTER and last in _BASIC:
            if sign > 0:
                _add(powers, _BASIC[last], _POWER_AFTER[name] - 1)
                worth *= _BASIC[last].worth ** (_POWER_AFTER[name] - 1)
            continue
        if name in NOT_UNITS and name not in ("second", "min"):
            return None
        words.append(name)
        if name in _POWER_BEFORE:
            before = _POWER_BEFORE[name]
            continue
        exponent = sign * before * int(power or digit or 1)
        before, last = 1, name
        if name in _SPEEDS:
            _add(powers, _BASIC[_SPEEDS[name][0]], 1)
            _add(powers, _BASIC[_SPEEDS[name][1]], -1)
            worth *= _BASIC[_SPEEDS[name][0]].worth / _BASIC[_SPEEDS[name][1]].worth
        elif name in _BASIC:
            _add(powers, _BASIC[name], exponent)
            worth *= _BASIC[name].worth ** exponent
        elif name in _WITHIN:
            sign = -1 if name in ("a", "an", "each", "every") else sign
        else:
            known = False
    if words and (words[0] in ("of", "the") or words[-1] in _WITHIN):
        return None
    unit = Unit(worth, tuple(sorted((name, power) for name, power in powers.items() if power)))
    return (unit if known and words else None), frozenset(words)


def _add(powers: dict[str, int], unit: Unit, times: int) -> None:
    for name, power in unit.powers:
        powers[name] = powers.get(name, 0) + times * power


def currency(symbol: str) -> Unit:
    """The unit of a currency's symbol."""
    return _BASIC[symbol]


def plain_unit(text: str) -> bool:
    """Whether plain words, outside of a text command, may be a unit at all: one or two letters are variables unless
    they are a known unit, one letter behind a number only of the usual ones or in a quotient."""
    first = re.match(r"(?:/ ?(?=[A-Za-z]{2}))?[A-Za-z]+", text)
    if first is None:
        return bool(text) and text[0] in CURRENCIES
    for match in re.finditer(r"[A-Za-z]+", text):
        word = match.group()
        if len(word) == 1:
            quotient = re.match(r"\s?(?:\^\{?\d\}?)?\s?/", text[match.end() :]) or "/" in text[: match.start()]
            if not (quotient or word in _LETTERS_IN_UNITS or word == "a"):
                return False
        elif len(word) == 2 and word.lower() not in UNIT_NAMES and word.lower() not in _WITHIN | {"sq", "cu"}:
            return False
    return True


def sum_of_units(parts: list[tuple[Fraction, str]]) -> tuple[Fraction, Unit] | None:
    """(value, unit) in the first unit of a value with several, "5 feet 6 inches": known ones of one kind, from large to
    small, of each but the first fewer than make one of the unit before; else None."""
    units = [_BASIC.get(name.lower().strip(".")) for _, name in parts]
    first, total, before = units[0], parts[0][0], units[0]
    if first is None or before is None:
        return None
    for (count, _), unit in zip(parts[1:], units[1:]):
        if unit is None or unit.powers != first.powers or count * unit.worth >= before.worth:
            return None
        total += count * unit.worth / first.worth
        before = unit
    return total, first


def is_angle(unit: Unit | None) -> bool:
    """Whether a unit may be what a degree sign stands for; also where none is known."""
    return unit is None or {name for name, _ in unit.powers} <= _SIZES


def convert(left: Unit | None, right: Unit | None) -> Fraction | None:
    """What one of `left` is in `right`, 1 where one of them is not known; None where they measure different things."""
    if left is None or right is None or left == right:
        return _ONE
    return left.worth / right.worth if left.powers == right.powers else None
