r"""Finds answers in \boxed{...}, however deep their braces go."""

import re

BOX = re.compile(r"(?<!\\)(?:\\\\)*\\f?box(?:ed)?\s*\{")
_BRACE = re.compile(r"\\f?box(?:ed)?\s*\{|\\[\\{}]|[{}]")
_JOINT = re.compile(
    r"(?:[\s$*]|\\[()\[\]])*(?:(?:,|;|and\b|(or\b)|\\text\s?\{\s?,?\s?(?:and|(or))\s?\})(?:[\s$*]|\\[()\[\]])*)+"
    r"(?:[a-zA-Z]\s*=\s*)?"
)
_MAX_JOINT_CHARACTERS = 40


def find_boxes(text: str, *, alternatives: bool = False) -> tuple[str | None, int]:
    r"""The content of the last complete \boxed{...} (or \fbox, \box), None without one; and where the first box left
    open begins, the length of the text if none is. Braces balance; escaped ones do not count.

    Boxes with nothing but a comma or "and" between them ("$x=\boxed{1}$ and $x=\boxed{2}$") are one answer, their
    different contents with commas between. With `alternatives`, so are boxes with "or" between: a reference solution
    may write its answer twice, but a response that names several values has not named one of them.
    """
    # (where the token starts, where a box's content starts or -1 for a mere brace)
    open_braces: list[tuple[int, int]] = []
    boxes: list[tuple[int, int, str]] = []  # (begin, end, content) of complete boxes that no later one encloses
    first = BOX.search(text)  # braces before it close after its own or not at all
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
    joined = len(boxes) - 1
    while joined:
        gap = text[boxes[joined - 1][1] : boxes[joined][0]]
        joint = len(gap) <= _MAX_JOINT_CHARACTERS and _JOINT.fullmatch(gap)
        if not joint or (any(joint.groups()) and not alternatives):
            break
        joined -= 1
    contents = dict.fromkeys(content.strip() for _, _, content in boxes[joined:])
    return (boxes[-1][2] if len(contents) == 1 else ", ".join(contents)), unclosed
