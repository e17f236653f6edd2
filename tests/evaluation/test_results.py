"""Metrics are what their names say, with intervals that are right."""

import numpy as np
import pytest
import scipy.stats

from ibtpo.evaluation import tables
from ibtpo.evaluation.results import bound, mean_of_benchmarks
from tests.evaluation.cases import instruction_accuracies, make_evaluation, make_instructions


def test_metrics_are_what_their_names_say():
    evaluation = make_evaluation(np.random.default_rng(3), 30, 8)
    summary = evaluation.summary()
    assert (summary["questions"], summary["k"], summary["generated_tokens"]) == (30, 8, 1234)
    assert summary["avg_at_k"] == pytest.approx(evaluation.correct.mean())
    assert summary["pass_at_k"] == pytest.approx(evaluation.correct.any(axis=1).mean())
    assert summary["mean_length"] == pytest.approx(evaluation.lengths.mean())
    assert summary["truncation_rate"] == pytest.approx(evaluation.truncated.mean())
    for name in tables.metric_names(summary):
        assert summary[bound(name, "low")] <= summary[name] <= summary[bound(name, "high")]
    theirs = scipy.stats.bootstrap(
        (evaluation.correct.mean(axis=1),), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    np.testing.assert_allclose([summary["avg_low"], summary["avg_high"]], theirs, atol=0.015)
    assert "maj@8" in tables.table(summary)


def test_votes_for_one_number_add_up_however_it_is_written():
    correct = np.array([[1.0, 1.0, 0.0, 0.0, 0.0]])
    evaluation = make_evaluation(np.random.default_rng(0), 1, 5)
    evaluation.correct, evaluation.answers = correct, [[r"\frac{1}{2}", "0.50", "3", "4", "5"]]
    assert evaluation.metrics()["maj_at_k"].mean == 1.0
    evaluation.answers = [["(A)", "A", "B", "B", "$B$"]]
    assert evaluation.metrics()["maj_at_k"].mean == 0.0


def test_kinds_whose_responses_state_no_answer_have_no_votes():
    evaluation = make_evaluation(np.random.default_rng(0), 4, 3, kind="essay")
    assert "maj_at_k" not in evaluation.metrics() and "avg_at_k" in evaluation.metrics()


def test_instruction_following_has_its_four_accuracies():
    evaluation, verdicts = make_instructions(np.random.default_rng(1), 40)
    summary = evaluation.summary()
    expected = instruction_accuracies(verdicts)
    assert {name: summary[name] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) > 2  # loose is not strict, prompts are not instructions
    assert summary["avg_at_k"] == summary["prompt_strict"] and "maj_at_k" not in summary
    assert "instruction, loose" in tables.table(summary)


def test_the_mean_counts_benchmarks_alike_and_resamples_within_each():
    rng = np.random.default_rng(4)
    many, few = make_evaluation(rng, 400, 2, rate=0.9), make_evaluation(rng, 30, 2, rate=0.2)
    metrics = {"many": many.metrics(), "few": few.metrics()}
    found = mean_of_benchmarks(metrics)
    mean, low, high = found["avg_at_k"]
    assert mean == pytest.approx((many.correct.mean() + few.correct.mean()) / 2)
    # The error of the mean of two independent means.
    half = 1.96 * np.sqrt(sum(e.correct.mean(axis=1).var() / len(e.problems) for e in (many, few))) / 2
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.012)
    assert mean_of_benchmarks(dict(reversed(metrics.items())))["avg_at_k"] == pytest.approx(
        found["avg_at_k"]
    )
    follows, _ = make_instructions(rng)
    with_other = mean_of_benchmarks(metrics | {"follows": follows.metrics()})
    assert "maj_at_k" in found and "maj_at_k" not in with_other and "prompt_loose" not in with_other
    rows = tables.overview_rows({"many": many.summary(), "follows": follows.summary()}, with_other)
    assert [row["maj@2"] is None for row in rows] == [False, True, True]
    assert [row["benchmark"] for row in rows] == ["many", "follows", "mean"]
