"""Countdown: problems can be solved, and chances, teachers and texts are right, by slow counts of all plays."""

import functools
import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data.countdown import (
    DIFFICULTIES,
    CountdownProblem,
    Difficulty,
    left_after,
    make_problem,
    read_problem,
    steps_from,
    worked_solution,
)
from ibtpo.data.difficulties import find_difficulty
from ibtpo.errors import UserError
from ibtpo.rewards.countdown import judge

_seeds = st.integers(0, 2**32)
_difficulties = st.sampled_from(sorted(DIFFICULTIES)).map(functools.partial(find_difficulty, DIFFICULTIES))


def _read_question(question: str) -> tuple[list[int], int]:
    """Reads the English back, independently of the code that writes it."""
    numbers, target = re.fullmatch(r"Numbers: ([\d ]+)\. Target: (\d+)\.", question).groups()
    return [int(n) for n in numbers.split(" ")], int(target)


def _plays(numbers: list[int]) -> dict[int, Fraction]:
    """The probability of each end, by playing everything: pairs of places, of which those with equal values are one."""
    if len(numbers) == 1:
        return {numbers[0]: Fraction(1)}
    results = {}
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        if a >= b:
            for sign, value in (("+", a + b), ("-", a - b), ("*", a * b)):
                if 1 <= value <= 999:
                    results[a, sign, b] = [*rest, value]
    ends: dict[int, Fraction] = {}
    for left in results.values():
        for end, chance in _plays(left).items():
            ends[end] = ends.get(end, Fraction(0)) + chance / len(results)
    return ends


@given(_seeds, _difficulties)
def test_a_problem_stays_in_range_and_its_chance_is_that_of_all_plays(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    numbers, target = _read_question(problem.question)
    assert len(numbers) == difficulty.numbers and numbers == sorted(numbers)
    assert 1 <= min(numbers) and max(numbers) <= difficulty.max_number and target not in numbers
    assert difficulty.min_target <= target <= difficulty.max_target
    if len(numbers) == 3:
        assert problem.chance == pytest.approx(float(_plays(numbers)[target]))
    assert difficulty.min_chance <= problem.chance <= difficulty.max_chance


def test_the_chance_of_four_numbers_is_that_of_all_plays():
    ends = _plays([2, 3, 5, 5])
    assert sum(ends.values()) == 1 and len(ends) > 30
    for target, chance in ends.items():
        assert CountdownProblem((2, 3, 5, 5), target).chance == pytest.approx(float(chance))
    assert CountdownProblem((2, 3, 5, 5), 998).chance == 0


@given(_seeds, st.sampled_from(sorted(DIFFICULTIES)))
def test_same_generator_state_same_problem_and_solution(seed, name):
    difficulty = DIFFICULTIES[name]

    def draw():
        rng = np.random.default_rng(seed)
        problem = make_problem(rng, difficulty)
        return problem, worked_solution(problem, rng, 0.5, difficulty.foresight)

    assert draw() == draw()
    assert read_problem(draw()[0].answer) == draw()[0]


@given(_seeds, _difficulties)
def test_a_teacher_with_foresight_is_right_and_one_without_makes_no_mistake(seed, difficulty):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, difficulty)
    assert judge(worked_solution(problem, rng, foresight=1.0), problem.answer) == "right"
    assert judge(worked_solution(problem, rng, foresight=0.0), problem.answer) in ("right", "coverage")


def test_the_chance_is_how_often_a_teacher_without_foresight_arrives():
    rng = np.random.default_rng(0)
    problem = CountdownProblem((3, 6, 26), 23)
    right = [judge(worked_solution(problem, rng, foresight=0.0), problem.answer) == "right" for _ in range(3000)]
    assert abs(np.mean(right) - problem.chance) < 4 * np.sqrt(problem.chance * (1 - problem.chance) / 3000)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_share_of_wrong_results_is_the_noise(noise):
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(400):
        problem = make_problem(rng, DIFFICULTIES["normal"])
        numbers = list(problem.numbers)
        *steps, last = worked_solution(problem, rng, noise).split("\n\n")
        assert len(steps) == 3
        for step in steps:
            a, sign, b, stated, left = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+): ([\d ]+)", step).groups()
            for operand in (a, b):
                numbers.remove(int(operand))
            numbers = sorted([*numbers, int(stated)])
            assert left == " ".join(map(str, numbers))
            result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            wrong.append(result != int(stated))
            assert abs(result - int(stated)) in (0, 1, 10)
        assert last == f"\\boxed{{{numbers[0]}}}"
    assert abs(np.mean(wrong) - noise) < 4 * np.sqrt(noise * (1 - noise) / len(wrong))


def test_foresight_pays():
    rng = np.random.default_rng(0)
    problems = [make_problem(rng, DIFFICULTIES["normal"]) for _ in range(200)]

    def right(foresight):
        return np.mean([judge(worked_solution(p, rng, 0.0, foresight), p.answer) == "right" for p in problems])

    assert right(0.0) < 0.1 < right(0.5) < 0.6 < right(0.9) < right(1.0) == 1


def test_steps_written_by_hand():
    assert steps_from((2, 2, 5)) == (
        (2, "+", 2), (2, "*", 2), (5, "+", 2), (5, "-", 2), (5, "*", 2),
    )  # fmt: skip
    assert left_after((2, 2, 5), (5, "-", 2)) == (2, 3)
    assert steps_from((500, 600)) == ((600, "-", 500),)  # nothing above 999
    with pytest.raises(ValueError):
        left_after((2, 3, 5), (2, "+", 2))


def test_invalid_values_are_named():
    with pytest.raises(ValueError, match=r"2 <= numbers <= 6, got 7"):
        Difficulty(7, 20, 99)
    with pytest.raises(ValueError, match=r"max_number <= 999, got 0"):
        Difficulty(3, 0, 99)
    with pytest.raises(ValueError, match=r"min_target <= max_target <= 999, got 10, 5"):
        Difficulty(3, 20, 5)
    with pytest.raises(ValueError, match=r"min_chance <= max_chance <= 1, got 0.2, 0.1"):
        Difficulty(3, 20, 99, min_chance=0.2)
    with pytest.raises(ValueError, match=r"foresight <= 1, got 1.5"):
        Difficulty(3, 20, 99, foresight=1.5)
    with pytest.raises(ValueError, match=r"no problem of .* found: widen"):
        make_problem(np.random.default_rng(0), Difficulty(2, 2, 99))


@pytest.mark.parametrize("answer", [
    "", "22", "22 3", "22  3 5", "22 3 5\n", "22 03 5", "0 3 5", "22 3 5 1000", "-2 3 5", "22 3 5 " * 10_000,
    "2\u0662 3 5", "22 1 2 3 4 5 6 7",
])  # fmt: skip
def test_a_reference_that_is_none_is_named(answer):
    with pytest.raises(UserError, match="is no countdown problem"):
        read_problem(answer)
