r"""Grades a path of the navigation task (`ibtpo.data.navigation`) against the problem that the reference names.

A response is a list of steps "R C1" (the move and the place that it leads to), each with a blank line behind it, and at
the end the box of the place reached, `\boxed{D4}`. That is the whole text, to the letter: each path has one text, so
that the right responses of a problem can be written down (`NavigationProblem.ways`). Why a response is not right is
told by `judge`.
"""

import re

from ibtpo.data.navigation import MOST_MOVES, NavigationProblem, name_of, read_problem

VERDICTS = ("right", "execution", "coverage", "format")
_STEP = re.compile(r"([RD]) ([A-G][1-7])\n\n")
_BOX = re.compile(r"\\boxed\{([A-G][1-7])\}")
_STATEMENT = "\\boxed"
# A path of more moves cannot be legal; the text of twice as many is read before it is called no path.
_MOST_CHARACTERS = 2 * MOST_MOVES * len("R A1\n\n") + len("\\boxed{A1}")


def _read(text: str) -> tuple[list[tuple[str, str]], str] | None:
    """The steps (move, place) and the boxed place; None where the text is none of the form."""
    if len(text) > _MOST_CHARACTERS:
        return None
    steps, at = [], 0
    while step := _STEP.match(text, at):
        steps.append((step[1], step[2]))
        at = step.end()
    box = _BOX.fullmatch(text, at)
    return (steps, box[1]) if box else None


def _judge(text: str, problem: NavigationProblem) -> str:
    if (path := _read(text)) is None:
        return "format"
    place = problem.start
    for move, name in path[0]:
        there = problem.legal(place, move)
        if there is None or name_of(there) != name:
            return "execution"
        place = there
    if name_of(place) != path[1]:
        return "execution"
    return "right" if place == problem.goal else "coverage"


def judge(text: str, reference: str) -> str:
    """Why a response is right or not, one of VERDICTS.

    right: every move is legal, every place follows, the path ends at the goal and the box says so.
    execution: a move that is not legal, or a stated place, the boxed one too, that does not follow from what is before.
    coverage: no such mistake, but the path ends elsewhere.
    format: no path: anything before, between or behind the steps, no box, or far more steps than a path can have.

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
    """The path as it is stated, "R C1, D C2, C2": equal paths have equal answers and are right or wrong together. None
    where the text is no path."""
    if (path := _read(text)) is None:
        return None
    steps, boxed = path
    said = [f"{move} {name}" for move, name in steps]
    return ", ".join([*said, boxed])


def find_statement(text: str) -> int:
    """Where the first box begins; the text's length without one. Behind it no step follows."""
    at = text.find(_STATEMENT)
    return at if at >= 0 else len(text)
