"""The last number of a text that states no answer: whole, as a part of no formula, time or ratio."""

import re

from ibtpo.rewards.math.numbers import equal_numbers, read_number
from ibtpo.rewards.math.sentences import LABEL_BEFORE, NUMBER_IN_TEXT, SIGN_X, states_a_name
from ibtpo.rewards.math.spelling import normalise
from ibtpo.rewards.math.unfinished import begins_a_part, breaks_off, without_next_problem

_MATH = re.compile(
    r"(?<!\\)\$\$([^$]{1,500})\$\$|(?<!\\)\$((?:[^$\\]|\\.){1,500})\$|\\\[(.{1,500}?)\\\]|\\\((.{1,500}?)\\\)",
    re.DOTALL,
)
_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's notes of calculations
_HEADING = re.compile(r"^[A-Z][a-z]+:")
_END_CHARACTERS = 1000
# A number by itself: a mixed number, a power of ten, a group of digits, a percentage.
_LITERAL = re.compile(
    r"(?:(?<![\w).])[-−–])?(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?![\d.])|"
    r"\d+ \d+/\d+|\d+/\d+|\d*\.\d+|\d+)(?:[eE][+-]?\d+| ?[×x*] ?10\^\{?[-−]?\d+\}?)?(?! ?\\?%)?"
)
_OPERAND = re.compile(r"[$]?(?:[\w.,\\{}()\[\]^!√°²³]*[\d\\^!√²³(][\w.,\\{}()\[\]^!√²³]*|[A-Za-z])")
_NO_BOX = re.compile(r"\\*f?box(?:ed)?\{([^{}]*)\}")
_SIGNS = frozenset(r"+ - − – * / × · ÷ x ± : \times \cdot \div \pm".split())
_UNSURE = re.compile(
    r"\b(?:maybe|perhaps|possibly|(?:might|could|may)(?: well)? be|unsure|unknown|unlikely|guess|cannot|can't|not sure"
    r"|don't know|do not know|no idea|unclear|undetermined)\b", re.IGNORECASE
)  # fmt: skip
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|(?<!no )(?<!a )(?<!any )doubt)\b|"
    r"\b(?:is|are|was|(?:ca|could|would)(?=n['’]t be))n['’]t\b|"
    r"(?:^|\s)(?:if|unless|whether) (?:it|this|the (?:final |correct )?answer)\b|"
    r"n['’]t (?:think|believe|suppose|mean|say|imply|claim)\b|"
    r"\b(?:wrong|incorrect|false) (?:answer|result|value|number|solution)",
    re.IGNORECASE,
)
# Directly before a number: it is only what another value is made of.
_PART_OF = re.compile(
    r"(?:\b(?:half|thirds?|quarters?|fourths?|fifths?|tenths?|square|cube|root|reciprocal|inverse|opposite|multiples?|"
    r"factors?|divisors?|powers?|logarithm) of(?: about)?(?: the)?|\b(?:twice|double|triple|thrice|negative|minus)|"
    r"\b(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger) than)\s*\$?\Z",
    re.IGNORECASE,
)
# Directly behind a number: words that make it another value, or a bound.
_SCALED = re.compile(
    r"\$? ?(?:(?:dozen|hundred|thousand|million|billion|trillion|percent|squared|cubed|factorial)\b|[ap]\.?m\b|"
    r"and (?:an? |one )(?:half|quarter|third)\b|or (?!\$?\d)[a-z]+)",
    re.IGNORECASE,
)
# Before a number, up to it: the values it is listed with, "x = 2, x = 3 or x = ", "2 to "; "from 2 to 3" lists none.
_VALUE = r"\$?(?:[A-Za-z]\w{0,3} ?= ?)?[-−–]?[\w\\{}^.]*\d[\w\\{}^./%]*\$?"
_LISTED = re.compile(
    rf"(?<!\S)(?<![-+*/×÷=–] )({_VALUE}(?:, ?{_VALUE}){{0,8}}(?: [a-z]{{2,}}){{0,3}}),? or "
    r"(?:(?:maybe|perhaps|possibly|even|else|just|only|about) ){0,2}\Z"
)
_NAMED_LIST = re.compile(r"(?<!\S)\$?[A-Za-z]\w{0,3} ?= ?[^\s,;]{1,60}(?:,| and|, and) \Z")
_RATIO = re.compile(r"(?<!\S)(?<!from )\d[\d.]* to \Z")
_CLAUSE = re.compile(r"[,;:.!?]\s|\n|\b(?:so|but|therefore|thus|hence|because|since)\b", re.IGNORECASE)
_HYPHENATED = re.compile(r"\$?-[A-Za-z]{2}")  # "3-digit"
_SENTENCE = re.compile(r"[.!?]\s|\n")
_LAST_WORDS = 300  # characters of a sentence that are looked at


def last_number(text: str) -> str | None:
    r"""The last number or formula of a text; None where there is none, or where its sentence says that it is not sure.

    A number in a formula stands for the formula: "$x = \frac34$" gives \frac34, "3 + 4i" and "2^{10}" are formulas as
    they stand; of "9*2 = 18" the right-hand side is taken. "10:30", "3:4", "5!" and "2 1/2" stay whole. The number of a
    step, part or question is none; where it begins the last one, that has no number, and the text has none either. Nor
    has one that breaks off (`unfinished`).
    """
    text = without_next_problem(_CALCULATOR.sub("", text))
    if breaks_off(text):
        return None
    for number in reversed(list(NUMBER_IN_TEXT.finditer(text))[-20:]):
        if begins_a_part(text, number.start(), number.end()):
            return None
        if LABEL_BEFORE.search(text[max(0, number.start() - 20) : number.start()]):
            continue
        if _HYPHENATED.match(text, number.end()):
            continue
        sentence_start = _start(_SENTENCE, text, number.start())
        end = _SENTENCE.search(text, number.end())
        sentence = text[sentence_start : end.start() if end else number.end() + _LAST_WORDS]
        clause = text[_start(_CLAUSE, text, number.start()) : number.start()]
        asked = text[number.end() : end.start() + 1 if end else number.end() + _LAST_WORDS].rstrip().endswith("?")
        if asked or _UNSURE.search(sentence) or _NEGATED.search(clause) or _PART_OF.search(clause):
            return None
        return _whole(text, number)
    return None


def _start(pattern: re.Pattern, text: str, end: int) -> int:
    """Where what the pattern ends begins, of the characters before `end`."""
    begin = max(0, end - _LAST_WORDS)
    return max((match.end() for match in pattern.finditer(text, begin, end)), default=begin)


def _whole(text: str, number: re.Match) -> str:
    """All that a number is a part of, with the values that it is listed with."""
    window = max(0, number.start() - _END_CHARACTERS)
    for formula in _MATH.finditer(text, window):
        if formula.start() <= number.start() < formula.end():
            value = "".join(filter(None, formula.groups())).strip()
            return _with_others(text, formula.start(), formula.end(), value, _of_formula(value))
        if formula.start() > number.start():
            break
    line = text.rfind("\n", window, number.start()) + 1 or window
    stop = text.find("\n", number.end())
    end = min(stop if stop >= 0 else len(text), number.end() + 100)
    begin, finish = _around(text, number.start(), number.end(), line, end)
    run = text[begin:finish].strip(" *`").rstrip(".,;:?")
    if boxed := _NO_BOX.fullmatch(run):
        run = boxed.group(1)
    found = None
    for literal in _LITERAL.finditer(run):
        found = literal
    whole = run if found and found.end() == len(run) and found.start() == 0 else _of_formula(run)
    return _with_others(text, begin, finish, run, whole)


def _with_others(text: str, begin: int, end: int, run: str, value: str) -> str:
    """A value that stands from `begin` to `end` as `run`, with the words behind it that make it another, and the values
    before it that it is an alternative to, the second of two named ones or the end of a ratio."""
    closed = text[begin:end].rstrip(" *`")
    scaled = _SCALED.match(text, begin + len(closed)) if closed[-1:] not in ".,;:!?" else None
    if scaled:
        run = value = f"{value} {scaled.group().strip(' $')}"
    before = text[max(0, begin - 200) : begin]
    named = states_a_name(run) != run
    others = _RATIO.search(before) or (_NAMED_LIST.search(before) if named else None)
    if not others and (named or "=" not in run) and (listed := _LISTED.search(before)):
        first, second = (read_number(normalise(side)) for side in (listed.group(1), value))
        others = None if first and second and equal_numbers(first, second) else listed  # "0.6 or 60%"
    return f"{others.group().replace('$', '')}{run}" if others else value


def _around(text: str, begin: int, end: int, first: int, last: int) -> tuple[int, int]:
    """The words around a number that belong to it: what it is written together with, and what signs join to that."""
    while begin > first and not text[begin - 1].isspace():
        begin -= 1
    while end < last and not text[end].isspace():
        end += 1
    for _ in range(40):  # to the left
        before = text[first:begin].rstrip()
        word = before[max(before.rfind(" "), before.rfind("\n")) + 1 :] if before else ""
        current = text[begin:end].split(" ")[0]
        joins = word in _SIGNS or word == "="
        if not word or not (joins or current in _SIGNS or current == "=" or _mixed(word, current)):
            break
        if (current in _SIGNS or current == "=") and not _OPERAND.fullmatch(word):
            break
        begin = first + len(before) - len(word)
    for _ in range(40):  # to the right
        rest = text[end:last]
        word = rest.split()[0] if rest.split() else ""
        current = text[begin:end].split(" ")[-1]
        if not word or not (word in _SIGNS - {"-", "–", "x"} or current in _SIGNS):
            break
        end += rest.index(word) + len(word)
    return begin, end


def _mixed(word: str, current: str) -> bool:
    """Whether a word belongs in front of digits: "2" of "2 1/2", "1" of "1 000"."""
    return bool(
        (re.fullmatch(r"[-−–]?\d+", word) and re.match(r"\d+/\d", current))
        or (re.fullmatch(r"[-−–$]?\d{1,3}", word) and re.fullmatch(r"\d{3}[.,;!?]?", current))
    )


def _of_formula(text: str) -> str:
    """The value of a formula: its right-hand side, unless that is all of an equation."""
    text = text.strip().rstrip(".,;")
    head, equals, value = _HEADING.sub("", text).rpartition("=")
    if not equals or not value.strip() or head.endswith(("<", ">", "!", "\\")):
        return text
    named = states_a_name(text)
    if named != text:
        return named
    # "9*2 = 18"
    letters = re.search(r"[A-Za-z](?![a-z]*\{)", re.sub(r"\\[a-z]+", "", SIGN_X.sub("*", head)))
    return text if letters else value.strip()
