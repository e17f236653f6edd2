"""Rewards: plain functions (response text, reference answer) -> float, by kind.

To add one, write `reward(text, reference) -> float` in a module of this package and enter it in
`REWARDS`. A kind that can often decide without heavy imports also enters a function returning a
float or None (undecided) in `FAST_PATHS`, which runs in the caller's process and so must take
bounded time on any text; one whose responses state an answer enters a function that finds it in
`EXTRACT`. Nothing here imports JAX: grading workers import this package.
"""

import difflib
from collections.abc import Callable

from ibtpo.rewards import choice, instructions, math

REWARDS: dict[str, Callable[[str, str], float]] = {
    "math": math.reward,
    "multiple_choice": choice.reward,
    "instructions": instructions.reward,
}
FAST_PATHS: dict[str, Callable[[str, str], float | None]] = {
    "math": math.fast_reward,
    "multiple_choice": choice.reward,
    "instructions": instructions.fast_reward,
}
# The answer that a response states, as text, or None where it states none: what evaluation shows and maj@k votes by.
EXTRACT: dict[str, Callable[[str], str | None]] = {
    "math": math.extract_answer,
    "multiple_choice": choice.extract_choice,
}


def get_reward(kind: str) -> Callable[[str, str], float]:
    """The reward function of a kind.

    Raises:
      ValueError: no such kind; the message names the nearest one.
    """
    if kind in REWARDS:
        return REWARDS[kind]
    near = difflib.get_close_matches(str(kind), REWARDS, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown reward.kind {kind!r}; did you mean {near!r}? Known: {', '.join(sorted(REWARDS))}")
