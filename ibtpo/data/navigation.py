r"""Navigation: from place to place on a grid with blocked places, by two moves, without a way back.

    question  From B1 to D4. Blocked: C2 B4.
    solution  D B2\n\nD B3\n\nR C3\n\nR D3\n\nD D4\n\n\boxed{D4}

Places are A1 to G7. R goes to the next letter, D to the next number. One move, with the place that it leads to, is a
reasoning step; the last one boxes the place where the path ends. All ways to the goal have as many moves, at most a
few hundred avoid what is blocked, and each has exactly one text: whatever is asked of a policy's chances of a right
response can be computed by adding up. A response fails by execution (a move that the rules do not allow, or a place
that does not follow) or for want of coverage (every move is legal, but the path ends elsewhere). The second is what
foresight is needed for: a walk that looks at the next place only ends where nothing is left open.

The task is after the navigation of "RL's wall" (arXiv 2505.22756), which tells the same two kinds apart. Nothing here
needs more than the standard library, since grading workers import it; `rng` is NumPy's.
"""

import functools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibtpo.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SEPARATOR = "\n\n"
LETTERS, NUMBERS = "ABCDEFG", "1234567"
MOVES = {"R": (1, 0), "D": (0, 1)}
MOST_MOVES = len(LETTERS) + len(NUMBERS) - 2
_REFERENCE = re.compile(r"[A-G][1-7](?: [A-G][1-7])+")
# Draws of blocked places, for one start and goal, after which other ones are drawn, and such starts before giving up.
_MOST_DRAWS, _MOST_STARTS = 50, 200

Place = tuple[int, int]  # indices into LETTERS and NUMBERS


def name_of(place: Place) -> str:
    """(1, 0) -> "B1"."""
    return LETTERS[place[0]] + NUMBERS[place[1]]


def place_of(name: str) -> Place:
    """"B1" -> (1, 0).

    Raises:
      ValueError: no place of the grid.
    """
    if len(name) != 2:
        raise ValueError(f"{name!r} is no place: a letter of {LETTERS} and a number of {NUMBERS} are")
    return LETTERS.index(name[0]), NUMBERS.index(name[1])


def moved(place: Place, move: str) -> Place | None:
    """Where a move leads; None if that is off the grid."""
    letter, number = place[0] + MOVES[move][0], place[1] + MOVES[move][1]
    return (letter, number) if letter < len(LETTERS) and number < len(NUMBERS) else None


@dataclass(frozen=True)
class Difficulty:
    """Ranges from which problems are drawn; every bound is inclusive.

    A way has min_moves..max_moves moves, at least two of each kind. A share of min_blocked..max_blocked of the places
    between start and goal is blocked, and the teacher, who sees the next place only (`NavigationProblem.chance`),
    arrives with a probability of min_chance..max_chance.
    """

    min_moves: int
    max_moves: int
    min_blocked: float = 0.1
    max_blocked: float = 0.25
    min_chance: float = 0.03
    max_chance: float = 0.4

    def __post_init__(self):
        if not 4 <= self.min_moves <= self.max_moves <= MOST_MOVES:
            raise ValueError(
                f"need 4 <= min_moves <= max_moves <= {MOST_MOVES}, got {self.min_moves}, {self.max_moves}"
            )
        if not 0 < self.min_blocked <= self.max_blocked < 1:
            raise ValueError(f"need 0 < min_blocked <= max_blocked < 1, got {self.min_blocked}, {self.max_blocked}")
        if not 0 < self.min_chance <= self.max_chance < 1:
            raise ValueError(f"need 0 < min_chance <= max_chance < 1, got {self.min_chance}, {self.max_chance}")


# The values that `data.difficulty` may take.
DIFFICULTIES = {
    "easy": Difficulty(5, 7, min_chance=0.2, max_chance=0.75),
    "normal": Difficulty(5, 10),
    "hard": Difficulty(8, 10, max_blocked=0.35, min_chance=0.01, max_chance=0.15),
}


def _chances(start: Place, goal: Place, blocked: Collection[Place]) -> dict[Place, float]:
    """`NavigationProblem.chances`, from the goal backwards."""
    found, closed = {goal: 1.0}, set(blocked)
    for letter in range(goal[0], start[0] - 1, -1):
        for number in range(goal[1], start[1] - 1, -1):
            right, down = (letter + 1, number), (letter, number + 1)
            by_right = letter < goal[0] and right not in closed
            by_down = number < goal[1] and down not in closed
            chance = (found.get(right, 0.0) if by_right else 0.0) + (found.get(down, 0.0) if by_down else 0.0)
            if chance and (letter, number) not in closed:
                found[letter, number] = chance / 2 if by_right and by_down else chance
    return found


@dataclass(frozen=True)
class NavigationProblem:
    """Two places, and those between them that are blocked, in reading order of their names."""

    start: Place
    goal: Place
    blocked: tuple[Place, ...]

    @property
    def question(self) -> str:
        names = " ".join(map(name_of, self.blocked))
        return f"From {name_of(self.start)} to {name_of(self.goal)}. Blocked: {names}."

    @property
    def answer(self) -> str:
        """What a response is graded by: start, goal and the blocked places, "B1 D4 B4 C2"."""
        return " ".join(map(name_of, (self.start, self.goal, *self.blocked)))

    def legal(self, place: Place, move: str) -> Place | None:
        """Where a move leads by the rules; None where it is not allowed."""
        there = moved(place, move)
        return None if there is None or there in self.blocked else there

    def near(self, place: Place) -> list[tuple[str, Place]]:
        """The legal moves that pass the goal in neither direction, with their places; none at the goal."""
        found = ((move, self.legal(place, move)) for move in MOVES)
        return [(m, p) for m, p in found if p and p[0] <= self.goal[0] and p[1] <= self.goal[1]]

    @functools.cached_property
    def chances(self) -> dict[Place, float]:
        """Of each place from which the goal can be reached: the chance of a walk to do so that takes any of `near`,
        each with the same probability."""
        return _chances(self.start, self.goal, self.blocked)

    @property
    def chance(self) -> float:
        """The chance of a teacher without mistakes; 0 where there is no way."""
        return self.chances.get(self.start, 0.0)

    def ways(self) -> Iterator[str]:
        """The right responses, each as its moves ("DDRRD"), R before D at every place."""

        def walk(place: Place, moves: str) -> Iterator[str]:
            if place == self.goal:
                yield moves
            for move, there in self.near(place):
                if there in self.chances:
                    yield from walk(there, moves + move)

        yield from walk(self.start, "")


@functools.lru_cache(maxsize=1024)
def read_problem(answer: str) -> NavigationProblem:
    """The problem of a reference (`NavigationProblem.answer`).

    Raises:
      UserError: it is none, or has no way.
    """
    form = 'it names start, goal and the blocked places, "B1 D4 B4 C2"'
    if len(answer) > 200 or not _REFERENCE.fullmatch(answer):
        raise UserError(f"the reference {answer[:40]!r} is no navigation problem: {form}")
    start, goal, *blocked = map(place_of, answer.split(" "))
    problem = NavigationProblem(start, goal, tuple(blocked))
    if not problem.chance:
        raise UserError(f"the reference {answer!r} is a navigation problem without a way: {form}")
    return problem


def response_of(start: Place, moves: str) -> str:
    """The text of a path, whatever is blocked. A move off the grid is a ValueError."""
    place, steps = start, []
    for move in moves:
        there = moved(place, move)
        if there is None:
            raise ValueError(f"{move} leads from {name_of(place)} off the grid")
        place = there
        steps.append(f"{move} {name_of(place)}")
    return _text(steps, place)


def _text(steps: list[str], end: Place) -> str:
    return SEPARATOR.join([*steps, f"\\boxed{{{name_of(end)}}}"])


def make_problem(rng: "np.random.Generator", difficulty: Difficulty) -> NavigationProblem:
    """Draws one problem: the number of moves, of each kind, the start, and what is blocked, each uniformly among what
    the ranges allow; what is blocked is drawn again until the teacher's chance is in its range.

    Raises:
      ValueError: no problem was found.
    """
    for _ in range(_MOST_STARTS):
        num_moves = int(rng.integers(difficulty.min_moves, difficulty.max_moves + 1))
        right = int(rng.integers(max(2, num_moves - len(NUMBERS) + 1), min(len(LETTERS) - 1, num_moves - 2) + 1))
        down = num_moves - right
        start = (int(rng.integers(len(LETTERS) - right)), int(rng.integers(len(NUMBERS) - down)))
        goal = (start[0] + right, start[1] + down)
        between = [(a, b) for a in range(start[0], goal[0] + 1) for b in range(start[1], goal[1] + 1)][1:-1]
        for _ in range(_MOST_DRAWS):
            share = rng.uniform(difficulty.min_blocked, difficulty.max_blocked)
            drawn = rng.permutation(len(between))[: max(1, round(share * len(between)))]
            problem = NavigationProblem(start, goal, tuple(between[i] for i in sorted(drawn)))
            if difficulty.min_chance <= problem.chance <= difficulty.max_chance:
                return problem
    raise ValueError(f"no problem of {difficulty} found: widen its ranges")


def worked_solution(problem: NavigationProblem, rng: "np.random.Generator", noise: float = 0.0) -> str:
    """The response of a teacher who sees the next place only.

    Every step is drawn among the moves that are legal and do not pass the goal (`NavigationProblem.near`); where there
    is none, the path ends. With probability `noise` a step is a mistake instead, of one of two kinds where there are
    both: into a blocked place, or to a place that does not follow (that of the other move, or of the same move twice).
    The path goes on from the place stated.
    """
    place, steps = problem.start, []
    while ahead := problem.near(place):
        move, there = ahead[int(rng.integers(len(ahead)))]
        if noise and rng.random() < noise:
            move, there = _mistake(problem, place, rng) or (move, there)
        steps.append(f"{move} {name_of(there)}")
        place = there
    return _text(steps, place)


def _mistake(problem: NavigationProblem, place: Place, rng: "np.random.Generator") -> tuple[str, Place] | None:
    """A wrong step, to a place that does not pass the goal; None if there is none."""
    into: list[tuple[str, Place]] = []
    slips: list[tuple[str, Place]] = []
    for move in MOVES:
        there = moved(place, move)
        if there in problem.blocked:
            into.append((move, there))
        other = moved(place, "D" if move == "R" else "R")
        slips += [(move, wrong) for wrong in (other, there and moved(there, move)) if wrong]
    kinds = [[step for step in kind if step[1][0] <= problem.goal[0] and step[1][1] <= problem.goal[1]]
             for kind in (into, slips)]  # fmt: skip
    kinds = [kind for kind in kinds if kind]
    if not kinds:
        return None
    kind = kinds[int(rng.integers(len(kinds)))]
    return kind[int(rng.integers(len(kind)))]
