"""Results of evaluations: what is written can be read and computed again, and two of them compared."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from ibtpo import eval_results
from ibtpo.data.problems import Problem
from tests.eval_cases import instruction_accuracies, make_evaluation, make_instructions


def write(folder, evaluations, settings=None):
    """The folder of an evaluation, as far as a comparison reads it."""
    settings = settings or {"eval.temperature": 1.0}
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    for name, evaluation in evaluations.items():
        eval_results.write_responses(evaluation, folder / name / "responses.jsonl")
        eval_results.write_json(folder / name / "summary.json", {"metrics": summaries[name]})
    content = {"checkpoint": {"path": str(folder), "step": 4}, "config": settings, "benchmarks": summaries}
    eval_results.write_json(folder / "summary.json", content)
    return folder


def assert_equal(one, other):
    assert one.problems == other.problems and one.answers == other.answers and one.texts == other.texts
    for name in ("correct", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.followed.keys() == other.followed.keys()
    for mode, verdicts in one.followed.items():
        assert all(np.array_equal(a, b) for a, b in zip(verdicts, other.followed[mode], strict=True))


def test_every_response_is_a_line_and_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    for evaluation in (make_evaluation(rng), make_instructions(rng)[0]):
        path = tmp_path / "responses.jsonl"
        eval_results.write_responses(evaluation, path)
        # One line each, in any reading of "line": separators of lines within texts are escaped.
        lines = path.read_bytes().decode("ascii").splitlines()
        assert len(lines) == evaluation.correct.size
        first = json.loads(lines[0])
        assert {"id", "question", "answer", "kind", "sample", "response", "extracted", "correct"} <= first.keys()
        assert {"tokens", "truncated"} <= first.keys() and type(first["correct"]) is bool
        found = eval_results.read_responses(path, evaluation.generated_tokens)
        assert_equal(found, evaluation)
        assert found.summary() == evaluation.summary()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "responses.jsonl"
    evaluation = make_evaluation(np.random.default_rng(0), 2, 2)
    eval_results.write_responses(evaluation, path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(ValueError, match=r"responses.jsonl, line 4 is no response"):
        eval_results.read_responses(path)
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match=r"questions have \[1, 2\] responses"):
        eval_results.read_responses(path)
    path.write_text("")
    with pytest.raises(ValueError, match="at least one"):
        eval_results.read_responses(path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        eval_results.read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match="is no summary"):
        eval_results.read_summary(tmp_path)


def test_a_file_is_there_complete_or_not_at_all(tmp_path):
    evaluation = make_evaluation(np.random.default_rng(0), 3, 2)
    evaluation.lengths = evaluation.lengths.astype(object)
    evaluation.lengths[2, 1] = "no number"
    with pytest.raises(ValueError):
        eval_results.write_responses(evaluation, tmp_path / "responses.jsonl")
    assert not (tmp_path / "responses.jsonl").exists()


def test_metrics_are_what_their_names_say():
    evaluation = make_evaluation(np.random.default_rng(3), 30, 8)
    summary = evaluation.summary()
    assert (summary["questions"], summary["k"], summary["generated_tokens"]) == (30, 8, 1234)
    assert summary["avg_at_k"] == pytest.approx(evaluation.correct.mean())
    assert summary["pass_at_k"] == pytest.approx(evaluation.correct.any(axis=1).mean())
    assert summary["mean_length"] == pytest.approx(evaluation.lengths.mean())
    assert summary["truncation_rate"] == pytest.approx(evaluation.truncated.mean())
    for name in eval_results.metric_names(summary):
        assert summary[eval_results.bound(name, "low")] <= summary[name] <= summary[eval_results.bound(name, "high")]
    theirs = scipy.stats.bootstrap(
        (evaluation.correct.mean(axis=1),), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    np.testing.assert_allclose([summary["avg_low"], summary["avg_high"]], theirs, atol=0.015)
    assert "maj@8" in eval_results.table(summary)


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
    assert "instruction, loose" in eval_results.table(summary)


def test_the_mean_counts_benchmarks_alike_and_resamples_within_each():
    rng = np.random.default_rng(4)
    many, few = make_evaluation(rng, 400, 2, rate=0.9), make_evaluation(rng, 30, 2, rate=0.2)
    metrics = {"many": many.metrics(), "few": few.metrics()}
    found = eval_results.mean_of_benchmarks(metrics)
    mean, low, high = found["avg_at_k"]
    assert mean == pytest.approx((many.correct.mean() + few.correct.mean()) / 2)
    # The error of the mean of two independent means.
    half = 1.96 * np.sqrt(sum(e.correct.mean(axis=1).var() / len(e.problems) for e in (many, few))) / 2
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.012)
    assert eval_results.mean_of_benchmarks(dict(reversed(metrics.items())))["avg_at_k"] == pytest.approx(
        found["avg_at_k"]
    )
    follows, _ = make_instructions(rng)
    with_other = eval_results.mean_of_benchmarks(metrics | {"follows": follows.metrics()})
    assert "maj_at_k" in found and "maj_at_k" not in with_other and "prompt_loose" not in with_other
    rows = eval_results.overview_rows({"many": many.summary(), "follows": follows.summary()}, with_other)
    assert [row["maj@2"] is None for row in rows] == [False, True, True]
    assert [row["benchmark"] for row in rows] == ["many", "follows", "mean"]


# --- two evaluations ------------------------------------------------------------------------------------------------


def test_the_paired_difference_is_that_of_all_resamples():
    """Few questions, so that every resample can be enumerated: the interval lies between their quantiles."""
    rng = np.random.default_rng(5)
    a, b = make_evaluation(rng, 5, 4), make_evaluation(rng, 5, 4)
    _, _, change = eval_results.differences(a, b)["avg_at_k"]
    d = b.correct.mean(axis=1) - a.correct.mean(axis=1)
    np.testing.assert_allclose(change.values, d)
    exact = np.array([d[list(r)].mean() for r in itertools.product(range(5), repeat=5)])
    _, low, high = eval_results.mean_of_benchmarks({"x": {"avg_at_k": change}})["avg_at_k"]
    for bound, q in ((low, 0.025), (high, 0.975)):
        assert (exact < bound - 1e-9).mean() - 0.015 <= q <= (exact <= bound + 1e-9).mean() + 0.015


def test_pairing_is_by_id_and_ignores_order():
    rng = np.random.default_rng(6)
    a = make_evaluation(rng, 6, 3)
    shuffled = a.select([5, 2, 0, 1])
    ours, theirs = eval_results.pair(a, shuffled)
    assert [p.id for p in ours.problems] == [0, 1, 2, 5]
    assert_equal(ours, theirs)
    assert all(change.mean == 0 for _, _, change in eval_results.differences(a, shuffled).values())


def test_other_numbers_of_responses_are_compared_at_the_smaller_k():
    rng = np.random.default_rng(7)
    a, b = make_evaluation(rng, 10, 8), make_evaluation(rng, 10, 3)
    ours, theirs, _ = eval_results.differences(a, b)["pass_at_k"]
    np.testing.assert_allclose(ours.values, a.metrics(3)["pass_at_k"].values)
    np.testing.assert_allclose(theirs.values, b.correct.any(axis=1))


def test_compare_shows_both_and_their_difference(tmp_path):
    rng = np.random.default_rng(8)
    a, b = make_evaluation(rng, 60, 4, rate=0.3), make_evaluation(rng, 60, 4, rate=0.8)
    one = write(tmp_path / "one", {"gsm8k": a, "math_500": a})
    # A run's workdir stands for the evaluation in it.
    write(tmp_path / "other" / "evaluation", {"gsm8k": b, "math_500": b.select(range(50))}, {"eval.temperature": 0.5})
    text = eval_results.compare(one, tmp_path / "other")
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
    with pytest.raises(FileNotFoundError, match="nowhere: no evaluation there"):
        eval_results.compare(one, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"gsm8k.* has math_500"):
        eval_results.compare(one, write(tmp_path / "math", {"math_500": a}))
    with pytest.raises(ValueError, match=r"gsm8k: .*no question id in common"):
        eval_results.compare(one, write(tmp_path / "ids", {"gsm8k": make_evaluation(rng, 5, 2, ids=range(5, 10))}))
    b = a.select(range(5))
    b.problems[3] = Problem(3, b.problems[3].question + " changed", "42", "math")
    with pytest.raises(ValueError, match=r"gsm8k: the question with id 3 is .* and .* changed.*not about the same"):
        eval_results.compare(one, write(tmp_path / "text", {"gsm8k": b}))
    b.problems[3] = Problem(3, a.problems[3].question, "43", "math")
    with pytest.raises(ValueError, match="the answer with id 3 is '42' in the first evaluation and '43'"):
        eval_results.compare(one, write(tmp_path / "answer", {"gsm8k": b}))
