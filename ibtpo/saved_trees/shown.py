"""The few trees of the last update and of the last evaluation that a run may save, held until the next."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ibtpo.data.problems import Problem
from ibtpo.metrics.step import Sampled
from ibtpo.policy import Policy
from ibtpo.sampling import SampledTree
from ibtpo.saved_trees.files import TreeFile
from ibtpo.saved_trees.record import tree_file
from ibtpo.tree import Array, Tree


class ShownTrees:
    """The trees of the first `number` questions: of an update in the order of its batch, of an evaluation always the
    same. Which they are depends on no reward, so that they are a fair sample."""

    def __init__(self, number: int):
        self._number = number
        self._update: tuple[list[Tree], list[Problem], np.ndarray] | None = None
        self._evaluation: dict[int, tuple[Tree, Problem]] = {}

    def update(self, sampled: Sampled, advantages: Array) -> None:
        """Keeps trees that are trained on, with their advantages, [Q, R, N] of nodes or of tokens."""
        number = min(self._number, len(sampled.problems))
        # Copies: a slice would hold the arrays of the whole batch until the next update.
        few = jax.tree.map(lambda x: np.array(x[:number]), sampled.tree)
        trees = [jax.tree.map(lambda x, q=q: x[q : q + 1], few) for q in range(number)]
        self._update = trees, list(sampled.problems[:number]), np.array(advantages[:number])

    def evaluated(self, problems: Sequence[Problem]) -> Callable[[SampledTree], None]:
        """Begins an evaluation: what to call with each of its trees when it is finished."""
        wanted = {problem.id: problem for problem in problems[: self._number]}
        self._evaluation = {}

        def keep(sampled: SampledTree) -> None:
            if sampled.question.id in wanted:
                self._evaluation[sampled.question.id] = sampled.tree, wanted[sampled.question.id]

        return keep

    def of_update(self, step: int, policy: Policy, config: Any, of_tokens: bool) -> TreeFile | None:
        """What there is to write of the last update; None: nothing."""
        if self._update is None or not self._number:
            return None
        trees, problems, advantages = self._update
        return tree_file("train", step, trees, problems, policy, config, advantages, of_tokens)

    def of_evaluation(self, step: int, policy: Policy, config: Any) -> TreeFile | None:
        """What there is to write of the last evaluation, in order of ids; None: nothing."""
        if not self._evaluation:
            return None
        trees, problems = zip(*(self._evaluation[id] for id in sorted(self._evaluation)))
        return tree_file("eval", step, trees, problems, policy, config)
