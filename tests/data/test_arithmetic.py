"""Chained arithmetic: problems stay in range, solutions are right, mistakes carry on."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data.arithmetic import DIFFICULTIES, Difficulty, make_problem, worked_solution
from ibtpo.data.difficulties import find_difficulty
from ibtpo.errors import UserError

_seeds = st.integers(0, 2**32)
_difficulties = st.sampled_from(sorted(DIFFICULTIES)).map(functools.partial(find_difficulty, DIFFICULTIES))
_STEP = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def _parse_question(question: str) -> tuple[int, list[tuple[str, int]]]:
    """Reads the English back, independently of the code that writes it."""
    start, *rest = question.removesuffix(".").split(". ")
    words = {"Add": "+", "Subtract": "-", "Multiply by": "*"}
    operations = [(words[" ".join(phrase.split()[:-1])], int(phrase.split()[-1])) for phrase in rest]
    assert start.startswith("Start with ")
    return int(start.split()[-1]), operations


def _parse_solution(solution: str) -> tuple[list[tuple[int, str, int, int]], int]:
    *steps, last = solution.split("\n\n")
    parsed = []
    for step in steps:
        left, operator, right, result = _STEP.fullmatch(step).groups()
        parsed.append((int(left), operator, int(right), int(result)))
    return parsed, int(re.fullmatch(r"The answer is \\boxed\{(\d+)\}\.", last).group(1))


@given(_seeds, _difficulties)
def test_problem_stays_in_range_and_its_answer_is_right(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    value, operations = _parse_question(problem.question)
    assert 1 <= value <= difficulty.max_start
    assert difficulty.min_ops <= len(operations) <= difficulty.max_ops
    for operator, operand in operations:
        assert 2 <= operand <= difficulty.max_multiplier if operator == "*" else 1 <= operand <= difficulty.max_operand
        value = eval(f"{value}{operator}{operand}")
        assert 0 <= value <= difficulty.max_value
    assert problem.answer == str(value)


@given(_seeds, _difficulties)
def test_same_generator_state_same_problem_and_solution(seed, difficulty):
    def draw():
        rng = np.random.default_rng(seed)
        problem = make_problem(rng, difficulty)
        return problem, worked_solution(problem, rng, noise=0.5)

    assert draw() == draw()


@given(_seeds, _difficulties)
def test_solution_without_noise_is_right(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    steps, boxed = _parse_solution(worked_solution(problem))
    assert [(operator, right) for _, operator, right, _ in steps] == list(problem.operations)
    assert steps[0][0] == problem.start
    assert all(eval(f"{left}{operator}{right}") == result for left, operator, right, result in steps)
    assert str(boxed) == problem.answer


@given(_seeds, _difficulties, st.floats(0.05, 1))
def test_mistakes_are_small_and_carry_on(seed, difficulty, noise):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, difficulty)
    steps, boxed = _parse_solution(worked_solution(problem, rng, noise))
    assert [(operator, right) for _, operator, right, _ in steps] == list(problem.operations)
    value = problem.start
    for left, operator, right, result in steps:
        assert left == value
        right_result = eval(f"{left}{operator}{right}")
        digits, right_digits = str(result), str(right_result)
        one_digit_off = len(digits) == len(right_digits) and sum(a != b for a, b in zip(digits, right_digits)) <= 1
        assert abs(result - right_result) in (1, 10) or one_digit_off
        assert 0 <= result <= 999
        value = result
    assert boxed == value


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_share_of_wrong_steps_is_the_noise(noise):
    rng = np.random.default_rng(0)
    wrong = []
    for _ in range(800):
        steps, _ = _parse_solution(worked_solution(make_problem(rng, DIFFICULTIES["normal"]), rng, noise))
        wrong += [eval(f"{left}{operator}{right}") != result for left, operator, right, result in steps]
    # Four standard errors, and 1 % for the steps that no mistake fits.
    assert abs(np.mean(wrong) - noise) < 4 * np.sqrt(noise * (1 - noise) / len(wrong)) + 0.01


def test_every_kind_of_operation_and_length_occurs():
    rng = np.random.default_rng(0)
    problems = [make_problem(rng, DIFFICULTIES["normal"]) for _ in range(300)]
    assert {operator for problem in problems for operator, _ in problem.operations} == set("+-*")
    assert {len(problem.operations) for problem in problems} == {3, 4, 5}


def test_invalid_values_are_named():
    with pytest.raises(UserError, match=r"'harder'.*easy.*hard.*normal"):
        find_difficulty(DIFFICULTIES, "harder")
    with pytest.raises(ValueError, match=r"min_ops <= max_ops, got 3, 2"):
        Difficulty(3, 2)
    with pytest.raises(ValueError, match=r"max_start"):
        Difficulty(1, 2, max_start=100, max_value=50)
    with pytest.raises(ValueError, match=r"noise=0.5 needs"):
        worked_solution(make_problem(np.random.default_rng(0), DIFFICULTIES["easy"]), noise=0.5)
