"""Grades a response to a multiple-choice question against the letter of the right option.

The letter is looked for in the forms in which models state one; whatever remains ambiguous ("A or B", a list of the
options without a conclusion) is no answer, so that hedging does not pay.
"""

import re

from ibtpo.errors import UserError
from ibtpo.rewards.math import BOX, TAIL_CHARACTERS, find_boxes

# Markup that may surround a letter: bold, dollar signs, quotes, LaTeX's delimiters and text commands.
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathbf|mathrm|mbox|boldsymbol)\s*\{([^{}]{0,200})\}")
_MARKUP = re.compile(r"\\[()\[\]]|[*_$`\"“”]")
# "(C)", "C)", "C.", "C"; the letter is a word of its own, and neither a contraction nor followed by another letter
# as in "A or B", which names no option.
_LETTER = r"\(?\s?([A-Ja-j])(?![\w'’])\s?\)?"
_OTHER = re.compile(r"\s*(?:,|/|&|or\b|and\b)\s*(?:(?:option|choice)\s)?\(?[A-J](?![\w'’])")
_STATED = re.compile(
    r"\b(?:answer|option|choice)[ \t]*(?:is|would be|should be|must be|will be)?[ \t]*[:=]?\s{0,4}"
    rf"(?:(?:the |an? )?(?:option|choice|letter|answer)\s)?{_LETTER}",
    re.IGNORECASE,
)
_CHOSEN = re.compile(rf"\bI(?:'d| would)? (?:choose|pick|select|go with) (?:option |choice )?{_LETTER}")
_ENTRY = re.compile(r"\s*(?:[-•]\s*)?\(?([A-J])[).:](?!\w)")
_ALONE = re.compile(r"(?<![\w'’.])(?<!not )(?<!not \()\(?([A-J])(?![\w'’])")
# A small letter, "A" and "I" are words of the language too: in prose they count only where a sentence could end.
_CONNECTOR = re.compile(r"\s*(?:$|[.,;:!?)}\]\n—-]|(?:because|since|as|for|which|based|due)\b)")


def _plain(text: str) -> str:
    return _MARKUP.sub("", _TEXT_COMMAND.sub(r"\1", text))


def _plain_places(text: str) -> list[int]:
    """Where in the text each character of `_plain(text)` stands."""
    places = list(range(len(text)))
    for pattern in (_TEXT_COMMAND, _MARKUP):
        kept, end = [], 0
        for match in pattern.finditer(text):
            kept += [*range(end, match.start()), *(range(*match.span(1)) if pattern.groups else ())]
            end = match.end()
        kept += range(end, len(text))
        text, places = "".join(text[i] for i in kept), [places[i] for i in kept]
    return places


def _accepted(match: re.Match, text: str) -> str | None:
    """The letter of a match, or None where it is a word of prose or one of several letters."""
    letter, end = match.group(1), match.end()
    enclosed = match.group().rstrip().endswith(")")
    if _OTHER.match(text, end):
        return None
    if not enclosed and (letter.islower() or letter in "AI") and not _CONNECTOR.match(text, end):
        return None
    return letter.upper()


def _stated(text: str) -> tuple[bool, str | None]:
    """Whether the text states an answer by a letter, and the letter of the last such statement if it is one."""
    found = [*_STATED.finditer(text), *_CHOSEN.finditer(text)]
    for match in sorted(found, key=lambda m: m.start(1), reverse=True):
        letter = _accepted(match, text)
        if letter or _OTHER.match(text, match.end()):
            return True, letter
    return False, None


def _of_last_line(text: str) -> str | None:
    """The last letter that stands alone in the last line, unless that line is an entry of a list of options."""
    lines = [line for line in text.splitlines() if line.strip()][-2:]
    if not lines:
        return None
    if len(lines) == 2 and _ENTRY.match(lines[0]) and _ENTRY.match(lines[1]):
        return None
    line = lines[-1]
    matches = list(_ALONE.finditer(line))
    if len(matches) > 1 and _OTHER.match(line, matches[-2].end()):
        return None
    for match in reversed(matches):
        rest = line[match.end() :]
        if match.group(1) not in "AI" or rest.startswith(")") or _CONNECTOR.match(rest):
            return match.group(1)
    return None


def _of_box(content: str) -> tuple[bool, str | None]:
    r"""Whether a \boxed{} holds letters, and the letter if it is one: alone, or before the option's text ("C. 5 m/s",
    "(C) because")."""
    text = _plain(content).strip()
    match = re.match(rf"(?:(?:option|choice|answer)\s*:?\s*)?{_LETTER}(?=$|[\s.:,)])", text, re.IGNORECASE)
    if match is None or _OTHER.match(text, match.end()):
        return match is not None, None
    rest = text[match.end() :].strip()
    # "C" and "(C) text" are letters, "c + 1" and "A exp(-t)" are formulas.
    named = match.group().rstrip().endswith(")") or not rest or rest[0] in ".:,"
    return named, match.group(1).upper() if named else None


def extract_answer(text: str) -> str | None:
    r"""The letter that a response chooses, A to J, or None.

    Only the last `TAIL_CHARACTERS` characters are read. In this order:

    1. the complete \boxed{...} that closes last, if it holds a letter (several letters are none);
    2. the last "answer is C", "Answer: (C)", "correct option is **C**", "I choose C" and the like;
    3. the last letter that stands alone in the last line ("**C**", "(C)", "C. 5 m/s", "so C is right").
    """
    text = text[-TAIL_CHARACTERS:]
    content, end = find_boxes(text, alternatives=True)
    settled, letter = _of_box(content) if content is not None else (False, None)
    if settled:
        return letter
    text = _plain(text[:end])
    settled, letter = _stated(text)
    return letter if settled else _of_last_line(text)


def find_statement(text: str) -> int:
    r"""Where the text first states an answer by rule 1 or 2 of `extract_answer`, or opens a box; its length where it
    never does."""
    plain = _plain(text)
    found = [
        match.start()
        for pattern in (_STATED, _CHOSEN)
        for match in pattern.finditer(plain)
        if _accepted(match, plain) or _OTHER.match(plain, match.end())
    ]
    start = _plain_places(text)[min(found)] if found else len(text)
    box = BOX.search(text)
    return min(start, box.start()) if box else start


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
