r"""Chained arithmetic: the small task on which the whole method runs on a laptop.

    question  Start with 47. Add 38. Subtract 19. Multiply by 3.
    solution  47+38=85\n\n85-19=66\n\n66*3=198\n\nThe answer is \boxed{198}.

One operation is one reasoning step, so a response has a natural tree of steps, and a wrong step
makes every later step wrong, as in real chains of thought.
"""

from dataclasses import dataclass

import numpy as np

SEPARATOR = "\n\n"
_PHRASES = {"+": "Add {}.", "-": "Subtract {}.", "*": "Multiply by {}."}


@dataclass(frozen=True)
class Difficulty:
    """Ranges from which problems are drawn; every bound is inclusive.

    A problem starts with 1..max_start and has min_ops..max_ops operations. Operands of + and - are
    1..max_operand, multipliers 2..max_multiplier, and every intermediate result is 0..max_value.
    """

    min_ops: int
    max_ops: int
    max_start: int = 99
    max_operand: int = 99
    max_multiplier: int = 9
    max_value: int = 999

    def __post_init__(self):
        if not 1 <= self.min_ops <= self.max_ops:
            raise ValueError(f"need 1 <= min_ops <= max_ops, got {self.min_ops}, {self.max_ops}")
        if not 1 <= self.max_start <= self.max_value:
            raise ValueError(f"need 1 <= max_start <= max_value, got {self.max_start}, {self.max_value}")
        if self.max_operand < 1:
            raise ValueError(f"need max_operand >= 1, got {self.max_operand}")


# The values that `data.difficulty` may take.
DIFFICULTIES = {
    "easy": Difficulty(2, 3, max_start=50, max_operand=50, max_multiplier=3, max_value=199),
    "normal": Difficulty(3, 5, max_start=50, max_operand=30, max_multiplier=5, max_value=199),
    "hard": Difficulty(5, 8),
    "long": Difficulty(8, 12, max_start=50, max_operand=30, max_multiplier=5, max_value=199),
}


@dataclass(frozen=True)
class ArithmeticProblem:
    """A start value and the (operator, operand) pairs applied to it, left to right."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        phrases = [_PHRASES[operator].format(operand) for operator, operand in self.operations]
        return " ".join([f"Start with {self.start}.", *phrases])

    @property
    def answer(self) -> str:
        return str(_chain(self.start, self.operations)[-1])


def make_problem(rng: np.random.Generator, difficulty: Difficulty) -> ArithmeticProblem:
    """Draws one problem: the operator uniformly among those with an admissible operand, then the
    operand uniformly among the admissible ones."""
    value = start = int(rng.integers(1, difficulty.max_start + 1))
    operations = []
    for _ in range(int(rng.integers(difficulty.min_ops, difficulty.max_ops + 1))):
        ranges = {  # operator -> (smallest, largest) operand
            "+": (1, min(difficulty.max_operand, difficulty.max_value - value)),
            "-": (1, min(difficulty.max_operand, value)),
            # Multiplying zero teaches nothing, so zero has no admissible multiplier.
            "*": (2, min(difficulty.max_multiplier, difficulty.max_value // value) if value else 0),
        }
        admissible = [operator for operator, (low, high) in ranges.items() if low <= high]
        operator = admissible[int(rng.integers(len(admissible)))]
        low, high = ranges[operator]
        operation = (operator, int(rng.integers(low, high + 1)))
        operations.append(operation)
        value = _apply(value, operation)
    return ArithmeticProblem(start, tuple(operations))


def worked_solution(
    problem: ArithmeticProblem,
    rng: np.random.Generator | None = None,
    noise: float = 0.0,
    max_value: int = 999,
) -> str:
    r"""The response text: one step "a+b=c" per operation and a last step with the boxed result.

    With probability `noise` a step's result is replaced by a plausible mistake (off by 1, off by
    10, or one digit changed); later steps carry on from it and the boxed answer is the chain's.
    A mistake is chosen so that the rest of the chain stays in 0..max_value; in the rare case that
    none does, the step stays right. `noise` = 0 draws nothing and needs no `rng`; a noisy solution
    without `rng` is a ValueError.
    """
    if noise and rng is None:
        raise ValueError(f"worked_solution with noise={noise} needs a random generator `rng`")
    value, steps = problem.start, []
    for index, (operator, operand) in enumerate(problem.operations):
        result = _apply(value, (operator, operand))
        if noise and rng is not None and rng.random() < noise:
            result = _mistake(result, problem.operations[index + 1 :], rng, max_value)
        steps.append(f"{value}{operator}{operand}={result}")
        value = result
    return SEPARATOR.join([*steps, f"The answer is \\boxed{{{value}}}."])


def _apply(value: int, operation: tuple[str, int]) -> int:
    operator, operand = operation
    if operator == "+":
        return value + operand
    return value - operand if operator == "-" else value * operand


def _chain(value: int, operations: tuple[tuple[str, int], ...]) -> list[int]:
    """The start value and the result of every operation."""
    values = [value]
    for operation in operations:
        values.append(_apply(values[-1], operation))
    return values


def _mistake(result: int, remaining: tuple[tuple[str, int], ...], rng: np.random.Generator, max_value: int) -> int:
    """A wrong value near `result`: first the kind of mistake is drawn, then the value."""
    digits = str(result)
    kinds = [
        [result - 1, result + 1],
        [result - 10, result + 10],
        [
            int(digits[:place] + other + digits[place + 1 :])
            for place in range(len(digits))
            for other in "0123456789"
            # A changed leading digit must not become a zero: that would drop a place.
            if other != digits[place] and (other != "0" or place > 0 or len(digits) == 1)
        ],
    ]
    kinds = [[wrong for wrong in kind if all(0 <= v <= max_value for v in _chain(wrong, remaining))] for kind in kinds]
    kinds = [kind for kind in kinds if kind]
    if not kinds:
        return result
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind[int(rng.integers(len(kind)))]
