"""Grades a response to a mathematics problem against its reference answer.

Three stages, each only for pairs that the stage before left open:

1. `statements.extract_answer` finds the answer in the last `TAIL_CHARACTERS` characters of the response (`boxes`);
2. `fast.fast_grade` compares strings (`spelling`) and exact rational numbers (`numbers`, `units`), without sympy, in
   microseconds;
3. `symbolic.symbolic_grade` has Math-Verify parse both sides to sympy and compare them. It may take for ever: it
   belongs in a worker of `ibtpo.rewards.pool.Grader`.

Importing this package imports neither sympy nor Math-Verify; `load` does.
"""

from ibtpo.rewards.math.boxes import BOX, find_boxes
from ibtpo.rewards.math.fast import canonical, fast_grade
from ibtpo.rewards.math.statements import TAIL_CHARACTERS, extract_answer, find_statement
from ibtpo.rewards.math.symbolic import load, symbolic_grade

__all__ = [
    "BOX",
    "TAIL_CHARACTERS",
    "canonical",
    "extract_answer",
    "fast_grade",
    "fast_reward",
    "find_boxes",
    "find_statement",
    "load",
    "reward",
    "symbolic_grade",
    "verify",
]


def verify(response_text: str, reference: str) -> bool:
    """Whether a response's answer equals the reference: extraction, fast path, then Math-Verify.

    May run for ever and use any amount of memory on hostile text: call it in a worker with limits.

    Args:
      response_text: the whole response (only its tail is read).
      reference: the reference answer.

    Raises:
      UserError: the reference is empty.
    """
    answer = extract_answer(response_text)
    decided = fast_grade(answer, reference)
    if decided is None and answer is not None:  # without an answer the fast path has decided
        return symbolic_grade(answer, str(reference))
    return bool(decided)


def reward(text: str, reference: str) -> float:
    """1.0 for a right answer, 0.0 otherwise; see `verify`."""
    return float(verify(text, reference))


def fast_reward(text: str, reference: str) -> float | None:
    """The reward where the fast path can tell, else None."""
    decided = fast_grade(extract_answer(text), reference)
    return None if decided is None else float(decided)
