"""What the first responses of a run look like, in one line before training; and where training cannot work, a warning
that names the key to change.

Only unguided responses are counted, which are those that the policy gives by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibtpo.choices import STEP_STRATEGIES
from ibtpo.data.problems import Problem
from ibtpo.policy import Policy
from ibtpo.rewards import find_extractor, stated
from ibtpo.tree import Tree, tokens_of_response

MANY_STEPS = 3  # with fewer there is next to nothing to choose a fork from
_FEW = 0.1


@dataclass(frozen=True)
class FirstResponses:
    """Counts of a batch: questions, those of them with right and wrong responses (the guided ones too), responses, and
    of these those that stopped by themselves, that state an answer (None where their kind has none), that are right,
    and that have MANY_STEPS or more."""

    questions: int
    mixed: int
    responses: int
    stopped: int
    answered: int | None
    right: int
    many_steps: int

    def __str__(self) -> str:
        def share(count: int) -> str:
            return f"{100 * count / self.responses:.0f} %"

        answered = "" if self.answered is None else f"{share(self.answered)} state an answer, "
        return (
            f"first {self.responses} responses: {share(self.stopped)} stop, {answered}{share(self.right)} are right, "
            f"{share(self.many_steps)} have {MANY_STEPS} steps or more; {self.mixed} of {self.questions} questions "
            "have right and wrong ones"
        )


def look(trees: Sequence[Tree], problems: Sequence[Problem], policy: Policy, kind: str) -> FirstResponses:
    """Counts the responses to a batch of problems. kind: `reward.kind`, of problems without one."""
    stopped, answered, right, steps, has_answers = 0, 0, 0, [], False
    for tree, problem in zip(trees, problems, strict=True):
        own = problem.kind or kind
        has_answers |= find_extractor(own) is not None
        for r in np.flatnonzero(np.asarray(tree.response_round[0]) == 0).tolist():
            tokens = np.asarray(tree.tokens[0])[tokens_of_response(tree, r)]
            cut = bool(tree.truncated[0, r])
            stopped += not cut
            right += float(tree.rewards[0, r]) == 1
            steps.append(len(policy.codec.step_ends(tokens)))
            answered += stated(own, policy.text(tokens), cut) is not None
    return FirstResponses(
        questions=len(trees),
        mixed=sum(len(np.unique(tree.rewards[tree.response_node >= 0])) > 1 for tree in trees),
        responses=len(steps),
        stopped=stopped,
        answered=answered if has_answers else None,
        right=right,
        many_steps=sum(n >= MANY_STEPS for n in steps),
    )


def _other_steps(data: Any) -> str:
    """What to set so that there are more steps."""
    if data.step_rule == "sentence":
        return "data.step_rule is 'sentence' now; set it to 'separator' and data.separator to what stands between steps"
    return (
        f"set data.step_rule to 'sentence', or data.separator, which is {data.separator!r} now, to what stands between "
        "steps (a line break)"
    )


def warnings(found: FirstResponses, config: Any) -> list[str]:
    """Why training cannot work, or not as a tree, with such responses; one line each."""
    lines = []
    if not found.stopped:
        lines.append(
            f"no response stops within sampling.max_new_tokens={config.sampling.max_new_tokens}: raise it, or say "
            "where one ends with sampling.stop_strings or sampling.stop_tokens"
        )
    if not found.mixed and not found.right:
        if found.answered is not None and found.answered < _FEW * found.responses:
            key = "hardly any states an answer: change data.prompt (or data.chat_template), so that it asks for one"
        else:
            key = "take easier problems in data.source (ibtpo filter keeps those that are solved now and then)"
        lines.append(f"no response is right, so that every advantage is 0 and nothing is learnt: {key}")
    elif not found.mixed and found.right == found.responses:
        lines.append(
            "every response is right, so that every advantage is 0 and nothing is learnt: take harder problems in "
            "data.source (ibtpo filter keeps those that are not always solved)"
        )
    elif not found.mixed:
        lines.append(
            "no question has right and wrong responses, so that every advantage is 0 and nothing is learnt: take "
            "problems in data.source that are solved now and then (ibtpo filter finds them), or raise tree.initial"
        )
    if config.tree.strategy in STEP_STRATEGIES and found.many_steps < _FEW * found.responses:
        lines.append(
            f"hardly any response has {MANY_STEPS} steps, between which trees branch: {_other_steps(config.data)}, or "
            "ask for steps in data.prompt"
        )
    return lines
