"""When a response ends: at a token, or where its bytes spell a string, over however many tokens.

Both are one automaton over tokens (Aho and Corasick 1975, over bytes, composed with the bytes of each token), so that
the decode loop looks ends up in one table on the device, and no token is drawn behind one.
"""

from collections.abc import Collection, Sequence

import numpy as np

from ibtpo.errors import UserError

MATCHED = -1


class StopTable:
    """The automaton's transitions.

    table: int16 [A, V]: the state after a token, MATCHED where the response ends with it. State 0 is the start; the
    others are prefixes of the strings, with which the bytes so far end.

    Args:
      vocab_size: V.
      stop_ids: tokens that end a response.
      strings: texts that end one with the token in which their last byte falls.
      token_bytes: [V] the bytes of each token, needed for strings only; ids beyond it spell nothing.

    Raises:
      UserError: a stop token beyond the vocabulary, an empty string, strings without token_bytes, or too many.
    """

    def __init__(
        self,
        vocab_size: int,
        stop_ids: Collection[int],
        strings: Sequence[str] = (),
        token_bytes: Sequence[bytes] = (),
    ):
        if beyond := [token for token in stop_ids if not 0 <= token < vocab_size]:
            raise UserError(f"stop tokens {beyond} lie outside the vocabulary of {vocab_size}")
        needles = [string.encode() for string in strings]
        if not all(needles):
            raise UserError(f"a stop string of {list(strings)} is empty: it would end every response at once")
        if needles and not token_bytes:
            raise UserError(f"stop strings {list(strings)} need the bytes of the tokens (token_bytes)")
        prefixes = sorted({needle[:n] for needle in needles for n in range(len(needle))} | {b""}, key=len)
        if len(prefixes) > np.iinfo(np.int16).max:
            raise UserError(
                f"the stop strings have {len(prefixes)} bytes together; {np.iinfo(np.int16).max} can be told"
            )
        state_of = {prefix: state for state, prefix in enumerate(prefixes)}

        def after_byte(prefix: bytes, byte: int) -> int:
            text = prefix + bytes([byte])
            if text.endswith(tuple(needles)):
                return MATCHED
            return next(state_of[text[i:]] for i in range(len(text) + 1) if text[i:] in state_of)

        table = np.zeros((len(prefixes), vocab_size), np.int16)
        if needles:
            steps = np.array([[after_byte(prefix, byte) for byte in range(256)] for prefix in prefixes], np.int16)
            # One row more for MATCHED = -1, which stays.
            steps = np.concatenate([steps, np.full((1, 256), MATCHED, np.int16)])
            pieces = list(token_bytes)[:vocab_size]
            lengths = np.array([len(piece) for piece in pieces])
            table[:] = np.arange(len(prefixes))[:, None]
            for length in np.unique(lengths[lengths > 0]):
                (ids,) = np.nonzero(lengths == length)
                spelled = np.frombuffer(b"".join(pieces[i] for i in ids), np.uint8).reshape(-1, length)
                states = table[:, ids]
                for column in spelled.T:
                    states = steps[states, column]
                table[:, ids] = states
        table[:, np.array(sorted(stop_ids), int)] = MATCHED
        self.table = table

    def after(self, tokens: Sequence[int]) -> int:
        """The state after the tokens of a response that goes on."""
        state = 0
        if len(self.table) > 1:
            for token in tokens:
                state = int(self.table[state, token])
        return state

    def ends(self, tokens: Sequence[int] | np.ndarray) -> bool:
        """Whether a response with these tokens has ended; one that was cut off has not."""
        state = 0
        for token in tokens:
            state = int(self.table[state, token])
        return state == MATCHED
