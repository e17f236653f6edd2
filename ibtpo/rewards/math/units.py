"""Units behind a number: which words are one, and which two spellings are the same."""

import re

from ibtpo.rewards.math.spelling import TEXT

# Of a number with its unit: keeps int() and the patterns below cheap on hostile text.
MAX_NUMBER_CHARACTERS = 200
_UNIT = re.compile(rf"\s*{TEXT}\s*(?:\^\s*\{{?\d\}}?)?$")
# Two letters are a product of variables unless they are a known unit.
_WORD = r"(?:[A-Za-z][a-z]{2,}|cm|mm|km|kg|mg|ml|ft|in|oz|lb|hr|mi)"
# One letter is a unit in a quotient ("m/s"), or if it is a usual one.
_UNIT_WORDS = re.compile(
    rf"\s+((?:{_WORD}|[A-Za-z](?=\s?/)|[mgshLJNWV](?![A-Za-z]))(?:\^\d)?"
    rf"(?:(?:\s+|\s?/\s?)(?:{_WORD}|[A-Za-z](?![A-Za-z]))(?:\^\d)?)*)$"
)
# Spellings of one unit. Two that are both known and differ are a wrong answer; an unknown one is just a word.
UNIT_NAMES = {
    name: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres", "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "in inch inches",
        "ft foot feet", "yd yard yards", "mi mile miles", "mg milligram milligrams", "g gram grams",
        "kg kilogram kilograms", "lb lbs pound pounds", "oz ounce ounces", "s sec second seconds", "min minute minutes",
        "h hr hour hours", "day days", "week weeks", "month months", "year years", "ml milliliter milliliters",
        "l liter liters litre litres", "dollar dollars", "cent cents", "euro euros",
    )
    for name in names.split()
}  # fmt: skip
# Words after a number that are part of the value, not a unit: such an answer is left to the slow
# path.
NOT_UNITS = frozenset(
    "pi tau phi theta alpha beta gamma delta lambda mu sqrt sin cos tan cot sec csc log ln exp "
    "infinity infty and or not to by of mod base binary octal hexadecimal hex radian radians am pm "
    "percent percentage half third quarter dozen hundred thousand million billion trillion "
    "hundreds thousands millions billions trillions plus minus times over divided squared cubed "
    "factorial choose if for where when with more less than least most at about approximately "
    "remainder is are was else otherwise except only".split()
)


def without_unit(text: str, plain_words: bool) -> str:
    """Strips a unit that follows a digit or a closing brace, in text commands or, if asked, in
    plain words."""
    match = _UNIT.search(text) or (_UNIT_WORDS.search(text) if plain_words else None)
    if match is None or not re.search(r"[\d}.]$", text[: match.start()]):
        return text
    if not NOT_UNITS.isdisjoint(re.findall(r"[a-z]+", match.group(1).lower())):
        return text
    return text[: match.start()]


def unit_of(text: str) -> tuple[str, ...] | None:
    """The unit behind a value, its words by one name each; None where there is none, or one of them is not known."""
    text = text[-MAX_NUMBER_CHARACTERS:]
    match = _UNIT.search(text) or _UNIT_WORDS.search(text)
    words = [word.lower() for word in re.findall(r"[A-Za-z]+", match.group(1))] if match else []
    return tuple(UNIT_NAMES[word] for word in words) if words and UNIT_NAMES.keys() >= set(words) else None
