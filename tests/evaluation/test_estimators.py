"""avg@k, pass@k and maj@k against enumeration of every subset; bootstrap intervals against
theory."""

import itertools
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.evaluation.estimators import (
    avg_at_k,
    bootstrap_interval,
    bootstrap_means,
    maj_at_k,
    paired_difference,
    pass_at_k,
)


@st.composite
def samples(draw):
    """(correct [n], answers [n], k): a few distinct answers, each consistently right or wrong, some
    missing."""
    n = draw(st.integers(1, 9))
    answers = draw(st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=n, max_size=n))
    right = draw(st.sets(st.sampled_from("abcde")))
    return (
        np.array([float(answer in right) for answer in answers]),
        answers,
        draw(st.integers(1, n)),
    )


def enumerate_majority(correct, answers, k):
    """Majority vote of every k-subset, ties shared, in exact arithmetic."""
    total, subsets = Fraction(0), 0
    for chosen in itertools.combinations(range(len(answers)), k):
        subsets += 1
        votes = Counter(answers[i] for i in chosen if answers[i] is not None)
        if votes:
            top = [answer for answer, count in votes.items() if count == max(votes.values())]
            for answer in top:
                members = [int(correct[i]) for i in range(len(answers)) if answers[i] == answer]
                total += Fraction(sum(members), len(members) * len(top))
    return float(total / subsets)


@given(samples())
def test_pass_at_k_equals_enumeration(case):
    correct, _, k = case
    expected = np.mean([max(subset) for subset in itertools.combinations(correct, k)])
    np.testing.assert_allclose(pass_at_k(correct[None], k), [expected], atol=1e-12)


@given(samples())
def test_maj_at_k_equals_enumeration(case):
    correct, answers, k = case
    np.testing.assert_allclose(
        maj_at_k(correct[None], [answers], k), [enumerate_majority(correct, answers, k)], atol=1e-12
    )


@given(samples(), st.lists(st.booleans(), min_size=9, max_size=9))
def test_equal_answers_graded_differently_count_by_their_mean(case, grades):
    _, answers, k = case
    correct = np.array(grades[: len(answers)], dtype=float)
    correct[[answer is None for answer in answers]] = 0.0
    np.testing.assert_allclose(
        maj_at_k(correct[None], [answers], k), [enumerate_majority(correct, answers, k)], atol=1e-12
    )


@given(samples())
def test_one_sample_makes_the_three_equal_and_order_does_not_matter(case):
    correct, answers, k = case
    average = avg_at_k(correct[None])
    np.testing.assert_allclose(pass_at_k(correct[None], 1), average, atol=1e-12)
    np.testing.assert_allclose(maj_at_k(correct[None], [answers], 1), average, atol=1e-12)
    backwards = maj_at_k(correct[None, ::-1], [answers[::-1]], k)
    np.testing.assert_allclose(backwards, maj_at_k(correct[None], [answers], k), atol=1e-12)
    passes = [pass_at_k(correct[None], k)[0] for k in range(1, len(answers) + 1)]
    assert np.all(np.diff(passes) >= -1e-12)
    assert maj_at_k(correct[None], [answers], k)[0] <= pass_at_k(correct[None], k)[0] + 1e-12


def test_ties_blanks_and_the_plain_vote():
    correct = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
    answers = [["7", "8", None, None], [None] * 4, ["7", "7", "8", "9"]]
    np.testing.assert_allclose(maj_at_k(correct, answers, 4), [0.5, 0.0, 1.0])
    np.testing.assert_allclose(avg_at_k(correct), [0.25, 0.0, 0.5])


def test_large_sample_counts_stay_exact_and_quick():
    correct = np.zeros((1, 1000))
    correct[0, :3] = 1
    exact = 1 - Fraction(997 * 996 * 995 * 994, 1000 * 999 * 998 * 997)
    np.testing.assert_allclose(pass_at_k(correct, 4), [float(exact)], rtol=1e-12)
    answers = [[str(i // 3) for i in range(1000)]]
    assert 0 < maj_at_k(correct, answers, 500)[0] < 1
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 6, (500, 32))
    start = time.perf_counter()
    majority = maj_at_k(answers == 0, answers.tolist(), 8)
    assert time.perf_counter() - start < 10
    assert np.all((0 <= majority) & (majority <= 1))


def test_unbiased_for_the_underlying_rate():
    rng = np.random.default_rng(1)
    correct = rng.random((4000, 8)) < 0.3
    mean, low, high = bootstrap_interval(pass_at_k(correct, 4), seed=0)
    assert low < 1 - 0.7**4 < high and abs(mean - (1 - 0.7**4)) < 0.01


def test_bootstrap_matches_the_normal_interval_and_is_reproducible():
    values = (np.arange(1000) % 10 < 3).astype(float)
    mean, low, high = bootstrap_interval(values, seed=3)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    np.testing.assert_allclose([mean, low, high], [0.3, 0.3 - half, 0.3 + half], atol=2.5e-3)
    assert bootstrap_interval(values, seed=3) == (mean, low, high) != bootstrap_interval(values, seed=4)
    narrow = bootstrap_interval(values, seed=3, level=0.5)
    assert low < narrow[1] < mean < narrow[2] < high


def test_bootstrap_covers_the_truth_about_as_often_as_stated():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(300):
        _, low, high = bootstrap_interval(rng.random(60) < 0.4, seed=trial, resamples=400)
        hits += low <= 0.4 <= high
    assert 0.90 <= hits / 300 <= 0.985


def all_resampled_means(values, weights):
    """The mean of every one of the Q^Q resamples of Q questions, each as likely."""
    resamples = itertools.product(range(len(values)), repeat=len(values))
    return np.array([np.average(values[list(r)], weights=weights[list(r)]) for r in resamples])


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0, 1.0, 5.0]])
def test_bootstrap_draws_from_all_resamples_alike(weights):
    values = np.array([0.0, 1.0, 0.25, 0.5, 1.0])
    exact = all_resampled_means(values, np.ones(5) if weights is None else np.array(weights))
    means = bootstrap_means(values, weights, seed=1, resamples=100_000)
    for q in (0.025, 0.1, 0.5, 0.9, 0.975):  # the quantile lies where the exact distribution has that much below it
        at = np.quantile(means, q)
        assert (exact < at - 1e-9).mean() - 0.005 <= q <= (exact <= at + 1e-9).mean() + 0.005
    assert means.mean() == pytest.approx(exact.mean(), abs=2e-3)
    assert np.isin(means.round(9), exact.round(9)).all()


def test_weighted_interval_is_that_of_scipy():
    rng = np.random.default_rng(2)
    values, weights = rng.random(200), rng.integers(1, 4, 200)
    mean, low, high = bootstrap_interval(values, weights, seed=0, resamples=20_000)
    ratio = lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis)  # noqa: E731
    theirs = scipy.stats.bootstrap(
        (values * weights, weights), ratio, paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    np.testing.assert_allclose([low, high], [theirs.low, theirs.high], atol=1.5e-3)
    assert mean == pytest.approx((values * weights).sum() / weights.sum()) and low < mean < high


def test_paired_difference_is_narrower_than_separate_intervals():
    rng = np.random.default_rng(7)
    difficulty = rng.random(300)
    a, b = np.clip(difficulty + 0.05, 0, 1), difficulty + 0.02 * (rng.random(300) - 0.5)
    mean, low, high = paired_difference(a, b, seed=0)
    np.testing.assert_allclose(mean, a.mean() - b.mean())
    assert 0 < low < mean < high
    _, low_a, high_a = bootstrap_interval(a, seed=0)
    assert (high - low) < 0.25 * (high_a - low_a)
    np.testing.assert_allclose(paired_difference(b, a, seed=0), [-mean, -high, -low], atol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: avg_at_k(np.zeros(3)), "shape"),
        (lambda: avg_at_k(np.zeros((3, 0))), "at least one sample"),
        (lambda: avg_at_k(np.array([[0.5, 1]])), "0 and 1, found 0.5"),
        (lambda: pass_at_k(np.zeros((2, 3)), 4), "between 1 and the 3 samples per question, got 4"),
        (lambda: pass_at_k(np.zeros((2, 3)), 0), "got 0"),
        (lambda: maj_at_k(np.zeros((1, 2)), [["a"]], 1), r"answers must be \[1\]\[2\]"),
        (lambda: maj_at_k(np.zeros((1, 1001)), [["a"] * 1001], 5), "at most 1000"),
        (lambda: bootstrap_interval([], seed=0), "at least one"),
        (lambda: bootstrap_interval([0.0, np.nan], seed=0), r"per_question\[1\] is not finite"),
        (lambda: bootstrap_interval([0.0], seed=0, level=1.0), "level"),
        (lambda: paired_difference([0.0], [0.0, 1.0], seed=0), "same questions"),
        (lambda: bootstrap_interval([0.0, 1.0], [1.0], seed=0), r"weights must be \[2\]"),
        (lambda: bootstrap_interval([0.0, 1.0], [1.0, 0.0], seed=0), "positive"),
        (lambda: bootstrap_means([0.0], seed=0, resamples=0), "resamples >= 1, got 0"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
