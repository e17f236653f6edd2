"""Navigation: problems have ways, and their chances, teachers and texts are right, by slow counts of all paths."""

import functools
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data.difficulties import find_difficulty
from ibtpo.data.navigation import (
    DIFFICULTIES,
    Difficulty,
    NavigationProblem,
    make_problem,
    place_of,
    read_problem,
    response_of,
    worked_solution,
)
from ibtpo.errors import UserError
from ibtpo.rewards.navigation import judge

_seeds = st.integers(0, 2**32)
_difficulties = st.sampled_from(sorted(DIFFICULTIES)).map(functools.partial(find_difficulty, DIFFICULTIES))
_GRID = {f"{letter}{number}" for letter in "ABCDEFG" for number in "1234567"}


def _read_question(question: str) -> tuple[str, str, set[str]]:
    """Reads the English back, independently of the code that writes it."""
    start, goal, blocked = re.fullmatch(r"From (\w\d) to (\w\d)\. Blocked: ([\w ]+)\.", question).groups()
    return start, goal, set(blocked.split(" "))


def _next(name: str, move: str) -> str:
    return chr(ord(name[0]) + 1) + name[1] if move == "R" else name[0] + chr(ord(name[1]) + 1)


def _all_ways(question: str) -> set[str]:
    """Every right response, by trying all sequences of moves."""
    start, goal, blocked = _read_question(question)
    right, down = ord(goal[0]) - ord(start[0]), ord(goal[1]) - ord(start[1])
    ways = set()
    for places in itertools.combinations(range(right + down), right):
        at, moves = start, ["R" if i in places else "D" for i in range(right + down)]
        for move in moves:
            at = _next(at, move)
            if at in blocked:
                break
        else:
            ways.add("".join(moves))
    return ways


@given(_seeds, _difficulties)
def test_a_problem_stays_in_range_and_can_be_solved(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    start, goal, blocked = _read_question(problem.question)
    right, down = ord(goal[0]) - ord(start[0]), ord(goal[1]) - ord(start[1])
    assert difficulty.min_moves <= right + down <= difficulty.max_moves and min(right, down) >= 2
    assert {start, goal} | blocked <= _GRID and not {start, goal} & blocked
    assert all(start[0] <= b[0] <= goal[0] and start[1] <= b[1] <= goal[1] for b in blocked)
    assert len(blocked) <= round(difficulty.max_blocked * ((right + 1) * (down + 1) - 2))
    assert difficulty.min_chance <= problem.chance <= difficulty.max_chance
    ways = list(problem.ways())
    assert ways and len(set(ways)) == len(ways) and set(ways) == _all_ways(problem.question)
    assert ways == sorted(ways, key=lambda moves: moves.replace("R", "0"))  # R before D
    assert len(ways) <= 252


@given(_seeds, _difficulties)
def test_same_generator_state_same_problem_and_solution(seed, difficulty):
    def draw():
        rng = np.random.default_rng(seed)
        problem = make_problem(rng, difficulty)
        return problem, worked_solution(problem, rng, noise=0.5)

    assert draw() == draw()


@given(_seeds, _difficulties)
def test_the_reference_gives_the_problem_back(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    assert read_problem(problem.answer) == problem


@given(_seeds, _difficulties)
def test_every_way_is_right_and_every_other_sequence_of_moves_is_not(seed, difficulty):
    problem = make_problem(np.random.default_rng(seed), difficulty)
    ways = set(problem.ways())
    assert {judge(response_of(problem.start, moves), problem.answer) for moves in ways} == {"right"}
    longest = sum(problem.goal) - sum(problem.start)
    for moves in map("".join, itertools.product("RD", repeat=min(longest, 7))):
        try:
            text = response_of(problem.start, moves)
        except ValueError:
            continue
        assert judge(text, problem.answer) in (("right",) if moves in ways else ("execution", "coverage"))


@given(_seeds, _difficulties)
def test_a_teacher_without_mistakes_makes_no_mistake(seed, difficulty):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, difficulty)
    assert judge(worked_solution(problem, rng), problem.answer) in ("right", "coverage")


def test_the_chance_is_how_often_the_teacher_arrives():
    rng = np.random.default_rng(0)
    for _ in range(5):
        problem = make_problem(rng, DIFFICULTIES["normal"])
        right = [judge(worked_solution(problem, rng), problem.answer) == "right" for _ in range(600)]
        assert abs(np.mean(right) - problem.chance) < 4 * np.sqrt(problem.chance * (1 - problem.chance) / 600)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_share_of_wrong_steps_is_the_noise_and_there_are_two_kinds(noise):
    rng = np.random.default_rng(0)
    wrong, blocked, slips = [], 0, 0
    for _ in range(400):
        problem = make_problem(rng, DIFFICULTIES["normal"])
        at, (_, goal, closed) = problem.start, _read_question(problem.question)
        at = _read_question(problem.question)[0]
        *steps, last = worked_solution(problem, rng, noise).split("\n\n")
        for step in steps:
            move, there = step.split(" ")
            assert there in _GRID and there[0] <= goal[0] and there[1] <= goal[1]
            slip, into = there != _next(at, move), there in closed
            wrong.append(slip or into)
            slips, blocked, at = slips + slip, blocked + (into and not slip), there
        assert last == f"\\boxed{{{at}}}"
    # Four standard errors, and 2 % for the steps that no mistake fits.
    assert abs(np.mean(wrong) - noise) < 4 * np.sqrt(noise * (1 - noise) / len(wrong)) + 0.02
    assert slips > blocked > sum(wrong) / 20  # a blocked place is not always beside the path


def test_every_length_occurs():
    rng = np.random.default_rng(0)
    problems = [make_problem(rng, DIFFICULTIES["normal"]) for _ in range(300)]
    assert {sum(p.goal) - sum(p.start) for p in problems} == {5, 6, 7, 8, 9, 10}
    assert 0.2 < np.mean([p.chance for p in problems]) < 0.35
    assert np.mean([len(list(p.ways())) for p in problems]) > 4


def test_invalid_values_are_named():
    with pytest.raises(UserError, match=r"'harder'.*easy.*hard.*normal"):
        find_difficulty(DIFFICULTIES, "harder")
    with pytest.raises(ValueError, match=r"min_moves <= max_moves <= 12, got 6, 5"):
        Difficulty(6, 5)
    with pytest.raises(ValueError, match=r"min_blocked"):
        Difficulty(5, 6, min_blocked=0.5, max_blocked=0.2)
    with pytest.raises(ValueError, match=r"min_chance"):
        Difficulty(5, 6, min_chance=0.0)
    with pytest.raises(ValueError, match=r"no problem of .* found: widen"):
        make_problem(np.random.default_rng(0), Difficulty(5, 5, min_chance=0.301, max_chance=0.302))
    with pytest.raises(ValueError, match=r"R leads from G1 off the grid"):
        response_of(place_of("G1"), "R")
    with pytest.raises(ValueError):
        place_of("H1")


@pytest.mark.parametrize(
    "answer, message",
    [
        ("", "is no navigation problem"),
        ("B1", "is no navigation problem"),
        ("B1 D8", "is no navigation problem"),
        ("b1 D4", "is no navigation problem"),
        ("B1  D4", "is no navigation problem"),
        ("B1 D4\n", "is no navigation problem"),
        ("B1 D4 " * 10_000, "is no navigation problem"),
        ("\u0661 D4", "is no navigation problem"),
        ("D4 B1", "without a way"),  # backwards
        ("B1 B3 B2", "without a way"),  # blocked
        ("B1 C2 B1", "without a way"),  # begins in a blocked place
        ("B1 C2 C2", "without a way"),
    ],
)
def test_a_reference_that_is_none_is_named(answer, message):
    with pytest.raises(UserError, match=message):
        read_problem(answer)


def test_ways_of_a_problem_written_by_hand():
    problem = NavigationProblem(place_of("A1"), place_of("C3"), (place_of("B2"),))
    assert list(problem.ways()) == ["RRDD", "DDRR"]
    assert problem.chance == 1.0 and problem.question == "From A1 to C3. Blocked: B2."
    assert response_of(problem.start, "RRDD") == "R B1\n\nR C1\n\nD C2\n\nD C3\n\n\\boxed{C3}"
