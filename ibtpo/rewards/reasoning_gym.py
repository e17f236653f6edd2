"""Grades an answer to a task of Reasoning Gym (`ibtpo.data.procedural`) by the task's own scorer.

Some scorers give a part of 1 for an answer that is partly right or has the right form; what they give is the reward.
Some of them evaluate the answer as Python or by sympy's parser: workers bound its time and memory, and an answer that
calls what no solution calls is wrong before a scorer sees it.
"""

import functools
import importlib.util
import math
import re
from typing import Any

from ibtpo.data.procedural import Reference, make_task, read_reference
from ibtpo.rewards.math import find_boxes
from ibtpo.rewards.thinking import visible_start

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_STATED = re.compile(r"<answer>|\\boxed")
_CODE = re.compile(
    r"__|\blambda\b|\bimport\b|\b(?:eval|exec|compile|open|input|exit|quit|breakpoint|getattr|setattr|delattr|globals|"
    r"locals|vars|dir|type|os|sys|subprocess|builtins)\s*[(.]"
)
_MOST_CHARACTERS = 20_000


def extract_answer(text: str) -> str | None:
    r"""The text in the last <answer>...</answer> behind the thinking or, where there is none, in the last \boxed{...};
    None without either."""
    visible = text[visible_start(text) :]
    found = _ANSWER.findall(visible)
    answer = found[-1] if found else find_boxes(visible)[0]
    return answer.strip() if answer and answer.strip() else None


def find_statement(text: str) -> int:
    """Where the text, behind its thinking, first states an answer; its length where it never does."""
    found = _STATED.search(text, visible_start(text))
    return found.start() if found else len(text)


def fast_reward(text: str, reference: str) -> float | None:
    """0.0 where no answer is stated, or one that is none; else None: the scorer is for a worker.

    Raises:
      UserError: the reference is none of `procedural`.
    """
    read_reference(reference)
    answer = extract_answer(text)
    return 0.0 if answer is None or len(answer) > _MOST_CHARACTERS or _CODE.search(answer) else None


def reward(text: str, reference: str) -> float:
    """What the task's scorer gives the stated answer, from 0 to 1; 0.0 where it fails.

    Raises:
      UserError: the reference is none of `procedural`, or another version of the package made it.
    """
    if (sure := fast_reward(text, reference)) is not None:
        return sure
    wanted = read_reference(reference)
    task, entry = _task(wanted.task, wanted.options), _entry(wanted)
    try:
        score = float(task.score_answer(answer=extract_answer(text), entry=entry))
    except Exception:  # of a scorer that the answer's form surprises
        return 0.0
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0


_task = functools.cache(make_task)


@functools.lru_cache(maxsize=256)
def _entry(wanted: Reference) -> dict[str, Any]:
    return wanted.find_entry(_task(wanted.task, wanted.options))


def show_reference(reference: str) -> str:
    """The answer that the task itself gives."""
    return read_reference(reference).answer


def load() -> None:
    """Imports the package where it is installed."""
    if importlib.util.find_spec("reasoning_gym") is not None:
        importlib.import_module("reasoning_gym")
