"""Grades a response to a multiple-choice question against the letter of the right option.

The letter is looked for in the forms in which models state one. What remains ambiguous ("A or B", a list of the options
without a conclusion), denied ("D is excluded") or a name in prose ("vitamin C") is no answer, so that hedging does not
pay; `letters.py` tells these apart.
"""

import re
from collections.abc import Iterator

from ibtpo.errors import UserError
from ibtpo.rewards import letters
from ibtpo.rewards.letters import CONNECTOR
from ibtpo.rewards.math import BOX, TAIL_CHARACTERS, find_boxes
from ibtpo.rewards.thinking import visible_start

# Markup that may surround a letter: bold, dollar signs, quotes, tags, LaTeX's delimiters and text commands.
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox|boldsymbol)\s*\{([^{}]{0,200})\}")
_MARKUP = re.compile(r"\\[()\[\]]|[*_$`\"“”«»]|</?(?:answer|final_answer|b|strong|em)>")
_QUOTED = re.compile(r"(?<![\w'‘])['‘](\(?[A-Ja-j]\)?)['’](?![\w'’])")
_PLAIN = (_TEXT_COMMAND, _MARKUP, _QUOTED)
# "(C)", "C)", "C.", "C"; the letter is a word of its own, and no contraction, name ("D-glucose", "C++") or formula.
_LETTER = r"[(\[<{]? ?([A-Ja-j])(?![\w'’^+=]|[-–][a-z\d]) ?[)\]>}]?"
_SURELY = (
    r"(?:(?:therefore|thus|then|hence|clearly|obviously|definitely|certainly|surely|indeed|(?:most\s+|very\s+)?likely|"
    r"probably|simply|just|actually|really|in\s+fact|of\s+course|for\s+sure|without\s+(?:a\s+|any\s+)?doubt|again|still|"
    r"now|finally|only|undoubtedly|necessarily),?\s+)"
)
_NOUN = r"(?:option|choice|letter|answer)"
_BE = rf"(?:(?:is|=)(?!\w)|(?:would|should|must|will|has\s+to)\s+{_SURELY}?be\b)"
# "answer is C", "option: C", "answer - C"; without such a link only under a heading, in a line of its own, or after
# "correct" ("the correct option C"): "option C needs more energy" states nothing.
_STATED = re.compile(
    rf"\b(?:answers?|option|choice|(?<=my )(?:pick|guess)|(?:^|(?<=\n))[*# ]*correct(?=\s*:))"
    rf"(?:\s+(?:choice|option|letter))?(?:\s+to\s+(?:this|the)\s+(?:question|problem))?[ \t]*"
    rf"(?:{_BE}[ \t]*[:=]?|:|=|[-–—]+>?[ \t]|→)\s{{0,4}}{_SURELY}?"
    rf"(?:(?:the\s+|an?\s+)?(?:correct\s+)?{_NOUN}\s+)?{_LETTER}",
    re.IGNORECASE,
)
_HEADED = re.compile(
    rf"(?:^|\n)[#\s]{{0,8}}(?:(?:the|my)\s+)?(?:final\s+|correct\s+)?answer(?:[ \t]*:?[ \t]*\n\s{{0,4}}|[ \t]+)"
    rf"(?:{_NOUN}\s+)?{_LETTER}(?=[ \t]*[.!]?[ \t]*(?:\n|$))|"
    rf"\b(?:correct|right|best|final)\s+(?:answer|option|choice)\s+{_LETTER}(?=\s*(?:[.,;!\n]|$))",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    rf"\b(?:[Ll]et['’]?s|[Ll]et us|(?:I|we)(?:['’](?:d|ll|m)|\s+(?:would|will|am))?)\s+{_SURELY}?"
    rf"(?:choos(?:e|ing)|chose|pick|select|go(?:ing)?\s+(?:with|for)|say|answer)\s+(?:the\s+)?(?:{_NOUN}\s+)?{_LETTER}"
)
_IT_IS = re.compile(
    rf"(?:^|(?<=[.,;:!?\n—] )|(?<=\n)|\b(?:so|hence|thus|therefore|then|but|that)\s+)(?:it|this)(?:['’]s|\s+{_BE})\s+"
    rf"{_SURELY}?(?:{_NOUN}\s+)?[(]?([A-J])(?![\w'’^])[)]?(?=\s*(?:[.,;!\n]|$))",
    re.IGNORECASE,
)
# What is said of the right option.
_RIGHT = (
    rf"(?:is|are|must\s+be|has\s+to\s+be)\s+{_SURELY}?(?P<also>also\s+|both\s+|equally\s+)?(?:(?:the\s+)?(?:only\s+|single\s+)?"
    r"(?:(?:most\s+)?(?:correct|right)|(?:the\s+)?(?:best|most\s+\w+)(?=\s+(?:answer|option|choice)))(?:\s+(?:answer|option|"
    r"choice|one))?|(?:the|our|my)\s+(?:only\s+|final\s+)?(?:answer|choice|(?<=only\s)(?:option|one)))(?![-\w])(?!\s+(?:of|about|in|to|side|hand|angle|"
    r"if|only|unless|when|for|next|triangle)\b)"
)
_RIGHT_OPTION = re.compile(rf"(?<![\w'’.°]){_LETTER}\s+{_RIGHT}")
_NO_LETTER = re.compile(
    r"(?:^|\n)\W{0,8}(?:(?:the|my)\s+)?(?:final\s+|correct\s+)?answer[ \t]*(?:is|:)[ \t]*(?:unknown|unclear|uncertain|"
    r"undetermined|undefined|none|n/?a|not\s+(?:sure|known|clear)|cannot\s+be\s+determined)[ \t]*[.!]?[ \t]*(?=\n|$)",
    re.IGNORECASE,
)
_OTHER_NOUN = re.compile(
    r"\b(?:wrong|incorrect|false|other|another|tempting|naive|common|alternative|second|no|bad|worst)\s+$",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"\s*(?:[-•]\s*)?\(?([A-J])[).:](?!\w)")
_INLINE_ENTRY = re.compile(r"(?:^|(?<=\s))\(?([A-J])[).:](?=\s+\S)")
_ALONE = re.compile(r"(?<![\w'’.°^\\])(\(\s?)?([A-J])(?![\w'’^])(\s?\))?")
_REMAINS = re.compile(rf"\s+(?:{_RIGHT}|(?:alone\s+)?(?:remains|is\s+left|stays|fits|works|wins|alone\b))")
# The word before a letter in a conclusion; any other makes it a name, as in "vitamin C" or "reacts with D".
_BEFORE = frozenset(
    "is be it's its that's so thus hence therefore then only just choose chose chosen choosing pick picked select "
    "selected option choice answer letter say leaves leaving conclude definitely clearly certainly surely obviously "
    "probably likely indeed simply mark that and but because since as while".split()
)
_BEFORE_ENCLOSED = _BEFORE | frozenset("matches match to equals gives yields with by namely fits in at has".split())
_NOT_NAMED = re.compile(
    r"\b(?:(?:might|may|could|can)\s+(?:\w+\s+)?be|(?:all|none|(?:any|every|no)thing|nobody|any)\s+but)\s*$",
    re.IGNORECASE,
)
# "it is C", but not "the field is B".
_SUBJECT = re.compile(
    r"(?:\b(?:it|this|that|which|what|answer|option|choice|one|statement|solution|conclusion|letter|left|remaining|remains|"
    r"possibility|candidate)\b\s+(?:\w+\s+){0,2}(?:is|be)|^\s*(?:must\s+)?(?:is|be))\s*$",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"([\w°'’]+)\s*\Z")
# A box that speaks of letters and names none.
_BOX_WITHOUT = re.compile(r"(?i:either|both|neither|not|no|\\l?n(?:eg|ot)|¬)(?![a-z]).*(?<!\w)[A-J](?!\w)")
_BARE = re.compile(r"\s*\(?([a-j])\)?[.:]?\s*")
_OPENING = re.compile(r"\s*([A-HJ])\s+([A-Z0-9][^\n.!?]{0,60})(?:\n|$)")
_COMPLETE = re.compile(r"\n|[.!?](?=\s|$)")
_MAX_ALONE = 30  # letters in a line that concludes something
_MAX_OPENING = 100  # characters of a response that is a letter and its option's text


def _plain(text: str) -> str:
    for pattern in _PLAIN:
        text = pattern.sub(r"\1" if pattern.groups else "", text)
    return text


def _plain_places(text: str) -> list[int]:
    """Where in the text each character of `_plain(text)` stands."""
    places = list(range(len(text)))
    for pattern in _PLAIN:
        kept, end = [], 0
        for match in pattern.finditer(text):
            kept += [*range(end, match.start()), *(range(*match.span(1)) if pattern.groups else ())]
            end = match.end()
        kept += range(end, len(text))
        text, places = "".join(text[i] for i in kept), [places[i] for i in kept]
    return places


def _without_boxes(text: str) -> str:
    """The text with a mark in place of each complete box: what stands in one that names no option is no letter."""
    kept, end = [], 0
    while match := BOX.search(text, end):
        depth, place = 1, match.end()
        for brace in re.finditer(r"\\.|[{}]", text[place:]):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if not depth:
                place += brace.end()
                break
        kept += [text[end : match.start()], "□"]
        end = place
    return "".join([*kept, text[end:]])


def _is_prose(letter: str, matched: str, text: str, end: int) -> bool:
    """Whether a letter is a word of the language: small, "A" or "I", and within a clause."""
    enclosed = matched.rstrip().endswith(")")
    return not enclosed and (letter.islower() or letter in "AI") and not CONNECTOR.match(text, end)


def _statements(text: str) -> Iterator[tuple[int, int, str | None]]:
    """(start, place of the letter, letter) of what states an answer, in no order; the letter is None where several are
    named, or the answer is said to be unknown."""
    for pattern in (_STATED, _HEADED, _CHOSEN, _IT_IS):
        for match in pattern.finditer(text):
            group = match.lastindex or 1
            letter, place, end = match[group], match.start(group), match.end()
            if letters.list_behind(text, letter, match.end(group))[1]:
                yield match.start(), place, None
            elif not (
                _is_prose(letter, match.group(), text, end)
                or _OTHER_NOUN.search(text[max(0, match.start() - 20) : match.start()])
                or letters.denied(text, match.start(), end)
                or letters.supposed(text, match.start(), end)
            ):
                yield match.start(), place, letter.upper()
    for match in _RIGHT_OPTION.finditer(text):
        letter, start = match[1], match.start()
        word = _WORD_BEFORE.search(text[max(0, start - 20) : start])
        if letter.islower() or (word and word[1].lower() not in _BEFORE):
            continue
        if letters.denied(text, start, match.end()) or letters.supposed(text, start, match.end()):
            continue
        several = match["also"] or match[0][match.end(1) - start :].lstrip(")] ").startswith("are")
        yield start, match.start(1), None if several or letters.listed_before(text, letter, start) else letter
    for match in _NO_LETTER.finditer(text):
        yield match.start(), match.start(), None


def _stated(text: str) -> tuple[bool, str | None]:
    """Whether the text states an answer by a letter, and the letter of the last such statement, if it is one and is not
    taken back."""
    _, place, letter = max(_statements(text), key=lambda statement: statement[1], default=(0, -1, None))
    if letter is None:
        return place >= 0, None
    for match in _ALONE.finditer(text, place + 1):
        if match[2] == letter and letters.denied(text, match.start(), match.end()):
            return True, None
    return True, letter


def _names_option(line: str, match: re.Match) -> bool:
    """Whether a letter of a conclusion is that of an option: where a clause or a label begins or after a word such as
    "is", at the end of a clause or said to be right, and neither denied nor asked."""
    start, end, enclosed = match.start(), match.end(), bool(match[1] and match[3])
    before = line[max(0, start - 60) : start]
    if word := _WORD_BEFORE.search(before):
        if word[1].lower().replace("’", "'") not in (_BEFORE_ENCLOSED if enclosed else _BEFORE):
            return False
        if not enclosed and word[1].lower() in ("is", "be") and not _SUBJECT.search(before):
            return False
    if _NOT_NAMED.search(before) or re.match(r"\s?but\b", line[end:]):
        return False
    labelled = bool(match[3]) and not letters.VERB.match(line, end)
    place, _ = letters.list_behind(line, match[2], end)
    if place > end:
        # Where a verb follows, letters in a row are its subject.
        labelled = not letters.VERB.match(line, place)
    if not (labelled or CONNECTOR.match(line, end) or _REMAINS.match(line, end)):
        return False
    denied = letters.denied(line, start, place) or letters.denied(line, start, end)
    return not (denied or letters.supposed(line, start, end))


def _of_last_line(text: str) -> str | None:
    """The one letter that the last line names, unless that line is an entry of a list of options, or a list itself."""
    lines = [line for line in text.splitlines() if line.strip()][-2:]
    if not lines or (len(lines) == 2 and _ENTRY.match(lines[0]) and _ENTRY.match(lines[1])):
        return None
    line = lines[-1]
    entries = {m[1] for m in _INLINE_ENTRY.finditer(line) if not letters.VERB.match(line, m.end())}
    alone = list(_ALONE.finditer(line))
    named = set()
    for match in alone if len(alone) <= _MAX_ALONE else ():
        if letters.listed_before(line, match[2], match.start()) or not _names_option(line, match):
            continue
        if letters.list_behind(line, match[2], match.end())[1]:
            return None
        named.add(match[2])
    return named.pop() if len(named) == 1 and (len(entries) < 2 or entries == named) else None


def _of_opening(text: str) -> str | None:
    """The letter of a short response that begins with it and its option's text, "A Peter"."""
    match = _OPENING.match(text)
    if match is None or len(text) > _MAX_OPENING or len(match[2].split()) > 4:
        return None
    rivals = {m[2] for m in _ALONE.finditer(text) if not _is_prose(m[2], m[0], text, m.end())}
    return match[1] if rivals <= {match[1]} else None


def _of_box(content: str) -> tuple[bool, str | None]:
    r"""Whether a \boxed{} holds letters, and the letter if it is one: alone, or before the option's text ("C. 5 m/s",
    "(C) because")."""
    text = " ".join(_plain(content).split())
    match = re.match(rf"(?:(?:option|choice|answer)\s*:?\s*)?{_LETTER}(?=$|[^\w+*^=-])", text, re.IGNORECASE)
    if match is None:
        return _BOX_WITHOUT.match(text) is not None, None
    letter, end = match[1], match.end()
    place, several = letters.list_behind(text, letter, match.end(1))
    if several or letters.denied(text, 0, end) or letters.supposed(text, 0, end):
        return True, None
    rest = text[max(end, place) :].strip()
    # "C" and "(C) text" are letters, "c + 1" and "A exp(-t)" are formulas.
    named = match.group().rstrip().endswith(")") or not rest or rest[0] in ".:,"
    return named, letter.upper() if named else None


def extract_answer(text: str) -> str | None:
    r"""The letter that a response chooses, A to J, or None.

    Nothing before the last `</think>`, or behind a `<think>` left open, is read, and of the rest only the last
    `TAIL_CHARACTERS` characters. In this order:

    1. the complete \boxed{...} that closes last, if it holds a letter (several letters, or one denied, are none);
    2. the last "answer is C", "Answer: (C)", "I choose C", "option **C** is correct" and the like that is asserted:
       not asked, denied or conditional; none where it names several letters or is taken back later ("C is wrong");
    3. the one letter that the last line names ("**C**", "(C)", "C. 5 m/s", "so C is right");
    4. a small letter that is all of the response, or the letter that a short response begins with, before its option's
       text ("A Peter").
    """
    text = text[visible_start(text) :][-TAIL_CHARACTERS:]
    content, end = find_boxes(text, alternatives=True)
    settled, letter = _of_box(content) if content is not None else (False, None)
    if settled:
        return letter
    text = _plain(_without_boxes(text[:end]))
    if bare := _BARE.fullmatch(text):
        return bare.group(1).upper()
    settled, letter = _stated(text)
    return letter if settled else _of_last_line(text) or _of_opening(text)


def before_cut(text: str) -> str:
    r"""What a response that was cut off by its length limit states, `\boxed{C}`, or "": a box, or what rule 2 of
    `extract_answer` finds in a sentence that was complete, unless a later sentence began to name another letter."""
    seen = text[visible_start(text) :][-TAIL_CHARACTERS:]
    content, end = find_boxes(seen, alternatives=True)
    if content is not None:
        settled, letter = _of_box(content)
        if settled:
            begun = re.match(r"\s*\(?([A-Ja-j])(?!\w)", _plain(BOX.sub("", seen[end:], count=1)))
            other = begun is not None and begun.group(1).upper() != letter
            return "" if letter is None or other else rf"\boxed{{{letter}}}"
    plain = _plain(_without_boxes(seen[:end]))
    complete = plain[: max((match.end() for match in _COMPLETE.finditer(plain)), default=0)]
    _, letter = _stated(complete)
    return rf"\boxed{{{letter}}}" if letter and _stated(plain) == (True, letter) else ""


def find_statement(text: str) -> int:
    r"""Where the text, behind its thinking, first states an answer by rule 1 or 2 of `extract_answer` or opens a box;
    its length where it never does."""
    begin = visible_start(text)
    visible = text[begin:]
    found = [start for start, _, _ in _statements(_plain(visible))]
    start = _plain_places(visible)[min(found)] if found else len(visible)
    box = BOX.search(visible)
    return begin + (min(start, box.start()) if box else start)


def reward(text: str, reference: str) -> float:
    """1.0 if the response chooses the reference's letter, 0.0 otherwise; see `extract_answer`.

    Raises:
      UserError: the reference is no letter from A to J.
    """
    match = re.fullmatch(r"\(?([A-J])\)?", reference.strip())
    if match is None:
        raise UserError(
            f"the reference answer of a multiple-choice question is {reference!r}: expected one letter from A to J; "
            "check data.answer_field"
        )
    return float(extract_answer(text) == match.group(1))


fast_reward = reward
