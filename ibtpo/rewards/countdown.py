r"""Grades a response of the countdown task (`ibtpo.data.countdown`) against the problem that the reference names.

A response is a list of steps "7-2=5: 3 5 5" (a calculation with two of the numbers left, its result, and what is left
then, in any order), each with a blank line behind it, and at the end the box of the number left, `\boxed{22}`. That is
the whole text. Why a response is not right is told by `judge`.
"""

import re

from ibtpo.data.countdown import MOST_NUMBERS, CountdownProblem, left_after, read_problem, result_of
from ibtpo.rewards.navigation import VERDICTS as VERDICTS  # told apart alike
from ibtpo.rewards.navigation import find_statement as find_statement  # behind the box no step follows

_NUMBER = r"(?:0|[1-9][0-9]{0,5})"
_STEP = re.compile(rf"({_NUMBER})([-+*])({_NUMBER})=({_NUMBER}): ({_NUMBER}(?: {_NUMBER}){{0,{MOST_NUMBERS}}})\n\n")
_BOX = re.compile(rf"\\boxed\{{({_NUMBER})\}}")
_MOST_STEPS = 2 * MOST_NUMBERS  # more are read as no solution
_MOST_CHARACTERS = _MOST_STEPS * 80

_Line = tuple[int, str, int, int, tuple[int, ...]]  # a, operator, b, result, what is left


def _read(text: str) -> tuple[list[_Line], int] | None:
    """The steps and the boxed number; None where the text is none of the form."""
    if len(text) > _MOST_CHARACTERS:
        return None
    lines: list[_Line] = []
    at = 0
    while len(lines) < _MOST_STEPS and (found := _STEP.match(text, at)):
        a, operator, b, result, left = found.groups()
        lines.append((int(a), operator, int(b), int(result), tuple(sorted(map(int, left.split(" "))))))
        at = found.end()
    box = _BOX.fullmatch(text, at)
    return (lines, int(box[1])) if box else None


def _judge(text: str, problem: CountdownProblem) -> str:
    if (solution := _read(text)) is None:
        return "format"
    numbers = problem.numbers
    for a, operator, b, result, left in solution[0]:
        try:
            expected = left_after(numbers, (a, operator, b))
        except ValueError:
            return "execution"
        if result != result_of((a, operator, b)) or left != expected:
            return "execution"
        numbers = left
    if solution[1] not in numbers:
        return "execution"
    return "right" if numbers == (problem.target,) else "coverage"


def judge(text: str, reference: str) -> str:
    """Why a response is right or not, one of VERDICTS.

    right: every step is legal, its result and list are right, and the one number left is the target, boxed.
    execution: an operand that is not left, a result below zero or wrong, a wrong list, or a box with none of what is
      left.
    coverage: no such mistake, but more than one number is left, or another than the target.
    format: no solution: anything before, between or behind the steps, no box, or far more steps than one can have.

    Raises:
      UserError: the reference is no problem.
    """
    return _judge(text, read_problem(reference))


def reward(text: str, reference: str) -> float:
    """1.0 for a right response (`judge`), else 0.0."""
    return float(judge(text, reference) == "right")


def fast_reward(text: str, reference: str) -> float:
    """The same: it takes bounded time on any text."""
    return reward(text, reference)


def extract_answer(text: str) -> str | None:
    """The solution as it is stated, "7-2=5: 3 5 5, 5*5=25: 3 25, 25-3=22: 22, 22": equal ones are right or
    wrong together. None where the text is no solution."""
    if _read(text) is None:
        return None
    return ", ".join(part for part in text.split("\n\n") if part).replace("\\boxed{", "").rstrip("}")
