"""Between tokens and text: where a response ends, where its steps end, where its answer starts, its text."""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibtpo.data.steps import step_ends
from ibtpo.sampling.stops import StopTable

StepEnds = Callable[[np.ndarray], Sequence[int]]
FindAnswer = Callable[[str], int]

MOST_MOVED = 3  # tokens that `Codec.moved_steps` puts an end later


def move_ends(tokens: Sequence[int] | np.ndarray, ends: Sequence[int], share: float) -> list[int]:
    """The ends of steps with a share of them 1 to MOST_MOVED tokens later; the last one stays. An end that would pass
    the text's is left out, and those that meet are one."""
    if not len(ends):
        return []
    sequence, last = np.asarray(tokens, "<i4"), ends[-1]
    found = {last}
    for end in ends[:-1]:
        drawn = zlib.crc32(sequence[:end].tobytes())
        if drawn < share * 2**32:
            end += 1 + zlib.crc32(drawn.to_bytes(4, "little")) % MOST_MOVED
        if end < last:
            found.add(end)
    return sorted(found)


@dataclass(frozen=True)
class Codec:
    """How a vocabulary's tokens are read; the sampler needs no tokenizer beside it.

    >>> Codec(vocab_size, stop_ids=[eos], token_bytes=token_bytes(tokenizer))  # data.tokenizer.token_bytes

    Attributes:
      vocab_size: V.
      stop_ids: tokens that end a response.
      stop_strings: texts that end it, over however many tokens; the token in which one is complete is the response's
        last. They need token_bytes.
      token_bytes: the bytes of each token, up to V entries; tokens beyond them spell nothing. Without any a response is
        one step and states no answer.
      separator: the bytes between two steps; None: a step is a sentence or a line.
      moved_steps: the share of the steps' ends that are put 1 to MOST_MOVED tokens later, to see how much depends on
        them. Which, and by how many, a checksum of the tokens before says, so that branches are cut alike.
      find_answer: where a text first states its answer, its length where it never does (`rewards.find_statement`); no
        strategy forks behind it. `len`: no text does. A `Question` may have a rule of its own.
      cut_steps: instead of the separator, where there is no text: exclusive ends of the steps of generated tokens, the
        last one their number.
    """

    vocab_size: int
    stop_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    token_bytes: Sequence[bytes] = ()
    separator: bytes | None = b"\n\n"
    moved_steps: float = 0.0
    find_answer: FindAnswer = len
    cut_steps: StepEnds | None = None

    @functools.cached_property
    def stops(self) -> StopTable:
        """Where a response ends, as one automaton over tokens.

        Raises:
          UserError: a stop token beyond the vocabulary, an empty string, strings without token_bytes, or too many.
        """
        return StopTable(self.vocab_size, self.stop_ids, self.stop_strings, self.token_bytes)

    def step_ends(self, tokens: np.ndarray) -> Sequence[int]:
        """Exclusive ends of a response's steps, in tokens (`data.steps.step_ends`)."""
        if self.cut_steps is not None:
            return self.cut_steps(tokens)
        ends = step_ends(tokens, self.token_bytes, self.separator, self.stop_ids)
        return move_ends(tokens, ends, self.moved_steps) if self.moved_steps else ends

    def answer_start(self, tokens: Sequence[int] | np.ndarray, find_answer: FindAnswer | None = None) -> int:
        """Index of the token in which the first statement of an answer begins; len(tokens) without one.

        find_answer: the rule to go by instead of the codec's.
        """
        pieces = self._pieces(tokens)
        # One character for each byte that is no text, so that characters can be told back to bytes.
        text = b"".join(pieces).decode("utf-8", errors="surrogateescape")
        at = len(text[: (find_answer or self.find_answer)(text)].encode("utf-8", errors="surrogateescape"))
        return int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), at, side="right"))

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of generated tokens, without special tokens."""
        return b"".join(self._pieces(tokens)).decode("utf-8", errors="replace")

    def answer_text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The same without a stop string that ended it, which is no part of the answer, nor what is behind it."""
        text = self.text(tokens)
        if not self.stop_strings or len(tokens) == 0 or tokens[-1] in self.stop_ids or not self.stops.ends(tokens):
            return text
        places = [place for string in self.stop_strings if (place := text.rfind(string)) >= 0]
        return text[: min(places, default=len(text))]

    def _pieces(self, tokens: Sequence[int] | np.ndarray) -> list[bytes]:
        known = len(self.token_bytes)
        return [self.token_bytes[token] if token < known else b"" for token in tokens]
