"""Letters of options in prose: whether one stands in a list, is denied, only supposed, or asked about.

All functions read a text without markup (`multiple_choice`) around a letter at a known place, within bounds, so that
they take the same time however long the text is.
"""

import re

# What may directly follow a letter that is an answer: the end of a clause, a reason, a contrast.
_OPTION = r"(?:the\s+)?(?:option\s+|choice\s+|answer\s+|letter\s+)?[(\[]?[A-Ja-j](?![\w'’])"
CONNECTOR = re.compile(
    r"\s*(?:$|[.,;:!)}\]>\n—]|[-–](?!\w)|(?:because|since|as|for|which|based|due|but|and|whereas|while|rather\s+than|"
    rf"instead\s+of|over\s+{_OPTION}|not\s+{_OPTION})\b)"
)

# Between the letters of a list: LaTeX's commands, punctuation and these words; "A, maybe C", "A \lor C", "A. C.".
_LIST_WORDS = (
    r"or|and|but|maybe|perhaps|possibly|probably|then|also|plus|else|even|either|otherwise|alternatively|option|choice|"
    r"answer|letter|the|it|could|might|may|can|well|be|as\s+well\s+as|along\s+with|together\s+with|if\s+not"
)
_LINK = rf"(?:\\[a-zA-Z]+|[^\w\n]|\b(?:{_LIST_WORDS})\b)"
_NEXT = re.compile(rf"({_LINK}{{1,24}}+)([A-Ja-j])(?![\w'’^])(\))?", re.IGNORECASE)
_ON_NEXT_LINE = re.compile(r"[ \t.]*\n\s{0,4}\(?([A-J])\)?\.?[ \t]*(?:\n|$)")
_PREVIOUS = re.compile(rf"(?<![\w'’°])([A-J])(?![\w'’])({_LINK}{{1,24}}+)\Z", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|either|else|otherwise|alternatively|could|might|may)\b|\\l?or\b", re.IGNORECASE
)
_JOINS = re.compile(
    r"\b(?:or|and|but|maybe|perhaps|possibly|probably|then|also|plus|else|even|either|otherwise|alternatively|well|along|"
    r"together|if)\b|\\l(?:or|and)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.;:!]\s")
_REST_OF_LIST = re.compile(r"(?:[^\w\n]|[A-J](?!\w))*(?:\n|$)")
_REASON = r"(?:because|since|as|for|which|based|due|where|with|both|together|respectively)\b"
_NEW_CLAUSE = re.compile(rf"\)?\s+(?!{_REASON})[a-z]{{2,}}")
_VERB = (
    r"(?:is|are|was|were|has|have|had|does|do|did|can|could|would|will|may|might|must|should|cannot|(?:is|are|do|does|ca|"
    r"wo|would|could)n['’]t|gives?|being|having|seems?|looks?|requires?|needs?|fails?|violates?|implies)\b"
)
VERB = re.compile(rf"\s+{_VERB}")
_PLURAL = re.compile(r"\)?\s+(?:are|were|both|have|do)\b")

# Denials. A clause ends at punctuation or at a word that turns to something else.
_CLAUSE_END = re.compile(
    r"[.;!?\n,—–]|\b(?:but|so|hence|thus|therefore|consequently|leaves?|leaving|whereas|while|because|since)\b",
    re.IGNORECASE,
)
_DENIAL_BEFORE = re.compile(
    r"\b(?:not(?!\s+(?:only|hard|difficult|surprising))|never|neither|nor|no(?!\s+(?:doubt|question))|cannot|hardly|"
    r"doubt(?:ful)?|(?:im|un)(?:possible|likely)|exclud\w+|except\w*|eliminat\w+|rul(?:e|es|ed|ing)\s+out|reject\w*|"
    r"discard\w*|dismiss\w*|without(?!\s+(?:a\s+|any\s+)?doubt)|rather\s+than|instead\s+of|anything\s+but|unlike|versus|"
    r"vs|than|over|against|avoid\w*|wrong(?:ly)?|incorrect(?:ly)?|false|mistaken(?:ly)?)\b|n['’]t\b|\\l?neg\b|¬",
    re.IGNORECASE,
)
_NOT_IT = (
    r"(?:not|never)(?=\s*(?:[.,;!)\n]|$)|\s+(?:\w+\s+){0,2}?(?:correct|right|possible|valid|true|the|it|an?|acceptable|"
    r"plausible|consistent|viable|feasible|likely|so|work|fit|match|hold|satisfy|answer)\b)"
)
_DENIAL_BEHIND = re.compile(
    r"[ \t]*[)\]]?[ \t]*(?:(?:is|are|was|were|can|could|must|may|should|would|be|has|been|seems?|looks?|also|therefore|"
    r"thus|hence|clearly|obviously|then|definitely|does|do|just|simply|too|both|all)\s+){0,5}+"
    rf"(?:{_NOT_IT}|(?:is|are|does|do|ca|wo|would|could)n['’]t\b|cannot\b|wrong\b|incorrect\b|false\b|invalid\b|"
    r"excluded\b|eliminated\b|ruled\s+out\b|out\b(?!\s+of)|rejected\b|impossible\b|discarded\b|dismissed\b|unlikely\b|"
    r"untrue\b|fails\b|the\s+wrong\b)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"\s?[)\]]?\s?\?")
_CONDITION_BEHIND = re.compile(r"\s?[)\]]?\s?\b(?:(?:only\s+)?if|unless|provided|assuming|or\s+not)\b")
_TURN = re.compile(r"[.;!?\n]|\b(?:(?<!if )so|hence|thus|therefore|but|however|consequently)\b", re.IGNORECASE)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|maybe|perhaps|possibly)\b|\b(?:suppos|assum|imagin|pretend)\w*\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?\Z|"
    r"\b(?:might|may|could|would|many|most|people|some|students|others)\s+(?:\w+\s+){0,3}"
    r"(?:think|say|believe|guess|answer|choose|claim|argue|expect|suggest)\w*\b|\btempt\w+\b",
    re.IGNORECASE,
)


def _behind_last(pattern: re.Pattern, text: str, end: int, reach: int) -> str:
    """The text before `end`, from the last match of the pattern on, at most `reach` characters."""
    before = text[max(0, end - reach) : end]
    return before[max((match.end() for match in pattern.finditer(before)), default=0) :]


def list_behind(text: str, letter: str, end: int) -> tuple[int, bool]:
    """Where the letters in a row end that begin with the one ending at `end`, and whether they are a list that names
    another letter: "A or C", "A, maybe C", "A. C."; not "A, C is wrong", where a clause begins, nor "A, not C"."""
    others: list[str] = []
    first, place = "", end
    while len(others) < 10 and (match := _NEXT.match(text, place)):
        link, other, closed = match.groups()
        if other.islower() and letter.isupper() and not closed:
            break
        goes_on = CONNECTOR.match(text, match.end()) or _NEXT.match(text, match.end())
        if other in "AIai" and not closed and not goes_on:
            break  # a word of the language
        others.append(other)
        first, place = first or link, match.end()
    if not others and (match := _ON_NEXT_LINE.match(text, end)):
        others, place = [match.group(1)], match.end(1)
    if all(other.upper() == letter.upper() for other in others):
        return place, False
    if _DOUBT.search(first) or (len(others) == 1 and _PLURAL.match(text, place)):
        return place, True
    if _JOINS.search(first):
        return place, not VERB.match(text, place)
    if _SENTENCE_END.search(first):
        return place, _REST_OF_LIST.match(text, place) is not None
    return place, not _NEW_CLAUSE.match(text, place)


def listed_before(text: str, letter: str, start: int) -> bool:
    """Whether the letter that begins at `start` goes on with a list that another letter began."""
    match = _PREVIOUS.search(text[max(0, start - 40) : start])
    if match is None or match.group(1).upper() == letter.upper():
        return False
    link = match.group(2)
    if _JOINS.search(link):
        return _DOUBT.search(link) is not None or not re.search(r"\bbut\b", link)
    return not _SENTENCE_END.search(link)


def denied(text: str, start: int, end: int) -> bool:
    """Whether the text denies what stands from `start` to `end`: "not C", "we rule out C", "C is wrong"."""
    clause = _behind_last(_CLAUSE_END, text, start, 80)
    return bool(_DENIAL_BEFORE.search(clause) or _DENIAL_BEHIND.match(text, end))


def supposed(text: str, start: int, end: int) -> bool:
    """Whether what stands from `start` to `end` is asked ("The answer is C?"), a condition's consequence ("if friction
    is ignored, the answer is C") or what others may say, and not asserted."""
    if _QUESTION.match(text, end) or _CONDITION_BEHIND.match(text, end):
        return True
    return _SUPPOSED.search(_behind_last(_TURN, text, start, 120)) is not None
