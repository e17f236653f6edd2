"""Grades a response to a mathematics problem against its reference answer.

Three stages, each only for pairs that the stage before left open:

1. `statements.extract_answer` finds the answer in the last `TAIL_CHARACTERS` characters of the response: in a box
   (`boxes`), in a sentence that states it (`sentences`), or as the last number (`lastnumber`) of a text that does not
   break off (`unfinished`); of a response that was cut off, `statements.before_cut` keeps what it stated before;
2. `fast.fast_grade` compares strings (`spelling`), exact rational numbers (`numbers`, `units`), times, ratios, lists
   (`shapes`), intervals (`inequalities`) and words (`words`), without sympy, in microseconds;
3. `symbolic.symbolic_grade` has Math-Verify parse formulas to sympy, and compares them exactly (`exact`). It may take
   for ever: it belongs in a worker of `ibtpo.rewards.pool.Grader`.

A reference that is a number is answered by a number, not by an expression that has yet to be evaluated: else a copy of
the question's formula would be right. `unevaluated_reward` is the laxer rule, for `reward.unevaluated`.

Importing this package imports neither sympy nor Math-Verify; `load` does.
"""

import functools

from ibtpo.rewards.math.boxes import BOX, find_boxes
from ibtpo.rewards.math.fast import canonical, decide, fast_grade, is_number
from ibtpo.rewards.math.statements import TAIL_CHARACTERS, before_cut, extract_answer, find_statement
from ibtpo.rewards.math.symbolic import load, symbolic_grade

__all__ = [
    "BOX",
    "TAIL_CHARACTERS",
    "before_cut",
    "canonical",
    "extract_answer",
    "fast_grade",
    "fast_reward",
    "find_boxes",
    "find_statement",
    "is_number",
    "load",
    "reward",
    "symbolic_grade",
    "fast_unevaluated_reward",
    "unevaluated_reward",
    "verify",
]


def verify(response_text: str, reference: str, *, unevaluated: bool = False) -> bool:
    """Whether a response's answer equals the reference: extraction, fast path, then Math-Verify.

    May run for ever and use any amount of memory on hostile text: call it in a worker with limits.

    Args:
      response_text: the whole response (only its tail is read).
      reference: the reference answer.
      unevaluated: whether an expression that has yet to be evaluated answers a reference that is a number.

    Raises:
      UserError: the reference is empty.
    """
    formula = functools.partial(symbolic_grade, unevaluated=unevaluated)
    return bool(decide(extract_answer(response_text), reference, formula, unevaluated))


def reward(text: str, reference: str) -> float:
    """1.0 for a right answer, 0.0 otherwise; see `verify`."""
    return float(verify(text, reference))


def fast_reward(text: str, reference: str) -> float | None:
    """The reward where the fast path can tell, else None."""
    decided = fast_grade(extract_answer(text), reference)
    return None if decided is None else float(decided)


def unevaluated_reward(text: str, reference: str) -> float:
    """`reward` with `unevaluated`."""
    return float(verify(text, reference, unevaluated=True))


def fast_unevaluated_reward(text: str, reference: str) -> float | None:
    """`fast_reward` with `unevaluated`."""
    decided = fast_grade(extract_answer(text), reference, unevaluated=True)
    return None if decided is None else float(decided)
