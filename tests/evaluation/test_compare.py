"""Two evaluations, paired by question."""

import itertools

import numpy as np
import pytest
import scipy.stats

from ibtpo.data.problems import Problem
from ibtpo.errors import UserError
from ibtpo.evaluation import files
from ibtpo.evaluation.compare import compare, differences, pair
from ibtpo.evaluation.results import mean_of_benchmarks
from tests.evaluation.cases import assert_equal, make_evaluation


def write(folder, evaluations, settings=None):
    """The folder of an evaluation, as far as a comparison reads it."""
    settings = settings or {"eval.temperature": 1.0}
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    for name, evaluation in evaluations.items():
        files.write_responses(evaluation, folder / name / "responses.jsonl")
        files.write_json(folder / name / "summary.json", {"metrics": summaries[name]})
    content = {"checkpoint": {"path": str(folder), "step": 4}, "config": settings, "benchmarks": summaries}
    files.write_json(folder / "summary.json", content)
    return folder


def test_the_paired_difference_is_that_of_all_resamples():
    """Few questions, so that every resample can be enumerated: the interval lies between their quantiles."""
    rng = np.random.default_rng(5)
    a, b = make_evaluation(rng, 5, 4), make_evaluation(rng, 5, 4)
    _, _, change = differences(a, b)["avg_at_k"]
    d = b.correct.mean(axis=1) - a.correct.mean(axis=1)
    np.testing.assert_allclose(change.values, d)
    exact = np.array([d[list(r)].mean() for r in itertools.product(range(5), repeat=5)])
    _, low, high = mean_of_benchmarks({"x": {"avg_at_k": change}})["avg_at_k"]
    for bound, q in ((low, 0.025), (high, 0.975)):
        assert (exact < bound - 1e-9).mean() - 0.015 <= q <= (exact <= bound + 1e-9).mean() + 0.015


def test_pairing_is_by_id_and_ignores_order():
    rng = np.random.default_rng(6)
    a = make_evaluation(rng, 6, 3)
    shuffled = a.select([5, 2, 0, 1])
    ours, theirs = pair(a, shuffled)
    assert [p.id for p in ours.problems] == [0, 1, 2, 5]
    assert_equal(ours, theirs)
    assert all(change.mean == 0 for _, _, change in differences(a, shuffled).values())


def test_other_numbers_of_responses_are_compared_at_the_smaller_k():
    rng = np.random.default_rng(7)
    a, b = make_evaluation(rng, 10, 8), make_evaluation(rng, 10, 3)
    ours, theirs, _ = differences(a, b)["pass_at_k"]
    np.testing.assert_allclose(ours.values, a.metrics(3)["pass_at_k"].values)
    np.testing.assert_allclose(theirs.values, b.correct.any(axis=1))


def test_compare_shows_both_and_their_difference(tmp_path):
    rng = np.random.default_rng(8)
    a, b = make_evaluation(rng, 60, 4, rate=0.3), make_evaluation(rng, 60, 4, rate=0.8)
    one = write(tmp_path / "one", {"gsm8k": a, "math_500": a})
    # A run's workdir stands for the evaluation in it.
    write(tmp_path / "other" / "evaluation", {"gsm8k": b, "math_500": b.select(range(50))}, {"eval.temperature": 0.5})
    text = compare(one, tmp_path / "other")
    d = 100 * (b.correct.mean() - a.correct.mean())
    line = next(line for line in text.splitlines() if line.startswith("avg@4"))
    assert f"{100 * a.correct.mean():.1f} %" in line and f"{d:+.1f} pp" in line
    low, high = (float(x) for x in line.split("pp")[-1].split(" .. "))
    difference = b.correct.mean(axis=1) - a.correct.mean(axis=1)
    theirs = scipy.stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=20_000, rng=0)
    np.testing.assert_allclose([low, high], 100 * np.array(theirs.confidence_interval), atol=1.5)
    assert "mean of 2 benchmarks" in text and "left out, in A only: 10 questions" in text
    assert "eval.temperature: 1.0 (A), 0.5 (B)" in text
    assert "update 4" in text


def test_what_cannot_be_compared_is_named(tmp_path):
    rng = np.random.default_rng(9)
    a = make_evaluation(rng, 5, 2)
    one = write(tmp_path / "one", {"gsm8k": a})
    with pytest.raises(UserError, match="nowhere: no evaluation there"):
        compare(one, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"gsm8k.* has math_500"):
        compare(one, write(tmp_path / "math", {"math_500": a}))
    with pytest.raises(UserError, match=r"gsm8k: .*no question id in common"):
        compare(one, write(tmp_path / "ids", {"gsm8k": make_evaluation(rng, 5, 2, ids=range(5, 10))}))
    b = a.select(range(5))
    b.problems[3] = Problem(3, b.problems[3].question + " changed", "42", "math")
    with pytest.raises(UserError, match=r"gsm8k: the question with id 3 is .* and .* changed.*not about the same"):
        compare(one, write(tmp_path / "text", {"gsm8k": b}))
    b.problems[3] = Problem(3, a.problems[3].question, "43", "math")
    with pytest.raises(UserError, match="the answer with id 3 is '42' in the first evaluation and '43'"):
        compare(one, write(tmp_path / "answer", {"gsm8k": b}))
