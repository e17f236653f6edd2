"""Accuracy from several sampled responses per question: avg@k, pass@k, maj@k, and their confidence
intervals.

Letters: Q questions, n samples per question, k samples an estimator is about (k <= n). Every
estimator is exact for
its n samples: the mean, over all k-subsets of them, of the score of a k-sample run. Each
returns one value per question, so that `bootstrap_interval` can resample the questions, the unit
that generalises.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np


def _correctness(correct: np.ndarray, k: int | None = None) -> np.ndarray:
    correct = np.asarray(correct, dtype=np.float64)
    if correct.ndim != 2 or correct.shape[1] == 0:
        raise ValueError(f"correct must be [questions, samples] with at least one sample, got shape {correct.shape}")
    if not np.isin(correct, (0.0, 1.0)).all():
        raise ValueError(f"correct must hold only 0 and 1, found {correct[~np.isin(correct, (0.0, 1.0))][0]}")
    if k is not None and not 1 <= k <= correct.shape[1]:
        raise ValueError(f"k must be between 1 and the {correct.shape[1]} samples per question, got {k}")
    return correct


def avg_at_k(correct: np.ndarray) -> np.ndarray:
    """avg@k: mean correctness of a question's samples (k = n). Subsets have the same mean.

    Args:
      correct: [Q, n], 1 for a right sample, 0 for a wrong one.

    Returns:
      [Q] float64 in [0, 1].

    Raises:
      ValueError: wrong shape, or values other than 0 and 1.
    """
    return _correctness(correct).mean(axis=1)


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """pass@k: 1 - C(n - c, k) / C(n, k), c being the number of right samples of the n.

    The ratio is the product over i < k of (n - c - i) / (n - i), every factor in [0, 1], so no n
    overflows. Source: Chen et al. 2021, arXiv 2107.03374, equation 1.

    Args:
      correct: [Q, n], 1 for a right sample, 0 for a wrong one.
      k: samples drawn, 1 <= k <= n.

    Returns:
      [Q] float64 in [0, 1].

    Raises:
      ValueError: wrong shape, values other than 0 and 1, or k out of range.
    """
    correct = _correctness(correct, k)
    n = correct.shape[1]
    wrong = n - correct.sum(axis=1, keepdims=True)
    drawn = np.arange(k)
    return 1.0 - np.prod(np.maximum(wrong - drawn, 0.0) / (n - drawn), axis=1)


def maj_at_k(correct: np.ndarray, answers: Sequence[Sequence[Hashable | None]], k: int) -> np.ndarray:
    """maj@k: expected correctness of the most frequent answer among k of the n samples.

    The expectation runs over all k-subsets, each equally likely, and over a random choice, each
    equally likely, among the answers tied for the most votes. Samples without an answer (None) take
    up a draw but do not vote; a subset with no vote is wrong. Two samples vote for the same answer
    when their entries are equal, so bring answers to one form first; should samples with equal
    answers differ in correctness, their mean counts.

    Exact, without enumerating subsets: for each answer g with right samples, and each number of
    votes j it may get, the subsets of the other samples in which no answer exceeds j votes are
    counted by their ties t at j, and g then wins with chance 1 / (t + 1). Counts are floats of one
    sign, so nothing cancels.

    Args:
      correct: [Q, n], 1 for a right sample, 0 for a wrong one.
      answers: [Q][n], the samples' answers (hashable), None where there is none.
      k: votes, 1 <= k <= n; at most 1000 samples when k < n.

    Returns:
      [Q] float64 in [0, 1].

    Raises:
      ValueError: wrong shape, values other than 0 and 1, or k out of range.
    """
    correct = _correctness(correct, k)
    num_questions, n = correct.shape
    if len(answers) != num_questions or any(len(row) != n for row in answers):
        raise ValueError(f"answers must be [{num_questions}][{n}], like correct")
    if k < n and n > 1000:
        raise ValueError(f"maj@k with k={k} < n takes at most 1000 samples per question, got {n}: counts overflow")
    return np.array([_majority(row, list(row_answers), k) for row, row_answers in zip(correct, answers)])


def _majority(correct: np.ndarray, answers: list, k: int) -> float:
    """maj@k of one question."""
    votes: dict = {}
    right: dict = {}
    for answer, value in zip(answers, correct):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
            right[answer] = right.get(answer, 0.0) + value
    if k == len(answers):
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        return sum(right[answer] / votes[answer] for answer in winners) / len(winners) if winners else 0.0
    blank = len(answers) - sum(votes.values())
    total = 0.0
    for answer, count in votes.items():
        if right[answer] == 0.0:
            continue
        others = [other for name, other in votes.items() if name != answer]
        share = sum(math.comb(count, j) * _subsets_won(others, blank, k - j, j) for j in range(1, min(count, k) + 1))
        total += right[answer] / count * share
    return total / math.comb(len(answers), k)


def _subsets_won(others: list[int], blank: int, size: int, most: int) -> float:
    """Sum over the subsets of `size` samples, none of the others above `most` votes, of 1 / (others
    at `most` + 1).

    others: samples per competing answer; blank: samples that do not vote.
    """
    ties = min(len(others), size // most)
    ways = np.zeros((size + 1, ties + 1))  # [samples drawn, answers with exactly `most` votes]
    drawn = np.arange(min(size, blank) + 1)
    ways[drawn, 0] = [math.comb(blank, i) for i in drawn]
    for count in others:
        updated = np.zeros_like(ways)
        for i in range(min(count, most, size) + 1):
            if i < most:
                updated[i:] += math.comb(count, i) * ways[: size + 1 - i]
            else:
                updated[i:, 1:] += math.comb(count, i) * ways[: size + 1 - i, :-1]
        ways = updated
    return float(ways[size] @ (1.0 / np.arange(1, ties + 2)))


def bootstrap_means(
    per_question: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    seed: int | Sequence[int],
    resamples: int = 2000,
) -> np.ndarray:
    """Means over questions of bootstrap samples, each of Q questions drawn with replacement.

    Args:
      per_question: [Q] values of an estimator.
      weights: [Q] positive, how much each question counts in the mean; None: all alike. The mean is the ratio of
        two sums, and a resample draws both of a question together.
      seed: of the resampling; the same seed gives the same means.
      resamples: number of bootstrap samples.

    Returns:
      [resamples] float64.

    Raises:
      ValueError: no questions, a value that is not finite, weights of another shape or not positive, or
        resamples < 1.
    """
    values, weights = _weighted(per_question, weights)
    if resamples < 1:
        raise ValueError(f"need resamples >= 1, got {resamples}")
    drawn = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size), dtype=np.int32)
    if weights is None:
        return values[drawn].mean(axis=1)
    return (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)


def bootstrap_interval(
    per_question: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    seed: int | Sequence[int],
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean over questions and its percentile bootstrap interval.

    Args:
      per_question, weights, seed, resamples: as in `bootstrap_means`.
      level: coverage of the interval, e.g. 0.95 for the 2.5th to 97.5th percentile.

    Returns:
      (mean, low, high).

    Raises:
      ValueError: as `bootstrap_means`, or level outside (0, 1).
    """
    means = bootstrap_means(per_question, weights, seed=seed, resamples=resamples)
    return float(np.average(per_question, weights=weights)), *percentiles(means, level)


def percentiles(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval (low, high) between the (1 - level) / 2 and (1 + level) / 2 quantiles of bootstrap means.

    Raises:
      ValueError: level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"need 0 < level < 1, got {level}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    seed: int | Sequence[int],
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of a - b over the same questions, with its bootstrap interval.

    Resampling questions together removes the spread between questions that both methods share; the
    interval is narrower than that of two separate means, and excludes 0 when the difference is
    significant at 1 - level.

    Args:
      a, b: [Q] values of one estimator for two methods, in the same order of questions.
      weights, seed, resamples, level: as in `bootstrap_interval`; one weight per question for both.

    Returns:
      (mean difference, low, high).

    Raises:
      ValueError: different shapes, or as `bootstrap_interval`.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must cover the same questions, got shapes {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, weights, seed=seed, resamples=resamples, level=level)


def _weighted(per_question: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Both as float64 [Q], checked."""
    values = np.asarray(per_question, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"per_question must be [questions] with at least one, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"per_question[{int(np.argmin(np.isfinite(values)))}] is not finite")
    if weights is None:
        return values, None
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != values.shape or not np.isfinite(weights).all() or not (weights > 0).all():
        raise ValueError(f"weights must be [{values.size}], finite and positive")
    return values, weights
