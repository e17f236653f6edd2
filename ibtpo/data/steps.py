r"""Where reasoning steps end (`data.step_rule`), on token boundaries: behind a separator, or behind a sentence.

A rule finds spans in a response's text, from left to right and without overlap: what parts two steps, from its first
byte to its last. The token in which a span's last byte falls ends a step, provided the step has content before the
span: bytes that are neither whitespace nor part of a span. So no step is blank:
  - a span right after another one, or at the start, opens the following step;
  - blank tokens at the very end stay with the last step, unless a stop token is among them: a stop token is content, so
    an end-of-text token after a separator is a step of its own.
Nothing is re-tokenised: text after a span within one token stays in the earlier step. Every end but the last is decided
by the tokens seen so far and stays when more tokens follow, so a response and the branches that share its prefix are
cut alike there; the end of a sentence is seen with the token behind it.
"""

import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from ibtpo.errors import UserError

# A line break; or marks with what closes behind them, before a space or with the line break that follows; the marks of
# Chinese and Japanese need no space, but a character behind them that is there as a whole and closes nothing.
_SENTENCE_END = re.compile(
    r"""\n|[.!?…]+["'”’»)\]}*_`]*(?:\r?\n|(?=[ \t]))|[。！？]+[」』”’）]*(?:\n|(?=[^。！？」』”’）\udc80-\udcff]))"""
)
# Full stops that end no sentence: of a number that counts a line, of "e.g.", of an abbreviation.
_WITHIN = re.compile(
    r"(?:^|\n)[ \t#>*_(-]*(?:[0-9]+|[A-Za-z]|[ivxIVX]+)\.\Z|\.[A-Za-z]\.\Z"
    r"|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|approx|cf|Eqs?|Figs?|pp)\.\Z"
)
_LONGEST = 40  # characters of what it finds


def separator_spans(text: bytes, separator: bytes) -> Iterator[tuple[int, int]]:
    """(first byte, end) of each separator.

    Raises:
      UserError: it is empty.
    """
    if not separator:
        raise UserError("the step separator (data.separator) is empty: give the text that ends a step")
    end = 0
    while (at := text.find(separator, end)) >= 0:
        end = at + len(separator)
        yield at, end


def sentence_spans(text: bytes) -> Iterator[tuple[int, int]]:
    """(byte behind the closing mark, byte where the next sentence may begin), for each sentence and each line.

    A line break ends a sentence. So does a full stop, question or exclamation mark with a space behind it, but for the
    stop of "1. " at the start of a line, of "e.g. " and of some abbreviations ("Dr. ", "approx. "). The space belongs
    to the next sentence, as tokenizers have it, and the line break to the one before.
    """
    # One character for each byte that is no text, so that characters can be told back to bytes.
    characters = text.decode("utf-8", errors="surrogateescape")
    counted, byte = 0, 0  # characters, and the bytes that they take
    for match in _SENTENCE_END.finditer(characters):
        if match[0] == "." and _WITHIN.search(characters, max(0, match.end() - _LONGEST), match.end()):
            continue
        byte += len(characters[counted : match.end()].encode("utf-8", errors="surrogateescape"))
        counted = match.end()
        yield byte - match[0].endswith("\n"), byte


def step_ends(
    tokens: Sequence[int] | np.ndarray,
    table: Sequence[bytes],
    separator: bytes | None,
    stop_ids: Collection[int] = (),
) -> list[int]:
    """Cuts a response into reasoning steps; the module says how.

    Args:
      tokens: generated token ids, [n].
      table: bytes of each token id (`tokenizer.token_bytes`); ids beyond it (padded vocabularies) are b"".
      separator: what stands between steps, not empty; None: a step is a sentence.
      stop_ids: ids that end a response.

    Returns: exclusive ends of the steps, increasing, the last one n; [] when n = 0.
    """
    pieces = [table[token] if token < len(table) else b"" for token in tokens]
    text = b"".join(pieces)
    spans = sentence_spans(text) if separator is None else separator_spans(text, separator)
    byte_ends = np.cumsum([len(piece) for piece in pieces])  # of each token, exclusive
    ends: list[int] = []
    start = searched = 0  # first byte of the step; end of the last span
    content = False  # the step has some before `searched`
    for at, end in spans:
        content = content or bool(text[max(start, searched) : at].strip())
        searched = end
        if content:
            ends.append(int(np.searchsorted(byte_ends, searched)) + 1)
            start, content = int(byte_ends[ends[-1] - 1]), False
    content = content or bool(text[max(start, searched) :].strip())
    if ends and not content and not any(int(token) in stop_ids for token in tokens[ends[-1] :]):
        ends.pop()
    if pieces and (not ends or ends[-1] < len(pieces)):
        ends.append(len(pieces))
    return ends
