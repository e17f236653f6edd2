"""The metrics of a training step, as pure functions of its trees and rows."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from ibtpo.advantages import AdvantageOptions, diagnostics
from ibtpo.data.problems import Problem
from ibtpo.losses import Metrics, add_metrics
from ibtpo.packing import Layout, TokenBatch
from ibtpo.sampling import SamplerStats
from ibtpo.tree import Tree


@dataclass(frozen=True)
class Sampled:
    """The graded trees of one step and their cost.

    tree: those that are trained on, problems: of each. everything: those and, behind them, the ones that dynamic
    sampling replaced.
    shaping, terms: of `shaping.shape`, the first for `tree`, the second over everything. graded: answers graded, by how
    (`Grader.counts`).
    """

    tree: Tree
    problems: Sequence[Problem]
    everything: Tree
    shaping: np.ndarray | None
    terms: Mapping[str, float]
    graded: Mapping[str, int]
    stats: SamplerStats

    @property
    def replaced(self) -> int:
        """How many trees were replaced."""
        return len(self.everything.tokens) - len(self.tree.tokens)


class Update(NamedTuple):
    """One optimizer step: its packed rows, and its metrics (on the devices until read)."""

    layout: Layout
    batch: TokenBatch
    metrics: Metrics


def reduce(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """{name: sum / weight} of {name: (sum, weight)}, both scalars; a name of weight 0 is left out."""
    pairs = {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()}
    return {name: total / weight for name, (total, weight) in pairs.items() if weight != 0}


def of_updates(results: Sequence[Metrics]) -> dict[str, float]:
    """The metrics of a step's updates as those of one; `sampler_gap` is of the first, since later updates have another
    policy than the one that drew the tokens."""
    total: Metrics = functools.reduce(add_metrics, results)
    return reduce({**total, "sampler_gap": results[0]["sampler_gap"]})


def of_packing(layouts: Sequence[Layout]) -> dict[str, float]:
    """Means over the updates: `row_use`, the share of the computed cells that hold a token of a tree's own, and
    `row_repeats`, tokens repeated for pieces of trees over own ones."""
    return {
        "row_use": float(np.mean([layout.useful_share for layout in layouts])),
        "row_repeats": float(np.mean([layout.repeated_share for layout in layouts])),
    }


def of_sampling(sampled: Sampled, options: AdvantageOptions) -> dict[str, float]:
    """Of all trees sampled, also those that were replaced: `advantages.diagnostics`, lengths, and costs."""
    tree, stats = sampled.everything, sampled.stats
    exists = tree.response_node >= 0
    return reduce(diagnostics(tree, options)) | {
        "tokens_per_question": stats.generated_tokens / stats.questions,
        "responses_per_1k_tokens": 1000 * stats.responses / stats.generated_tokens,
        "response_length": float(tree.response_length[exists].mean()),
        # Unguided responses are those that independent sampling would give: their length prices it.
        "response_length_initial": float(tree.response_length[tree.response_round == 0].mean()),
        "truncation_rate": float(tree.truncated[exists].mean()),
        "refilled": sampled.replaced,
        "slot_use": stats.generated_tokens / stats.slot_steps,
        "slot_tail": stats.tail_slot_steps / stats.slot_steps,
        "preemptions": stats.preemptions,
        "kv_pages_peak": stats.peak_pages,
        "kv_pages_left": stats.pages_left,
        **{f"graded_{name}": count for name, count in sampled.graded.items()},
    }


def step_metrics(
    sampled: Sampled, updates: Sequence[Update], options: AdvantageOptions, **others: float
) -> dict[str, float]:
    """{"train/<name>": value} of a step: of its updates, its sampling, and `others` as they are; and
    "time/sampler_stall_s", how long the device had nothing to do while the trees were sampled."""
    found = of_updates(jax.device_get([update.metrics for update in updates]))
    found |= of_packing([update.layout for update in updates])
    found |= of_sampling(sampled, options) | dict(sampled.terms) | others
    stall = {"time/sampler_stall_s": sampled.stats.stall_seconds}
    return {f"train/{name}": value for name, value in found.items()} | stall
