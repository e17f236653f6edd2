r"""Which training questions are, or nearly are, questions of an evaluation set.

Questions are compared as sequences of words, numbers and operators (`tokens`), so that case, layout, punctuation, and
most of what differs between two LaTeX spellings of one problem do not count. Two questions match if their tokens are
equal, or if at least half of the 8-grams of the one that has fewer are in the other too.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

NGRAM = 8
OVERLAP = 0.5

_TOKEN = re.compile(r"[^\W\d_]+|\d+|[-+*/^=<>%!]")
# LaTeX that changes a formula's looks, not its meaning.
_LAYOUT = re.compile(
    r"\\(?:(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|quad|"
    r"qquad|hspace)(?![a-zA-Z])|[,;:! ])"
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")


def tokens(question: str) -> list[str]:
    """Lower-case words, numbers and operators of a question, without layout."""
    text = _FRACTION.sub(r"\\frac", unicodedata.normalize("NFKC", question))
    return _TOKEN.findall(_LAYOUT.sub(" ", text).lower())


def ngrams(words: Sequence[str]) -> set[tuple[str, ...]]:
    """The different sequences of `NGRAM` tokens in a row; none of a shorter question."""
    return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}


@dataclass(frozen=True)
class Matches:
    """Indices of the training questions that match an evaluation set: word for word, or by their n-grams only."""

    equal: list[int]
    overlapping: list[int]


def find_matches(training: Sequence[str], evaluation: Sequence[str]) -> Matches:
    """Which of the training questions match one of the evaluation questions. Linear in the length of both."""
    texts, sizes = set(), []
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)  # evaluation questions with an n-gram
    for index, question in enumerate(evaluation):
        words = tokens(question)
        texts.add(tuple(words))
        grams = ngrams(words)
        sizes.append(len(grams))
        for gram in grams:
            where[gram].append(index)
    equal, overlapping = [], []
    for index, question in enumerate(training):
        words = tokens(question)
        if tuple(words) in texts:
            equal.append(index)
            continue
        grams = ngrams(words)
        shared = Counter(other for gram in grams for other in where.get(gram, ()))
        if any(count >= OVERLAP * min(len(grams), sizes[other]) for other, count in shared.items()):
            overlapping.append(index)
    return Matches(equal, overlapping)
