"""Finds the answer that a response states: in a box, behind ####, after "answer is", or as its last number."""

import re

from ibtpo.rewards.math.boxes import BOX, find_boxes
from ibtpo.rewards.math.numbers import read_number
from ibtpo.rewards.math.spelling import BOLD, normalise
from ibtpo.rewards.math.units import MAX_NUMBER_CHARACTERS, NOT_UNITS, UNIT_NAMES

TAIL_CHARACTERS = 8192

_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_ANSWER_IS = re.compile(r"\banswer(?:[ \t]+(is)\b|[ \t]*[:=])[ \t]*:?", re.IGNORECASE)
# The end of a text that breaks off within the words that announce an answer.
_BEGUN = re.compile(
    r"(?:\bans(?:w(?:er?)?)?|\banswer[ \t]*(?:is?|[:=])?|\\f?b(?:ox?)?(?:ed?)?|#{1,4})[ \t]*$", re.IGNORECASE
)
_MARKUP = " \t\r\n*:`"
_SENTENCE_END = re.compile(r"\.(?=[\s`]|$)")
_LIST_ITEM = re.compile(r"\d+[.)] ")
_EXPLANATION = re.compile(r",? \(?(?:because|since)\b", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$([^$]{1,500})\$\$|\\\[(.{1,500}?)\\\]", re.DOTALL)
_INLINE_MATH = re.compile(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.{1,500}?)\\\)")
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)])[-−–])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?|\.\d+)")
# Words, no symbols, around a number; a capital beside it makes a name of both ("March 5", "Room 12").
_PROSE_BEFORE = re.compile(r"(?:(?:[A-Za-z][A-Za-z'’]*,? )*[a-z]+,? )?[-−–]?\\?\$?")
_PROSE_AFTER = re.compile(r"(?: ?\\?%)?,?(?: [a-z][a-z'’]*,?(?: [A-Za-z][A-Za-z'’]*,?)*)?")
# Words that may change the number beside them, or say that it is not the answer.
_NOT_PROSE = (NOT_UNITS - {"is", "are", "was", "of", "to", "for", "at", "with"}) | frozenset(
    "no never neither nor either maybe perhaps possibly but instead wait negative double twice triple from between "
    "nearly almost close around over under above below greater smaller larger fewer adding added multiple".split()
)
_LABEL_BEFORE = re.compile(r"\b(?:step|part|case|day|question|option|room) $", re.IGNORECASE)
_SHORT_WORDS = frozenset("a an as at be by he in is it my of on so to we".split())  # others are variables


def _lone_number(sentence: str) -> str:
    """The number of a sentence that is prose but for it ("Janet makes 18 dollars every day"). Any other as it is: a
    number with its unit, several numbers, a formula, words that may change the number ("half of 18") or hedge."""
    if len(sentence) > MAX_NUMBER_CHARACTERS or read_number(normalise(sentence), plain_words=True):
        return sentence
    numbers = list(_NUMBER_IN_TEXT.finditer(sentence))
    if len(numbers) != 1:
        return sentence
    before, after = sentence[: numbers[0].start()], sentence[numbers[0].end() :]
    if not (_PROSE_BEFORE.fullmatch(before) and _PROSE_AFTER.fullmatch(after)):
        return sentence
    words = re.findall(r"(?<!['’])\b[a-z]+", f"{before} {after}".lower())
    variables = [word for word in words if len(word) < 3 and word not in _SHORT_WORDS and word not in UNIT_NAMES]
    if variables or _NOT_PROSE.intersection(words) or _LABEL_BEFORE.search(before):
        return sentence
    unit = re.match(r" ([A-Za-z]+)", after)
    return numbers[0][0] + (unit[0] if unit and unit[1] in UNIT_NAMES and unit[1] != "in" else "")


def _announced(text: str, match: re.Match, end: int) -> tuple[str, bool] | None:
    """The answer that an "answer is" announces in the text up to `end`, the next of them, and whether it has a digit or
    a formula; None where it announces nothing."""
    line = text[match.end() : end].partition("\n")[0]
    rest = text[match.end() : end].lstrip(_MARKUP)
    later = not line.strip(_MARKUP)
    if display := _DISPLAY.match(rest):
        # A continuation, "or" another one, belongs to the answer.
        line = rest[: display.end()] + rest[display.end() :].partition("\n")[0]
    elif later:
        line = rest.partition("\n")[0]
    # Reasoning may begin on the line behind "answer:": only a bare answer is taken from there.
    unannounced = later and match.group(1) is None
    if unannounced and re.search(r"[\d\\$]", rest[len(line) :]):
        return None
    if display and line.strip(_MARKUP + ".,;") == display.group().strip():
        return "".join(filter(None, display.groups())).strip(), True
    listed = later and _LIST_ITEM.match(line)
    sentence = BOLD.sub("", line).strip() if listed else _SENTENCE_END.split(BOLD.sub("", line), 1)[0].strip()
    stated = _EXPLANATION.split(sentence, maxsplit=1)[0].strip()
    # An explanation that may name another answer is kept.
    sentence = sentence if _NOT_PROSE.intersection(re.findall(r"[a-z]+", sentence[len(stated) :])) else stated
    formulas = _INLINE_MATH.findall(sentence)
    if len(formulas) == 1:  # "the answer is the point $(1, 2)$, as shown"
        return "".join(formulas[0]).strip(), True
    sentence = sentence.strip("` ").rstrip(",;: ") or sentence
    prose = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,} | [A-Za-z]{2,}", sentence)
    if unannounced and (listed or (prose and not read_number(normalise(sentence), plain_words=True))):
        return None
    if re.search(r"[\d\\$]", sentence):
        return _lone_number(sentence), True
    return (sentence, False) if re.search(r"\w", sentence) else None


def _announcements(text: str) -> list[tuple[int, str]]:
    """(where it begins, the answer) of every "answer is" that announces one, in their order: of those with a digit or a
    formula behind them or, if there is none, of those with words."""
    matches = list(_ANSWER_IS.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    found = [(match.start(), _announced(text, match, end)) for match, end in zip(matches, ends)]
    given = [(start, *answer) for start, answer in found if answer]
    certain = any(is_certain for _, _, is_certain in given)
    return [(start, answer) for start, answer, is_certain in given if is_certain or not certain]


def extract_answer(text: str) -> str | None:
    r"""The answer a response states, as written, or None.

    Only the last `TAIL_CHARACTERS` characters are read. In this order:

    1. the content of the `\boxed{...}` (or `\fbox{...}`) that closes last, braces balanced, nested
       boxes included, or of several that name one answer together (see `find_boxes`); a box left
       open (a truncated response) is no answer, and neither is anything after its opening;
    2. the rest of the line after the last `####` (GSM8K);
    3. the rest of the sentence after the last "answer is", "answer:" or "answer =" that something with a digit or a
       formula follows, else that anything follows. Where its line ends there, a formula or a line that is only a number
       or a word may follow below. Of the sentence: not its explanation ("because", "since"); the one formula in it, if
       there is one; the one number in it, if all else is plain prose that neither changes it nor hedges;
    4. the last number in the text (integer, decimal or a/b, thousands commas and a minus sign of any kind allowed).

    Args:
      text: the response.

    Returns:
      The answer without surrounding blanks; None where there is none.
    """
    text = text[-TAIL_CHARACTERS:]
    content, end = find_boxes(text, alternatives=True)
    if content is not None:
        return content.strip() or None
    text = text[:end]
    matches = _HASHES.findall(text)
    if matches and matches[-1].strip():
        return matches[-1].strip()
    if announcements := _announcements(text):
        return announcements[-1][1]
    numbers = _NUMBER_IN_TEXT.findall(text)
    return numbers[-1] if numbers else None


def find_statement(text: str) -> int:
    r"""Where the text first states an answer by rule 1, 2 or 3 of `extract_answer`, complete or not; its length where
    it never does. A text that breaks off where a statement may have begun counts as one that states an answer there.
    """
    found = [match.start() for match in (BOX.search(text), _HASHES.search(text), _BEGUN.search(text)) if match]
    return min([*found, *(start for start, _ in _announcements(text)[:1]), len(text)])
