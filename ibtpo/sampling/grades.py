"""Who grades a response, and how all processes learn of its reward, or of the error that came instead.

With several processes each runs the same plan and knows the same responses. One of them grades a response, by its
question and index, and tells the others; all go on with the same rewards, or all raise.

When a reward comes decides when the question's next round begins, and so which sequences share a batch: the same
formulas in other shapes, which differ by rounding. A deterministic schedule waits for every reward where it next looks.
"""

import inspect
import math
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

from ibtpo.errors import UserError
from ibtpo.sampling.growth import Draft, Growing
from ibtpo.sampling.interface import Grade

BLOCK = 256  # rewards of one exchange, whose arrays have one size so that it is compiled once
FAILED = -1.0  # in place of a reward: to grade it raised an error


@dataclass
class _Pending:
    """A finished response whose reward not all processes know yet."""

    q: Growing
    draft: Draft
    ours: bool  # whether this process grades it
    grade: float | Future[float] | None = None  # the caller's function's result

    def reward(self) -> float:
        """NaN while this process does not know it.

        Raises:
          UserError: no finite number, or one outside [0, 1]. Or the exception of the caller's function.
        """
        grade = self.grade
        if not self.ours or (isinstance(grade, Future) and not grade.done()):
            return math.nan
        grade = grade.result() if isinstance(grade, Future) else grade
        what = f"response {self.draft.index} of question {self.q.question.id} was graded {grade}"
        if grade is None or not math.isfinite(grade):
            raise UserError(f"{what}: a reward must be a finite number (or a Future of one)")
        if not 0 <= grade <= 1:
            raise UserError(f"{what}: a reward lies in [0, 1] (its mean is a probability)")
        return float(grade)


def _takes_truncated(grade: Grade) -> bool:
    try:
        return "truncated" in inspect.signature(grade).parameters
    except ValueError:  # a builtin without a signature
        return False


class Grades:
    """Rewards that have been asked for and not been given yet.

    deterministic: all that have been asked for are waited for at the next `collect`, and none is given before it, so
    that what the caller does next does not depend on how long grading took.
    """

    def __init__(self, grade: Grade, *, deterministic: bool = False):
        self._grade, self._deterministic = grade, deterministic
        self._tells_truncated = _takes_truncated(grade)
        self._pending: list[_Pending] = []

    def ask(self, q: Growing, draft: Draft) -> bool:
        """Has a finished response graded. Returns whether its reward is there at once, in `draft.reward`."""
        ours = (q.question.id + draft.index) % jax.process_count() == jax.process_index()
        pending = _Pending(q, draft, ours)
        if ours:
            try:
                cut = {"truncated": draft.finish == "length"} if self._tells_truncated else {}
                pending.grade = self._grade(q.question, np.asarray(draft.tokens, np.int32), **cut)
            except Exception as error:
                if jax.process_count() == 1:
                    raise
                # Raised when the others learn of it too: until then they count on this process.
                pending.grade = Future()
                pending.grade.set_exception(error)
        at_once = jax.process_count() == 1 and not self._deterministic
        if at_once and not math.isnan(reward := pending.reward()):
            draft.reward = reward
            return True
        self._pending.append(pending)
        return False

    def wait(self) -> None:
        """Waits until one of those that this process grades is there, if it grades any."""
        if own := self._own():
            wait(own, return_when=FIRST_COMPLETED)

    def _own(self) -> list[Future]:
        """Those under way that this process grades."""
        return [p.grade for p in self._pending if isinstance(p.grade, Future)]

    def collect(self) -> list[tuple[Growing, Draft]]:
        """Those of which all processes know the reward since the last call, which is in `draft.reward`.

        Raises:
          UserError: a reward that is no number in [0, 1]. An exception of the caller's function or Future goes on.
          RuntimeError: another process could not grade a response. With several processes all raise at one call.
        """
        if not self._pending:
            return []
        if self._deterministic:
            wait(self._own())
        if jax.process_count() == 1:
            rewards = np.array([p.reward() for p in self._pending])
        else:
            rewards = self._exchanged()
        known = []
        for p, reward in zip(self._pending, rewards):
            if not math.isnan(reward):
                p.draft.reward = float(reward)
                known.append((p.q, p.draft))
        self._pending = [p for p, reward in zip(self._pending, rewards) if math.isnan(reward)]
        return known

    def _exchanged(self) -> np.ndarray:
        """[pending] rewards, each from the process that grades it."""
        rewards = np.full(len(self._pending), math.nan)
        own_error: Exception | None = None
        for i, p in enumerate(self._pending):
            try:
                rewards[i] = p.reward()
            except Exception as error:
                rewards[i], own_error = FAILED, own_error or error
        of_all = exchange(rewards)
        if own_error is not None:
            raise own_error
        for process, i in np.argwhere(of_all == FAILED):
            p = self._pending[i]
            raise RuntimeError(
                f"process {process} could not grade response {p.draft.index} of question {p.q.question.id}; it raises "
                "the error itself"
            )
        return np.fmax.reduce(of_all)


def exchange(values: np.ndarray) -> np.ndarray:
    """[processes, n] float64: the values [n] of each process. n is the same for all, so that messages have one size."""
    blocks = []
    for first in range(0, len(values), BLOCK):
        block = np.full(BLOCK, math.nan)
        block[: len(values) - first] = values[first : first + BLOCK]
        words = multihost_utils.process_allgather(block.view(np.int32))  # 32-bit words pass unrounded
        blocks.append(np.ascontiguousarray(words).view(np.float64))
    return np.concatenate(blocks, axis=1)[:, : len(values)]
