"""Between tokens and text: where a response ends, where its steps end, where its answer starts, its text."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ibtpo.sampling.stops import StopTable

ANSWER_MARKER = b"\\boxed"  # from here on a response states its result and reasons no more
StepEnds = Callable[[np.ndarray], Sequence[int]]


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
        one step and has no answer marker.
      separator: the bytes between two steps.
      answer_marker: the bytes at which the answer starts; strategy "entropy" never forks behind it.
      cut_steps: instead of the separator, where there is no text: exclusive ends of the steps of generated tokens, the
        last one their number.
    """

    vocab_size: int
    stop_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    token_bytes: Sequence[bytes] = ()
    separator: bytes = b"\n\n"
    answer_marker: bytes = ANSWER_MARKER
    cut_steps: StepEnds | None = None

    @functools.cached_property
    def stops(self) -> StopTable:
        """Where a response ends, as one automaton over tokens.

        Raises:
          UserError: a stop token beyond the vocabulary, an empty string, strings without token_bytes, or too many.
        """
        return StopTable(self.vocab_size, self.stop_ids, self.stop_strings, self.token_bytes)

    def step_ends(self, tokens: np.ndarray) -> Sequence[int]:
        """Exclusive ends of a response's steps, in tokens (`data.tokenizer.step_ends`)."""
        if self.cut_steps is not None:
            return self.cut_steps(tokens)
        from ibtpo.data.tokenizer import step_ends  # with the library of tokenizers, which takes long to import

        return step_ends(tokens, self.token_bytes, self.separator, self.stop_ids)

    def answer_start(self, tokens: Sequence[int] | np.ndarray) -> int:
        """Index of the token in which the first answer marker begins; len(tokens) without one."""
        pieces = self._pieces(tokens)
        at = b"".join(pieces).find(self.answer_marker)
        if at < 0:
            return len(pieces)
        return int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), at, side="right"))

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of generated tokens, without special tokens."""
        return b"".join(self._pieces(tokens)).decode("utf-8", errors="replace")

    def _pieces(self, tokens: Sequence[int] | np.ndarray) -> list[bytes]:
        known = len(self.token_bytes)
        return [self.token_bytes[token] if token < known else b"" for token in tokens]
