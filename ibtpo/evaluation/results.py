"""The results of an evaluation: graded responses, their metrics, and the bootstrap intervals of these.

Metrics are computed from responses.jsonl (`files.py`) alone, so that they can be computed again without a model.
Nothing here imports JAX.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibtpo.data.problems import Problem
from ibtpo.evaluation import estimators
from ibtpo.rewards import find_extractor
from ibtpo.rewards.math import canonical


@dataclass(frozen=True)
class Metric:
    """A mean over questions: values [Q], and weights [Q] where questions do not count alike."""

    values: np.ndarray
    weights: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))


@dataclass
class Evaluation:
    """Graded responses: Q questions, n each.

    problems: each with its reward kind. correct: [Q, n] 0 or 1. answers: [Q][n] extracted answers, None where there is
    none. texts: [Q][n]. lengths: [Q, n] tokens. truncated: [Q, n] bool. generated_tokens: of all responses.
    followed: "strict" and "loose" -> [Q] arrays [n, instructions of the question] bool; empty unless the questions are
    instructions to follow (IFEval).
    """

    problems: Sequence[Problem]
    correct: np.ndarray
    answers: list[list[str | None]]
    texts: list[list[str]]
    lengths: np.ndarray
    truncated: np.ndarray
    generated_tokens: int
    followed: Mapping[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """n, the responses of each question."""
        return self.correct.shape[1]

    def metrics(self, k: int | None = None) -> dict[str, Metric]:
        """avg, pass and maj @k (default: k = n), mean length and truncation rate; for instructions also the share of
        prompts with every instruction followed, and of instructions (prompt_* and instruction_*, over all n responses).

        maj_at_k is left out where responses state no answer that could be voted for (kinds without `extract_answer`).

        Raises:
          ValueError: k is not between 1 and n.
        """
        k = self.samples if k is None else k
        found = {
            "avg_at_k": Metric(estimators.avg_at_k(self.correct)),
            "pass_at_k": Metric(estimators.pass_at_k(self.correct, k)),
        }
        if all(find_extractor(problem.kind) for problem in self.problems):
            votes = [[None if answer is None else canonical(answer) for answer in row] for row in self.answers]
            found["maj_at_k"] = Metric(estimators.maj_at_k(self.correct, votes, k))
        found["mean_length"] = Metric(self.lengths.mean(axis=1))
        found["truncation_rate"] = Metric(self.truncated.mean(axis=1))
        for mode, verdicts in self.followed.items():
            found[f"prompt_{mode}"] = Metric(np.array([v.all(axis=1).mean() for v in verdicts]))
            counts = np.array([v.shape[1] for v in verdicts])
            found[f"instruction_{mode}"] = Metric(np.array([v.mean() for v in verdicts]), counts)
        return found

    def summary(self, seed: int = 0) -> dict[str, float]:
        """The metrics with their 95 % bootstrap intervals over questions.

        {"questions", "k", "generated_tokens", and for each metric its name and `bound` (name, "low" and "high")}.
        """
        intervals = {
            name: estimators.bootstrap_interval(metric.values, metric.weights, seed=seed)
            for name, metric in self.metrics().items()
        }
        counts = {"questions": len(self.problems), "k": self.samples}
        return counts | with_bounds(intervals) | {"generated_tokens": self.generated_tokens}

    def select(self, indices: Sequence[int]) -> "Evaluation":
        """The questions at these places, in this order; generated_tokens stays that of all."""
        indices = list(indices)
        return Evaluation(
            problems=[self.problems[i] for i in indices],
            correct=self.correct[indices],
            answers=[self.answers[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            lengths=self.lengths[indices],
            truncated=self.truncated[indices],
            generated_tokens=self.generated_tokens,
            followed={mode: [verdicts[i] for i in indices] for mode, verdicts in self.followed.items()},
        )


def bound(metric: str, side: str) -> str:
    """The key of a metric's interval in a summary: avg_at_k -> avg_low, mean_length -> mean_length_low."""
    return f"{metric.removesuffix('_at_k')}_{side}"


def with_bounds(intervals: Mapping[str, tuple[float, float, float]]) -> dict[str, float]:
    """{metric: (mean, low, high)} as the flat dict of a summary."""
    return {
        key: value
        for name, interval in intervals.items()
        for key, value in zip((name, bound(name, "low"), bound(name, "high")), interval)
    }


def mean_of_benchmarks(
    metrics: Mapping[str, Mapping[str, Metric]], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """{metric: (mean, low, high)}: the mean over benchmarks, each counted alike, of every metric that all of them have.

    metrics: by benchmark and name. The 95 % interval is a bootstrap that resamples the questions of each benchmark.
    """
    result = {}
    for name in common_names(metrics.values()):
        means = [found[name].mean for found in metrics.values()]
        resampled = [
            estimators.bootstrap_means(found[name].values, found[name].weights, seed=_stream(seed, benchmark))
            for benchmark, found in metrics.items()
        ]
        result[name] = (float(np.mean(means)), *estimators.percentiles(np.mean(resampled, axis=0)))
    return result


def common_names(dicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys that all have, in the order of the first."""
    first, *others = dicts
    return [name for name in first if all(name in other for other in others)]


def _stream(seed: int, name: str) -> list[int]:
    """A seed for each benchmark: their resamples are independent, and do not depend on the order of a list."""
    return [seed, zlib.crc32(name.encode())]
