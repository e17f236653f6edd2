"""Finds the answer that a response states: in a box, behind ####, after "answer is", or as its last number."""

import re

from ibtpo.rewards.math.boxes import BOX, find_boxes
from ibtpo.rewards.math.lastnumber import last_number
from ibtpo.rewards.math.numbers import read_number
from ibtpo.rewards.math.sentences import CHANGING, INLINE_MATH, value_of_sentence
from ibtpo.rewards.math.spelling import BOLD, normalise
from ibtpo.rewards.math.unfinished import begins_a_part
from ibtpo.rewards.thinking import visible_start

TAIL_CHARACTERS = 8192

_HASHES = re.compile(r"####+[ \t]*([^\n]+)")
_HASHES_BEGIN = re.compile(r"####+")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>")
_TAGS = re.compile(r"</?answer>")
_ANSWER_IS = re.compile(r"\banswers?(?:[ \t]+(is|are)\b|[ \t]*[:=])[ \t]*:?", re.IGNORECASE)
# The end of a text that breaks off within the words that announce an answer.
_BEGUN = re.compile(
    r"(?:\bans(?:w(?:er?)?)?|\banswer[ \t]*(?:is?|[:=])?|\\f?b(?:ox?)?(?:ed?)?|#{1,4}|"
    r"<a(?:n(?:s(?:w(?:e(?:r>?)?)?)?)?)?)[ \t]*$",
    re.IGNORECASE,
)
_MARKUP = " \t\r\n*:`"
_SENTENCE_END = re.compile(
    r"(?<!\bi\.e)(?<!\be\.g)(?<!\b[ap]\.m)(?<!\.)\.(?=[\s`]|$)|。|(?<=\b[ap]\.m)\.(?=\s+[A-Z]|$)"  # not of "i.e. 5"
)
_LIST_ITEM = re.compile(r"\d+[.)] ")
_EXPLANATION = re.compile(r",? \(?(?:because|since)\b", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$([^$]{1,500})\$\$|\\\[(.{1,500}?)\\\]", re.DOTALL)
# A remark on an answer, not one: "this answer is consistent with the 12 apples".
_REMARK = re.compile(
    r"(?:\s|also|indeed|thus|therefore|clearly|not|very|fully|quite|obviously|then)*"
    r"(?:consistent|correct|right|based|reasonable|plausible|valid|verified|confirmed|supported|derived|obtained|found"
    r"|checked|sensible|unique|independent|accurate|justified|expected|rounded|close|within|in (?:line|agreement|the)"
    r"|because|since|clear|complete|explained|dependent|determined)\b", re.IGNORECASE
)  # fmt: skip
# Before "answer is", in its clause: nothing is stated.
_DISCLAIMED = re.compile(
    r"\b(?:maybe|perhaps|possibly|unlikely|(?<!no )(?<!a )(?<!any )doubt)\b|"
    r"(?:\b(?:not|never|neither|nor)|n['’]t)(?:\s+(?:true|correct|right|sure|certain|clear|likely|possible|case|know|think|"
    r"believe|suppose|say|mean|imply|claim|follow|that|whether|if|the|my|an?|final|yet|really|necessarily))*\s*\Z|"
    r"\b(?:if|whether|unless|wrong|incorrect|false|tempting|naive)(?: the| my| our)?(?: final| correct)? *\Z",
    re.IGNORECASE,
)
_TURN = re.compile(r"\b(?:but|so|hence|thus|therefore)\b", re.IGNORECASE)


def _disclaimed(text: str, start: int) -> bool:
    """Whether the clause before an announcement denies or doubts it: "I don't think the answer is"."""
    clause = text[max(0, start - 80) : start]
    clause = clause[max(map(clause.rfind, ".!?;:,\n")) + 1 :]
    if not _DISCLAIMED.search(clause):
        return False
    begin = max((match.end() for match in _TURN.finditer(clause)), default=0)
    return _DISCLAIMED.search(clause, begin) is not None


def _announced(text: str, match: re.Match, end: int, truncated: bool) -> tuple[str, bool] | None:
    """The answer that an "answer is" announces in the text up to `end`, the next of them, and whether it has a digit or
    a formula; None where it announces nothing. truncated: whether more of the text would have come."""
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
    if unannounced and (truncated or re.search(r"[\d\\$]", rest[len(line) :])):
        return None
    if display and line.strip(_MARKUP + ".,;") == display.group().strip():
        return "".join(filter(None, display.groups())).strip(), True
    listed = later and _LIST_ITEM.match(line)
    sentence = BOLD.sub("", line).strip() if listed else _SENTENCE_END.split(BOLD.sub("", line), 1)[0].strip()
    stated = _EXPLANATION.split(sentence, maxsplit=1)[0].strip()
    # An explanation that may name another answer is kept.
    sentence = sentence if CHANGING.intersection(re.findall(r"[a-z]+", sentence[len(stated) :])) else stated
    if INLINE_MATH.search(sentence):
        return value_of_sentence(sentence), True
    sentence = sentence.strip("` ").rstrip(",;: ") or sentence
    prose = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2,} | [A-Za-z]{2,}", sentence)
    if unannounced and (listed or (prose and not read_number(normalise(sentence)))):
        return None
    if re.search(r"[\d\\$]", sentence):
        return value_of_sentence(sentence), True
    return (sentence, False) if re.search(r"\w", sentence) else None


def _announcements(text: str, truncated: bool = False) -> list[tuple[int, str]]:
    """(where it begins, the answer) of every "answer is" that announces one, in their order: of those with a digit or a
    formula behind them or, if there is none, of those with words. Remarks on an answer count where nothing else does.
    """
    matches = list(_ANSWER_IS.finditer(text))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    found = [
        (match, None if _disclaimed(text, match.start()) else _announced(text, match, end, truncated))
        for match, end in zip(matches, ends)
    ]
    remarks = [bool(match.group(1) and _REMARK.match(text, match.end())) for match in matches]
    given = [(match.start(), *answer, remark) for (match, answer), remark in zip(found, remarks) if answer]
    for certain, remark in ((True, False), (False, False), (True, True), (False, True)):
        if chosen := [(start, answer) for start, answer, *kind in given if kind == [certain, remark]]:
            return chosen
    return []


def _behind_hashes(text: str, truncated: bool = False) -> str | None:
    """The answer of the last line with #### that is nothing but one. A heading is none: a number with a unit or words
    are an answer only in the last line of the text, and the number of an item that others come before is none."""
    for match in reversed(list(_HASHES.finditer(text))[-50:]):
        line = BOLD.sub("", match.group(1)).strip(" \t*`#")
        if not line or len(line) > _LINE_CHARACTERS or _ANSWER_IS.search(line):
            continue
        last = not truncated and not text[match.end() :].strip()
        plain = normalise(line)
        if item := _ITEM.fullmatch(line):
            start = text.index(item.group(1), match.start(1))
            if begins_a_part(text, start, start + len(item.group(1))):
                continue
        if not re.search(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", plain)) and (
            last or not re.match(r"\d+[.)]?\s*$|[A-Z]$", plain) or re.fullmatch(r"[-\d.,/]+", plain)
        ):
            return line
        if last:
            return line
    return None


_LINE_CHARACTERS = 300
_ITEM = re.compile(r"(\d{1,2})[.):]")
# Where a sentence is certain to be complete, although the text breaks off later: "18." may become 18.5.
_COMPLETE = re.compile(rf"\n|(?:{_SENTENCE_END.pattern})(?=\s)|(?<=[^\s\d])\.$")
_BRACES = re.compile(r"\\[\\{}]|[{}]")


def extract_answer(text: str) -> str | None:
    r"""The answer a response states, as written, or None.

    Nothing before the last `</think>` is read, and nothing at all while a `<think>` is open; of the rest, only the last
    `TAIL_CHARACTERS` characters; of these only what the last `<answer> ... </answer>` holds, if there is one: all of it
    if it is a line without any of 1 to 3. In this order:

    1. the content of the `\boxed{...}` (or `\fbox{...}`) that closes last and is not empty, braces balanced, nested
       boxes included, or of several that name one answer together (see `find_boxes`); a box left open (a truncated
       response) is no answer, and neither is anything after its opening;
    2. the rest of the last line with `####` (GSM8K) that is nothing but an answer; headings are none;
    3. the rest of the sentence after the last "answer is", "answer:" or "answer =" that something with a digit or a
       formula follows, else that anything follows. Where its line ends there, a formula or a line that is only a number
       or a word may follow below. Of the sentence: not its explanation ("because", "since"); the value it gives, if all
       else is plain prose that neither changes it nor hedges (see `sentences`);
    4. the last number in the text, with the formula that it is a part of (see `lastnumber`); none where the text breaks
       off, or begins a step without one.

    Of a response that was cut off, read `before_cut` instead.

    Args:
      text: the response.

    Returns:
      The answer without surrounding blanks; None where there is none.
    """
    text = text[visible_start(text) :][-TAIL_CHARACTERS:]
    if "<answer>" in text:
        return _of_tags(text)
    return _of_text(text)


def _of_tags(text: str) -> str | None:
    """The answer of the last <answer> ... </answer>, of two with nothing but "or" or "and" between them both."""
    tags = list(_TAG.finditer(text, 0, text.rfind("</answer>") + len("</answer>")))  # each that is opened is closed
    if not tags:
        return _of_text(_TAGS.sub(" ", text))
    first = len(tags) - 1
    while first and re.fullmatch(r"\W*(?:or|and)\W*", text[tags[first - 1].end() : tags[first].start()]):
        first -= 1
    contents = dict.fromkeys(tag.group(1).strip() for tag in tags[first:])
    content = ", ".join(contents)
    bare = "\n" not in content and len(content) <= _LINE_CHARACTERS and not _HASHES.search(content)
    if bare and not BOX.search(content) and not _ANSWER_IS.search(content):
        return (value_of_sentence(content) if len(contents) == 1 else content) or None
    return _of_text(content)


def _of_text(text: str) -> str | None:
    """The answer of a text without tags."""
    content, end = find_boxes(text, alternatives=True)
    if content is not None:
        return content.strip() or None
    text = text[:end]
    if line := _behind_hashes(text):
        return line
    if announcements := _announcements(text):
        return announcements[-1][1]
    return last_number(text)


def find_statement(text: str) -> int:
    r"""Where the text first states an answer by rule 1, 2 or 3 of `extract_answer`, complete or not; its length where
    it never does, or is still thinking. A text that breaks off where a statement may have begun counts as one that
    states an answer there.
    """
    start = visible_start(text)
    seen = text[start:]
    found = [match.start() for pattern in (BOX, _HASHES, _OPEN_TAG, _BEGUN) if (match := pattern.search(seen))]
    return start + min([*found, *(begin for begin, _ in _announcements(seen)[:1]), len(seen)])


def before_cut(text: str) -> str:
    r"""What a response that was cut off by its length limit states, as a text of its own, `\boxed{18}`; "" where it
    states nothing.

    It states what rules 1 to 3 of `extract_answer` find and was complete before the cut: closed tags, a closed box, a
    line behind `####` with its line break, a sentence with "answer is" and its end, the blank included behind a digit,
    since "18" may become 180 and "18." may become 18.5. A last number is no statement. Where another statement was
    begun and what there is of it says something else ("The answer is 5. No, the answer is 1"), nothing is stated.
    """
    seen = text[visible_start(text) :][-TAIL_CHARACTERS:]
    answer, end = _complete_statement(seen)
    if not answer or _unbalanced(answer) or _contradicts(seen[end:], answer):
        return ""
    return rf"\boxed{{{answer}}}"


def _complete_statement(seen: str) -> tuple[str | None, int]:
    """The last statement of a text cut off that is complete, and where the rest of the text begins."""
    closed = seen.rfind("</answer>") + len("</answer>")
    if closed > len("</answer>") and _TAG.search(seen, 0, closed):
        return _of_tags(seen[:closed]), closed
    content, end = find_boxes(seen, alternatives=True)
    if content is not None:
        return content.strip(), end
    seen = _OPEN_TAG.sub(" " * len("<answer>"), seen[:end])
    if line := _behind_hashes(seen[: seen.rfind("\n") + 1], truncated=True):
        return line, seen.rfind("\n") + 1
    end = max((match.end() for match in _COMPLETE.finditer(seen)), default=0)
    announcements = _announcements(seen[:end], truncated=True)
    return (announcements[-1][1] if announcements else None), end


def _unbalanced(text: str) -> bool:
    """Whether braces of a text do not match, so that no box can hold it."""
    depth = 0
    for brace in _BRACES.findall(text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return True
    return depth != 0


def _contradicts(rest: str, answer: str) -> bool:
    """Whether the rest of a text begins another statement, of which what is there does not begin the answer."""
    patterns = (_HASHES_BEGIN, _OPEN_TAG, _ANSWER_IS, *([BOX] if "box" in rest else []))  # BOX is slow where it is not
    begun = [match.end() for pattern in patterns for match in pattern.finditer(rest)]
    if not begun:
        return False
    plain, partial = (re.sub(r"[^\w.,/%-]", "", part).lower() for part in (answer, rest[max(begun) :]))
    return not plain.startswith(partial.rstrip(".,"))
