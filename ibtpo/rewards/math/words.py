"""Words beside a value: those that change it or take it back, opposites, numbers in words, and phrases that are one.

A noun or adjective behind a number is taken for its unit. Words of the closed classes (conjunctions, negations,
auxiliaries, comparisons, ...) are listed here whole: with one of them, a number is not the answer that it seems.
"""

import re
from fractions import Fraction

FRACTION_WORDS = {
    name: divisor
    for names, divisor in (
        ("half halves", 2), ("third thirds", 3), ("quarter quarters fourth fourths", 4), ("fifth fifths", 5),
        ("sixth sixths", 6), ("seventh sevenths", 7), ("eighth eighths", 8), ("ninth ninths", 9),
        ("tenth tenths", 10), ("eleventh elevenths", 11), ("twelfth twelfths", 12), ("hundredth hundredths", 100),
        ("thousandth thousandths", 1000), ("millionth millionths", 10**6),
    )
    for name in names.split()
}  # fmt: skip
SCALE_WORDS = {
    "dozen": 12, "dozens": 12, "hundred": 100, "hundreds": 100, "thousand": 1000, "thousands": 1000,
    "million": 10**6, "millions": 10**6, "billion": 10**9, "billions": 10**9, "trillion": 10**12, "trillions": 10**12,
}  # fmt: skip
_COUNTS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_COUNTS |= {
    word: 10 * number
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_NUMBER_WORDS = frozenset(_COUNTS) | SCALE_WORDS.keys() | {"score", "scores", "gross", "once", "twice", "thrice"}
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi varphi chi psi omega".split()
)
FUNCTIONS = frozenset(
    "sqrt cbrt root sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det gcd lcm max min mod "
    "floor ceil abs sgn arg deg dim ker lim sup inf binom frac pi cis".split()
)
# They say that a value is not the answer, or not for certain.
DOUBTS = frozenset(
    "or nor and not no never none neither either but except unless without instead rather versus vs maybe perhaps "
    "possibly probably likely might may could cannot if else otherwise whether unknown unsure unclear uncertain "
    "guess fails wait incorrect wrong false untrue impossible invalid isn isnt ain aint doesn dont don wasn "
    "aren undefined pending tbd alternatively".split()
)
# They make another value, a bound or a range of the one beside them.
_OPERATIONS = frozenset(
    "than minus plus times divided over multiplied added subtracted adding squared cubed raised power factorial choose "
    "mod modulo more less most least fewer greater larger smaller bigger higher lower above below under exceeding "
    "exceeds between from to until through about around approximately roughly nearly almost close negative double "
    "triple quadruple twice thrice reciprocal inverse opposite remainder base binary octal hexadecimal hex infinity "
    "infty infinite ish fold".split()
)
HEDGES = DOUBTS | _OPERATIONS
# Behind a number these are not its unit either. "of", "in", "a", "each" may stand within a unit.
_NOT_UNITS_ONLY = frozenset(
    "is are was were be been by with for at when where while because since as that this it its he she they we you i so "
    "then thus hence therefore which who what how if do does did has have had will".split()
)
MONTHS = frozenset(
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec".split()
)
NOT_UNITS = HEDGES | _NOT_UNITS_ONLY | _NUMBER_WORDS | FRACTION_WORDS.keys() | GREEK | FUNCTIONS | MONTHS | {"am", "pm"}
# Two of one group do not mean the same.
_OPPOSITES = [
    frozenset(group.split())
    for group in (
        "north south east west northeast northwest southeast southwest northward southward eastward westward",
        "left right", "up down upward downward upwards downwards", "gain loss", "gains losses", "profit loss",
        "increase decrease", "increased decreased", "increasing decreasing", "rise fall drop", "won lost", "win loss",
        "above below", "clockwise counterclockwise anticlockwise", "inside outside", "ahead behind", "before after",
        "earlier later", "faster slower", "taller shorter", "longer shorter", "older younger", "heavier lighter",
        "warmer colder", "hotter cooler", "odd even", "deposit withdrawal", "credit debit", "surplus deficit",
        "boys girls", "boy girl", "men women", "man woman", "males females", "male female", "bc ad bce ce",
        "forward backward forwards backwards", "true false", "yes no", "early late", "saved spent", "discount markup",
        "monday tuesday wednesday thursday friday saturday sunday", "celsius fahrenheit kelvin",
        "heads tails", "convergent divergent", "maximum minimum", "acute obtuse", "horizontal vertical",
    )
]  # fmt: skip
_PHRASES = {
    phrase: phrases.split("|")[0]
    for phrases in (
        r"no solution|no solutions|\emptyset|\varnothing|none|empty set|\{\}", "does not exist|dne|d.n.e",
        r"\infty|infinity|+\infty|infinite", r"\mathbb{r}|all real numbers|all reals|all real x|(-\infty,\infty)",
    )
    for phrase in phrases.split("|")
}  # fmt: skip
_FILLING = re.compile(r"^(?:(?:so |thus |therefore )?(?:the |my )?(?:final )?(?:answer|result)(?: is|:|=)|it is)\s+")
_ARTICLES = re.compile(r"(?<![a-z\\])(?:an?|the) (?=[a-z])")


def opposite(left: set[str], right: set[str]) -> bool:
    """Whether the words of two answers contradict each other: "miles south" and "miles north"."""
    return any(left & group and right & group and left & group != right & group for group in _OPPOSITES)


def read_number_words(text: str) -> Fraction | None:
    """The number that a text of words is ("twenty-five", "two thirds", "three and a half"), else None."""
    words = re.findall(r"[a-z]+", text.lower()) if len(text) < 100 else []
    if not words or not re.fullmatch(r"[A-Za-z\s-]+", text):
        return None
    negative = words[0] in ("minus", "negative")
    words = words[1:] if negative else words
    # Two thirds, three and a half: a count of parts behind a whole number.
    parts = Fraction(0)
    if words and words[-1] in FRACTION_WORDS:
        head = words[:-1]
        joint = max((i for i, word in enumerate(head) if word == "and"), default=-1)
        count = _whole(head[joint + 1 :], article=True) if head[joint + 1 :] else 1
        if count is None or (joint == 0):
            return None
        parts, words = Fraction(count, FRACTION_WORDS[words[-1]]), head[:joint] if joint > 0 else []
        if not words:
            return -parts if negative else parts
    whole = _whole(words)
    if whole is None:
        return None
    return -(whole + parts) if negative else whole + parts


def _whole(words: list[str], article: bool = False) -> int | None:
    """A whole number in words; with `article` "a" is one."""
    if article and words in (["a"], ["an"]):
        return 1
    total, group, last = 0, 0, 0
    for number, word in enumerate(words):
        if word == "a" and number == 0 and len(words) > 1:
            group = 1
        elif word == "and" and number and number < len(words) - 1:
            continue
        elif word in _COUNTS:
            # "twenty five", not "five six" nor "ten three".
            if last and not (20 <= last < 100 and _COUNTS[word] < 10):
                return None
            group += _COUNTS[word]
            last = _COUNTS[word]
        elif word in ("hundred", "dozen") and group:
            group, last = group * SCALE_WORDS[word], 0
        elif word in ("thousand", "million", "billion", "trillion") and group:
            total, group, last = total + group * SCALE_WORDS[word], 0, 0
        else:
            return None
    return total + group if words else None


def phrase_of(text: str) -> str:
    """The form in which answers in words are compared: lower case, without articles, quotes and the full stop, one
    name of those that mean the same."""
    text = re.sub(r"\s+", " ", text.lower()).strip(" .,;:!'\"`")
    text = _ARTICLES.sub("", _FILLING.sub("", text))
    text = re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"['\"`]|(?<=[a-z])[.,!](?= |$)", "", text).strip()
    return _PHRASES.get(text, _PHRASES.get(text.replace(" ", ""), text))
