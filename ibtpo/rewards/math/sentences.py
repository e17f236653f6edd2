"""The value that a sentence gives: of "the largest $n$ is 34" it is 34, of "half of $18$" the words as they stand."""

import re

from ibtpo.rewards.math.numbers import read_number
from ibtpo.rewards.math.shapes import strip_name
from ibtpo.rewards.math.spelling import normalise
from ibtpo.rewards.math.units import MAX_NUMBER_CHARACTERS, UNIT_NAMES
from ibtpo.rewards.math.words import DOUBTS, FRACTION_WORDS, GREEK, HEDGES, SCALE_WORDS

INLINE_MATH = re.compile(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.{1,500}?)\\\)")
NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)])[-−–])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?|\.\d+)")
# Words, no symbols, around a number; a capital beside it makes a name of both ("March 5", "Room 12").
_PROSE_BEFORE = re.compile(r"(?:(?:[A-Za-z][A-Za-z'’]*,? )*[a-z]+,? )?[-−–]?\\?\$?")
_PROSE_AFTER = re.compile(r"(?: ?\\?%)?,?(?: [a-z][a-z'’]*,?(?: [A-Za-z][A-Za-z'’]*,?)*)?")
# Words that may change the value beside them, or say that it is not the answer. "Would" and the like may stand there.
CHANGING = (
    HEDGES | FRACTION_WORDS.keys() | SCALE_WORDS.keys() | (GREEK - {"mu", "nu", "xi", "chi", "psi"})
    | frozenset("sqrt root sin cos tan cot sec csc log ln exp mod gross am pm if when while seems "
                "seem wish think believe suppose assume".split())
) - {"to", "through", "until", "second"}  # fmt: skip
# What a value may be said to be of: "a total of 18". Behind any other "of" it is part of a calculation.
_MEASURES = frozenset(
    "total value amount sum price cost profit area volume length distance speed rate probability height width time age "
    "radius diameter perimeter weight mass number answer result maximum minimum average mean median pay salary income "
    "revenue balance score change discount bill fee".split()
)
_OF = re.compile(r"\b([a-z]+) of (?:about )?$", re.IGNORECASE)
LABEL_BEFORE = re.compile(
    r"\b(?:step|part|case|day|question|option|room|problem|exercise|equation|eq\.?) ?\(?$", re.IGNORECASE
)
_SHORT_WORDS = frozenset("a an as at be by he in is it my of on so to we".split())  # others are variables
# Around a formula that is a condition on another value.
_CONDITION_BEFORE = re.compile(
    r"(?:\b(?:for|when|if|where|with|at|as|since|because|given|whenever|provided|assuming|is attained)(?: that)?(?: all"
    r"| any| every| each)? ?|\()$", re.IGNORECASE
)  # fmt: skip
_EXAMPLES = re.compile(r",? ?\(?(?:i\.e\.|that is,|namely)", re.IGNORECASE)
_NO_VALUE = re.compile(
    r"[A-Za-z\s()_{},'|]|\\(?:text|mathrm|mathbf|angle|triangle|overline|alpha|beta|gamma|theta|[,;! ])|_\{?\d+\}?"
)
_HYPHENATED = re.compile(r"-[a-z]")
_CALCULATED = re.compile(r"\d[^=]{0,150}[-+*/×x–÷(][^=]{0,150}?[\d)%](?: [a-z]{2,}){0,3}\s*$")
_VARIABLE = re.compile(r"\d[A-Za-z](?![A-Za-z])|(?<![A-Za-z'’])[B-HJ-Zb-hj-z](?![A-Za-z'’])")
SIGN_X = re.compile(r"(?<=[\d)%]) ?x ?(?=\$?[\d(.])| x (?=\$?\d)")  # "4 x 3", "14 hours x $10"
_PREDICATE = re.compile(r"\b(?:is|are|equals|is equal to)\s+")
_MAX_SENTENCE = 1000
_MAX_FORMULAS = 8  # of a sentence that gives one value


def lone_number(sentence: str) -> str:
    """The number of a sentence that is prose but for it ("Janet makes 18 dollars every day"). Any other as it is: a
    number with its unit, several numbers, a formula, words that may change the number ("half of 18") or hedge."""
    if len(sentence) > MAX_NUMBER_CHARACTERS or read_number(normalise(sentence)):
        return sentence
    numbers = list(NUMBER_IN_TEXT.finditer(sentence))
    if len(numbers) != 1:
        return sentence
    before, after = sentence[: numbers[0].start()], sentence[numbers[0].end() :]
    if not (_PROSE_BEFORE.fullmatch(before) and _PROSE_AFTER.fullmatch(after)):
        return sentence
    words = re.findall(r"(?<!['’])\b[a-z]+", f"{before} {after}".lower())
    variables = [word for word in words if len(word) < 3 and word not in _SHORT_WORDS and word not in UNIT_NAMES]
    if variables or changes(before, after):
        return sentence
    unit = re.match(r" ([A-Za-z]+)", after)
    return numbers[0][0] + (unit[0] if unit and unit[1] in UNIT_NAMES and unit[1] != "in" else "")


def changes(before: str, after: str) -> bool:
    """Whether the words around a value may change it, take it back, or make a mere label of it."""
    words = re.findall(r"[a-z]+", f"{before} {after}".lower())
    measured = _OF.search(before)
    return bool(
        not CHANGING.isdisjoint(words)
        or LABEL_BEFORE.search(before)
        or (measured and measured.group(1).lower() not in _MEASURES)
    )


def value_of_sentence(sentence: str) -> str:
    r"""The value that a sentence with formulas in it gives, as written; the sentence as it stands (without dollar signs
    around formulas) where that is not certain.

    With one formula and prose around it, it is the formula. A number in the prose beats a formula without a value
    ("the largest $n$ is 34") or with a condition ("5 for $n = 2$"). Signs and words that belong to the formula's value
    ("minus $9$", "$9$ million", "$9$%") are kept; with words that may change it, the sentence is as it stands.
    """
    plain = INLINE_MATH.sub(lambda match: match.group(1) or match.group(2), sentence).strip()
    if len(plain) <= MAX_NUMBER_CHARACTERS and (value := _signed(plain)):
        return value
    if "\\" not in sentence and (value := _result(plain)):
        return value
    sentence = sentence[: match.start()] if (match := _EXAMPLES.search(sentence)) else sentence
    formulas = list(INLINE_MATH.finditer(sentence))
    prose = INLINE_MATH.sub("\x00", sentence)
    if not formulas:
        return lone_number(sentence)
    if len(formulas) > _MAX_FORMULAS or len(sentence) > _MAX_SENTENCE:
        return plain
    if value := _last_predicate(sentence):
        return value
    values, at = [], -1
    for formula in formulas:
        at = prose.index("\x00", at + 1)
        content = (formula.group(1) or formula.group(2)).strip()
        before, after = prose[:at], prose[at + 1 :]
        if _HYPHENATED.match(after):  # "3-digit numbers"
            continue
        if _CONDITION_BEFORE.search(before) and re.search(r"[=<>]|\\(?:le|ge|ne|in|geq|leq|neq)\b", content):
            continue
        if re.search(r"[^\s]", _NO_VALUE.sub("", content)) or len(formulas) == 1:
            values.append((content, before, after))
    numbers = [number for number in NUMBER_IN_TEXT.finditer(prose) if not _HYPHENATED.match(prose[number.end() :])]
    if len(numbers) == 1 and not any(re.search(r"[^\s]", _NO_VALUE.sub("", content)) for content, *_ in values):
        number = numbers[0]
        before, after = prose[: number.start()], prose[number.end() :]
        before, after = (_without_conditions(part) for part in (before, after))
        if not changes(before, after) and _plain_around(before, after):
            return (number.group() + ("%" if re.match(r" ?\\?%", after) else "")).strip()
        return plain
    if len(values) == 1 and not numbers:
        content, before, after = values[0]
        before, after = (_without_conditions(part) for part in (before, after))
        if not changes(before, after) and _plain_around(before, after):
            return content + ("%" if re.match(r" ?\\?%", after) else "")
    return plain


def _result(sentence: str) -> str:
    """What a calculation in a sentence comes to, "they pay 6 + 5 = $11 a day"; "" without one, with a variable in it,
    or with a doubt."""
    head, equals, value = sentence[-_MAX_SENTENCE:].rpartition("=")
    head = SIGN_X.sub("*", head.rpartition("=")[2][-200:])
    if not equals or not _CALCULATED.search(head) or _VARIABLE.search(head):
        return ""
    if not DOUBTS.isdisjoint(re.findall(r"[a-z]+", sentence.lower())):
        return ""
    return _signed(value.strip(" .,;"))


def _last_predicate(sentence: str) -> str:
    """The value that ends a sentence behind its last "is" or "equals", the words before it being no doubt; else ""."""
    last = max(_PREDICATE.finditer(sentence), key=re.Match.start, default=None)
    if last is None:
        return ""
    words = re.findall(r"[a-z]+", INLINE_MATH.sub("", sentence[: last.start()]).lower())
    if not (DOUBTS - {"and"}).isdisjoint(words):
        return ""
    rest = sentence[last.end() :].strip(" .,;")
    formula = INLINE_MATH.fullmatch(rest)
    if formula and re.search(r"[^\s]", _NO_VALUE.sub("", formula[0].strip("$"))):
        return (formula.group(1) or formula.group(2)).strip()
    return _signed(INLINE_MATH.sub(lambda match: match.group(1) or match.group(2), rest)) if len(rest) < 100 else ""


def _signed(text: str) -> str:
    """A text that is a number with its sign in words or not, its scale and its unit; else ""."""
    negative = re.match(r"(?:minus|negative) (?=[\d.\\])", text)
    bare = text[negative.end() :] if negative else text
    if read_number(normalise(bare)) is None:
        return ""
    return f"-{bare}" if negative else bare


def _without_conditions(prose: str) -> str:
    """Without other formulas and the words that make them conditions."""
    prose = re.sub("\x00-[a-z]+", " ", prose)
    return re.sub(r",? ?\(?(?:\b(?:attained|for|when|if|where|with|at|as|since|given)\b[ a-z]*)?\x00\)?", " ", prose)


def _plain_around(before: str, after: str) -> bool:
    """Whether only words stand around a value, with commas at most: no sign of a calculation, no capital beside it."""
    return (
        re.fullmatch(r"[A-Za-z\s,'’\"()]*:?\s*\(?\\?\$?", before) is not None
        and re.fullmatch(r"\)?(?: ?\\?%)?[A-Za-z\s,'’\"():!;]*\.?", after) is not None
        and re.match(r" ?[A-Z][a-z]", after) is None
        and re.match(r"!", after) is None
    )


def states_a_name(text: str) -> str:
    """The value of a formula that gives its value a name, "x = 5"; else the formula."""
    name, value = strip_name(text)
    return value if name else text
