r"""Finds answers in \boxed{...}, however deep their braces go."""

import re

BOX = re.compile(r"(?<!\\)(?:\\\\)*\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\[\\{}]|[{}]")
# Between boxes that name one answer: a comma, "and", a wide space or the number of a list's next item, with a name or
# not. Blanks alone join nothing.
_BLANK = r"(?:[\s$*~]|\\[()\[\]! ]|\\\\)"
_LINK = r"(?:[,;]|\band\b|\\q?quad(?![a-zA-Z])|\\[,;:]|\\text\s?\{\s?,?\s?and\s?\}|(?<=\n)\s*(?:[-*]|\d{1,2}[.)])(?= ))"
_NAME = r"(?:[a-zA-Z](?:_\{?\w{1,3}\}?)?\s*=\s*)?"
_JOINT = re.compile(rf"{_BLANK}*(?:{_LINK}{_BLANK}*)+{_NAME}{_BLANK}*")
# Between boxes of which one is to be right.
_ALTERNATIVE = re.compile(
    r"\b(?:or|alternatively|maybe|perhaps|possibly|vs|versus)\b|[/|]|\\l?or\b|\\vee\b", re.IGNORECASE
)
# Behind each of two boxes: one for each case.
_CASE = re.compile(r"[\s$]*(?:,\s*|\()?(?:if|when|for|where|in case|otherwise|else)\b")
_SENTENCE_END = re.compile(r"(?<!\bvs)[.!?](?:\s|\$|$)|\n\s*\n|\bhence\b|\bso\b|\bthus\b|\btherefore\b", re.IGNORECASE)
_EMPTY = re.compile(r"(?:\s|\\[,;:! ]|~|\.\.\.|\\[lc]?dots|\\(?:text|ldots)\s*\{\s*\}|\\q?quad)*")
_MAX_JOINT_CHARACTERS = 60


def _joins(gap: str, behind: str, alternatives: bool) -> bool:
    """Whether the text between two boxes and behind the second makes them one answer, or two of which one is meant."""
    if len(gap) > _MAX_JOINT_CHARACTERS:
        return False
    if _JOINT.fullmatch(gap):
        return True
    if not alternatives or _SENTENCE_END.search(gap):
        return False
    return _ALTERNATIVE.search(gap) is not None or (_CASE.match(gap) is not None and _CASE.match(behind) is not None)


def first_box(text: str) -> re.Match | None:
    """The first match of BOX, which is slow to search for in a text without one."""
    begin = text.find("box")
    if begin < 0:
        return None
    while begin and text[begin - 1] in "f\\":
        begin -= 1
    return BOX.search(text, begin)


def find_boxes(text: str, *, alternatives: bool = False) -> tuple[str | None, int]:
    r"""The content of the last complete \boxed{...} (or \fbox, \box), None without one; and where the first box left
    open begins, the length of the text if none is. Braces balance; escaped ones do not count.

    Boxes with nothing but a comma, a wide space or "and" between them ("$x=\boxed{1}$ and $x=\boxed{2}$"), or that are
    the items of a list, are one answer, their different contents with commas between. With `alternatives`, so are boxes
    with "or" in the words between, or with a condition behind each: a reference solution may write its answer twice,
    but a response that names several values has not named one of them. An empty box hides none before it.
    """
    # (where the token starts, where a box's content starts or -1 for a mere brace)
    open_braces: list[tuple[int, int]] = []
    boxes: list[tuple[int, int, str]] = []  # (begin, end, content) of complete boxes that no later one encloses
    first = first_box(text)  # braces before it close after its own or not at all
    for match in _BRACE.finditer(text, first.start()) if first else ():
        token = match.group()
        if token in ("\\\\", "\\{", "\\}"):
            continue
        if token == "}":
            if open_braces:
                begin, start = open_braces.pop()
                if start >= 0:
                    while boxes and boxes[-1][0] > begin:
                        boxes.pop()
                    boxes.append((begin, match.end(), text[start : match.start()]))
        else:
            open_braces.append((match.start(), match.end() if token != "{" else -1))
    unclosed = min((begin for begin, start in open_braces if start >= 0), default=len(text))
    if not boxes:
        return None, unclosed
    boxes = [box for box in boxes if not _EMPTY.fullmatch(box[2])] or boxes[-1:]
    joined = len(boxes) - 1
    while joined:
        gap = text[boxes[joined - 1][1] : boxes[joined][0]]
        if not _joins(gap, text[boxes[joined][1] : boxes[joined][1] + 20], alternatives):
            break
        joined -= 1
    contents = dict.fromkeys(content.strip() for _, _, content in boxes[joined:])
    return (boxes[-1][2] if len(contents) == 1 else ", ".join(contents)), unclosed
