r"""Countdown: make the target of four numbers, each used once.

    question  Numbers: 2 3 5 7. Target: 22.
    solution  7-2=5: 3 5 5\n\n5*5=25: 3 25\n\n25-3=22: 22\n\n\boxed{22}

One calculation with two of the numbers that are left is a reasoning step; its result takes their place, and what is
left then stands behind it. After the last step one number is left, which is boxed. A response fails by execution (a
number that is not there, a wrong result or a wrong list) or for want of coverage (every step is legal, but the number
left is not the target). The second is what foresight is needed for: which two numbers to take, and what to do with
them, shows at the end only.

The task is after the Countdown of "Stream of Search" (arXiv 2404.03683). Nothing here needs more than the standard
library, since grading workers import it; `rng` is NumPy's.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibtpo.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SEPARATOR = "\n\n"
OPERATORS = "+-*"
MOST_NUMBERS = 6
_LARGEST = 999  # result that a teacher's step has, and number or target of a problem
_REFERENCE = re.compile(r"[1-9]\d{0,2}(?: [1-9]\d{0,2}){2,6}")
_MOST_DRAWS = 10_000  # of numbers and a target, after which the ranges are taken to hold none

Numbers = tuple[int, ...]  # in ascending order
Step = tuple[int, str, int]  # 7, "-", 2


@dataclass(frozen=True)
class Difficulty:
    """Ranges from which problems are drawn; every bound is inclusive.

    `numbers` numbers of 1..max_number; a target of min_target..max_target, at which a player who takes any legal step
    arrives with a probability of min_chance..max_chance (`CountdownProblem.chance`). foresight: the share of a
    teacher's steps that are drawn among those after which the target can still be reached.
    """

    numbers: int
    max_number: int
    max_target: int
    min_target: int = 10
    min_chance: float = 0.005
    max_chance: float = 0.1
    foresight: float = 0.9

    def __post_init__(self):
        if not 2 <= self.numbers <= MOST_NUMBERS:
            raise ValueError(f"need 2 <= numbers <= {MOST_NUMBERS}, got {self.numbers}")
        if not 1 <= self.max_number <= _LARGEST:
            raise ValueError(f"need 1 <= max_number <= {_LARGEST}, got {self.max_number}")
        if not 1 <= self.min_target <= self.max_target <= _LARGEST:
            raise ValueError(
                f"need 1 <= min_target <= max_target <= {_LARGEST}, got {self.min_target}, {self.max_target}"
            )
        if not 0 < self.min_chance <= self.max_chance <= 1:
            raise ValueError(f"need 0 < min_chance <= max_chance <= 1, got {self.min_chance}, {self.max_chance}")
        if not 0 <= self.foresight <= 1:
            raise ValueError(f"need 0 <= foresight <= 1, got {self.foresight}")


# The values that `data.difficulty` may take.
DIFFICULTIES = {
    "easy": Difficulty(3, max_number=40, max_target=99, min_chance=0.05, max_chance=0.25),
    "normal": Difficulty(4, max_number=20, max_target=99, min_chance=0.02, max_chance=0.2),
    "hard": Difficulty(4, max_number=50, max_target=499, min_chance=0.002, max_chance=0.02),
}


def result_of(step: Step) -> int:
    """(7, "-", 2) -> 5."""
    a, operator, b = step
    if operator == "+":
        return a + b
    return a - b if operator == "-" else a * b


@functools.lru_cache(maxsize=65_536)
def steps_from(numbers: Numbers) -> tuple[Step, ...]:
    """The steps that a teacher may take: each pair of the numbers, the larger first, with each operator whose result
    is 1 to 999; without repetitions."""
    pairs = dict.fromkeys((high, low) for low, high in itertools.combinations(numbers, 2))
    steps = [(high, operator, low) for high, low in pairs for operator in OPERATORS]
    return tuple(step for step in steps if 0 < result_of(step) <= _LARGEST)


def left_after(numbers: Numbers, step: Step) -> Numbers:
    """What is left of the numbers, with the result.

    Raises:
      ValueError: an operand is not among the numbers.
    """
    left = list(numbers)
    for operand in (step[0], step[2]):
        left.remove(operand)
    return tuple(sorted([*left, result_of(step)]))


@functools.lru_cache(maxsize=65_536)
def chance_of(numbers: Numbers, target: int) -> float:
    """The probability that a player arrives at the target who draws each step uniformly among `steps_from`; where
    there is none (600 and 600), the play is over."""
    if len(numbers) == 1:
        return float(numbers[0] == target)
    steps = steps_from(numbers)
    if not steps:
        return 0.0
    return sum(chance_of(left_after(numbers, step), target) for step in steps) / len(steps)


@dataclass(frozen=True)
class CountdownProblem:
    """Numbers in ascending order, and the target."""

    numbers: Numbers
    target: int

    @property
    def question(self) -> str:
        return f"Numbers: {_listed(self.numbers)}. Target: {self.target}."

    @property
    def answer(self) -> str:
        """What a response is graded by: the target and the numbers, "22 2 3 5 7"."""
        return _listed((self.target, *self.numbers))

    @property
    def chance(self) -> float:
        """`chance_of` the numbers."""
        return chance_of(self.numbers, self.target)


@functools.lru_cache(maxsize=1024)
def read_problem(answer: str) -> CountdownProblem:
    """The problem of a reference (`CountdownProblem.answer`).

    Raises:
      UserError: it is none.
    """
    if len(answer) > 50 or not (answer.isascii() and _REFERENCE.fullmatch(answer)):
        raise UserError(
            f"the reference {answer[:40]!r} is no countdown problem: it names the target and 2 to {MOST_NUMBERS} "
            f'numbers of 1 to {_LARGEST}, "22 2 3 5 7"'
        )
    target, *numbers = map(int, answer.split(" "))
    return CountdownProblem(tuple(sorted(numbers)), target)


def make_problem(rng: "np.random.Generator", difficulty: Difficulty) -> CountdownProblem:
    """Draws one problem: the numbers uniformly, the target by a random play; again until both are in their ranges.

    Raises:
      ValueError: no problem was found.
    """
    for _ in range(_MOST_DRAWS):
        drawn = rng.integers(1, difficulty.max_number + 1, difficulty.numbers)
        numbers = left = tuple(sorted(map(int, drawn)))
        while len(left) > 1 and (steps := steps_from(left)):
            left = left_after(left, steps[int(rng.integers(len(steps)))])
        if len(left) > 1 or left[0] in numbers:
            continue
        if difficulty.min_target <= left[0] <= difficulty.max_target:
            problem = CountdownProblem(numbers, left[0])
            if difficulty.min_chance <= problem.chance <= difficulty.max_chance:
                return problem
    raise ValueError(f"no problem of {difficulty} found: widen its ranges")


def worked_solution(
    problem: CountdownProblem, rng: "np.random.Generator", noise: float = 0.0, foresight: float = 0.9
) -> str:
    """The response of a teacher.

    With probability `foresight` a step is drawn among those after which the target can still be reached, if there are
    any, and otherwise among all of `steps_from`; where there is none, the text ends. With probability `noise` its
    result is a mistake instead, off by one, or by ten; the list and the steps behind it go on from there.
    """
    numbers, lines = problem.numbers, []
    while len(numbers) > 1 and (steps := steps_from(numbers)):
        if rng.random() < foresight:
            seeing = tuple(s for s in steps if chance_of(left_after(numbers, s), problem.target))
            steps = seeing or steps
        step = steps[int(rng.integers(len(steps)))]
        result, left = result_of(step), left_after(numbers, step)
        if noise and rng.random() < noise:
            wrong = [w for w in (result - 10, result - 1, result + 1, result + 10) if 0 < w <= _LARGEST]
            stated = wrong[int(rng.integers(len(wrong)))]
            others = list(left)
            others.remove(result)
            result, left = stated, tuple(sorted([*others, stated]))
        lines.append(f"{step[0]}{step[1]}{step[2]}={result}: {_listed(left)}")
        numbers = left
    return SEPARATOR.join([*lines, f"\\boxed{{{numbers[0]}}}"])


def _listed(numbers: Numbers) -> str:
    return " ".join(map(str, numbers))
