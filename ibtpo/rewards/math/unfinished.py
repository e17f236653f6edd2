"""Texts that break off: whether one does, and whether a number in one only counts steps, parts or items of a list.

A text that ends by itself may break off too: a small model stops behind "Step 2:" or "3 * 4 =". Its last number is then
no result of anything.
"""

import re

_LABEL = (
    "step|part|stage|phase|case|method|approach|solution|scenario|option|section|question|q|problem|exercise|example|"
    "equation|eq|figure|table|note|rule|iteration|line|item|task|room"
)
# Behind the beginning of a line and before a number: "Step ", "**Step** #", "### Part (", "(Step No. ".
_LABEL_BEGINS = re.compile(
    rf"[\s#*>_(\[•-]*(?:\w+ )?(?:{_LABEL})s?\.?[\s*_#(\[–-]*(?:(?:no\.?|number|n°)[\s*_#(]*)?\Z", re.IGNORECASE
)
# The same with any other word, where a colon follows the number: "Round 2:", "Month 3**:".
_HEADING_BEGINS = re.compile(r"[\s#*>_(\[•-]*[A-Z][a-z]+[\s*_#(]*\Z")
_HEADING_ENDS = re.compile(r"[\s*_)\]]*:")
_MARKER_BEGINS = re.compile(r"[\s#*>_(\[•-]*\Z")
_MARKER_ENDS = re.compile(r"[*_]*[.):\]][*_:)]*(?=(\s*\S[^\n]*)|\s*\Z)")
_HEADING_SIGN = re.compile(r"\s*#")

# The response has left its problem for another one; what is before is not unfinished for that.
_NEXT_PROBLEM = re.compile(
    r"\n[\s#*>_-]*(?:(?:next|another|new) )?(?:problem|question|exercise|example|q)\b[ *_#\d]{0,8}:?[*_\s]*\Z",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"(?:\b(?:so|thus|therefore|hence)\b,?\s*)?\b(?:(?:the|my|our|final|correct)\s+)*answer(?:[ \t]+is)?[ \t]*[:=]?"
    r"[\s*_`]*\Z",
    re.IGNORECASE,
)
# A sign that wants something behind it.
_OPEN_SIGN = re.compile(
    r"(?:[-+/×÷·−–=<>≈≤≥(\[{^,;:&]|(?<=\s)[*x$]|\\(?:times|cdot|div|d?frac|sqrt|pm|mp|leq?|geq?|approx|text|left|quad)"
    r"|\\\(|\\\[|\\)\Z"
)
# A word that no sentence ends with.
_OPEN_WORD = re.compile(
    r"(?<![\w'’\\])(?:the|an?|of|for|to|from|with|by|at|into|than|as|and|or|but|nor|so|then|because|since|while|whereas|"
    r"if|when|where|which|that|whose|is|are|was|were|be|been|has|have|had|will|would|can|could|should|must|may|equals?|"
    r"plus|minus|times|divided|multiplied|multiply|subtract|add|divide|every|his|her|their|its|our|my|your|he|she|they|we|"
    r"both|between|only|therefore|thus|hence|let's|let|another|costs?)\Z",
    re.IGNORECASE,
)
# A number before what it counts: "for the 2".
_OPEN_COUNT = re.compile(
    r"\b(?:the|these|those|his|her|their|its|our|my|first|last|other|next|remaining) \$?\d[\d,]*\Z", re.IGNORECASE
)
_TAIL = 1000  # characters that are looked at


def without_next_problem(text: str) -> str:
    """The text without a last line that only begins another problem ("Problem:", "**Question 2:**")."""
    match = _NEXT_PROBLEM.search(text, max(0, len(text) - 60))
    return text[: match.start()] if match else text


def breaks_off(text: str) -> bool:
    """Whether a text ends where more must come: behind a colon, a comma, a sign of a calculation or a word that ends
    no sentence, or within a formula or brackets. An "answer is" with nothing behind it is passed over."""
    text = _ANNOUNCED.sub("", text[-_TAIL:]).rstrip()
    text = _without_markup(text)
    line = text[text.rfind("\n") + 1 :]
    return any(pattern.search(line) for pattern in (_OPEN_SIGN, _OPEN_WORD, _OPEN_COUNT)) or _is_open(text, line)


def _without_markup(text: str) -> str:
    """Without the stars and the like that close what is bold: those of a pair."""
    if closing := re.search(r"(?<=[^\s*_`])([*_`]+)\Z", text):
        before = text[: closing.start()]
        line = re.sub(r"\A\s*[*-] ", "", before[before.rfind("\n") + 1 :])
        if line.count(closing.group()) % 2:
            return before
    return text


def _is_open(text: str, line: str) -> bool:
    """Whether a formula or a bracket of the last line is left open."""
    if text.count("$$") % 2 or any(text.rfind(a) > text.rfind(b) for a, b in ((r"\[", r"\]"), (r"\(", r"\)"))):
        return True
    plain = re.sub(r"\\[{}()\[\]]|[:;]-?[()]", "", line)
    if plain.count("{") > plain.count("}") or sum(map(plain.count, "([")) > sum(map(plain.count, ")]")):
        return True
    dollars = re.sub(r"\\\$|\$\$", "", line)
    return dollars.count("$") % 2 == 1 and re.search(r"\$(?=[A-Za-z\\])[^$]*\Z", dollars) is not None


def begins_a_part(text: str, start: int, end: int) -> bool:
    """Whether the number from `start` to `end`, the last of the text, counts what its line begins, which then has no
    number of its own: "Step 2: Find the cost", "Stage **2**", "Round 2:", "2. Next we" behind an item "1."."""
    line_start = text.rfind("\n", 0, start) + 1
    before, behind = text[line_start:start], text[end : end + 200]
    if len(before) > 40:
        return False
    if _LABEL_BEGINS.match(before) or (_HEADING_BEGINS.match(before) and _HEADING_ENDS.match(behind)):
        return True
    number = text[start:end]
    marker = _MARKER_ENDS.match(behind) if _MARKER_BEGINS.match(before) else None
    if marker is None or not number.isdigit() or len(number) > 2:
        return False
    earlier = text[:line_start]
    if has_item(earlier, int(number) - 1) or (int(number) == 1 and marker.group(1)):
        return True
    # "= 4.\n\n2." begins a list; in "= 9.\n\n9." and "we get\n18." it is the answer.
    known = re.search(rf"(?<![\d.]){number}(?![\d]|\.\d)", earlier[-_TAIL:])
    return re.search(r"[.!?][\s*_)]*\Z", earlier[-20:]) is not None and not known


def has_item(text: str, number: int) -> bool:
    """Whether a line of a text begins with the number of an item, a step or a part."""
    label = rf"(?:(?:{_LABEL})[\s*_#(]*)?"
    return re.search(rf"(?im)^[ \t#*>_(\[•-]*{label}{number}(?!\d)[*_]*[.):\]]", text[-8192:]) is not None
