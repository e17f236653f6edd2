"""Many benchmarks on the tiny model, one after the other, each written when it is done."""

import dataclasses
import json
import re

import numpy as np
import pytest

from ibtpo.evaluation import partial, suite
from ibtpo.evaluation.run import make_eval_sampler
from ibtpo.policy import load_policy, make_grader
from ibtpo.rewards import instructions
from ibtpo.sampling import TreeSampler
from ibtpo.saved_trees import read_file
from tests.evaluation.cases import instruction_accuracies, read_lines

CHECKPOINT = {"path": "made/up", "step": 3}
NAMES = ("gsm8k", "gpqa_diamond", "ifeval")


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(eval__benchmarks=",".join(NAMES), eval__temperature=1.5, sampling__slots=3)


@pytest.fixture(scope="module")
def policy(config):
    return load_policy(config)


@pytest.fixture(scope="module")
def sampler(policy, config):
    return make_eval_sampler(policy, config)


@pytest.fixture(scope="module")
def grader(config):
    with make_grader(config) as grader:
        yield grader


@pytest.fixture
def run(policy, sampler, grader, config, monkeypatch):
    """run(benchmarks, folder) evaluates, and gives the names of those that were sampled."""

    def run(benchmarks, folder, config=config, checkpoint=CHECKPOINT, fail_at=None):
        sampled, evaluate = [], suite.evaluate

        def counted(*arguments, stream, **options):
            if stream == fail_at:
                raise KeyboardInterrupt
            sampled.append(stream)
            return evaluate(*arguments, stream=stream, **options)

        with monkeypatch.context() as patch:
            patch.setattr(suite, "evaluate", counted)
            suite.evaluate_benchmarks(policy, benchmarks, sampler, grader, config, checkpoint, folder)
        return sampled

    return run


def texts(folder, name):
    return [line["response"] for line in read_lines(folder, name)]


def test_each_benchmark_has_its_files_and_its_draws(run, benchmarks, tmp_path, capsys):
    assert run(benchmarks, tmp_path / "one") == list(NAMES)
    printed = capsys.readouterr()
    assert len(re.findall(r"^compiling \d+ programs \(sampler \d+\): \d+ s$", printed.out, re.MULTILINE)) == 1
    for number, name in enumerate(NAMES, 1):
        assert f"{name}: 4 questions, 2 responses each" in printed.out
        assert f"{name} ({number} of 3) 4/4" in printed.err
        assert len(read_lines(tmp_path / "one", name)) == 4 * 2
        summary = json.loads((tmp_path / "one" / name / "summary.json").read_text())
        assert summary["checkpoint"] == CHECKPOINT and summary["config"]["eval.samples"] == 2
        assert summary["metrics"]["avg_at_k"] == np.mean([x["correct"] for x in read_lines(tmp_path / "one", name)])
        assert 'href="trees.html"' in (tmp_path / "one" / name / "responses.html").read_text()
        content = read_file(tmp_path / "one" / name / "trees.json.gz")
        assert [tree["question"] for tree in content.trees] == [p.question for p in benchmarks[name]]
        assert "4 saved questions" in (tmp_path / "one" / name / "trees.html").read_text()
    assert "prompt, strict" in printed.out and "benchmark" in printed.out and "mean" in printed.out
    overall = json.loads((tmp_path / "one" / "summary.json").read_text())
    averages = [overall["benchmarks"][name]["avg_at_k"] for name in NAMES]
    assert overall["mean"]["avg_at_k"] == pytest.approx(np.mean(averages)) and 0 < averages[0] < 1
    assert overall["mean"]["avg_low"] <= overall["mean"]["avg_at_k"] <= overall["mean"]["avg_high"]
    # The same questions, sampled apart; in whatever order, and with whatever others, they are listed.
    assert len({tuple(texts(tmp_path / "one", name)) for name in NAMES}) == 3
    run(dict(reversed(benchmarks.items())), tmp_path / "two")
    run({"gpqa_diamond": benchmarks["gpqa_diamond"]}, tmp_path / "three")
    for folder, names in (("two", NAMES), ("three", ["gpqa_diamond"])):
        for name in names:
            assert texts(tmp_path / folder, name) == texts(tmp_path / "one", name)


def test_no_trees_where_none_are_asked_for(run, benchmarks, tiny_config, tmp_path):
    few = {"gsm8k": benchmarks["gsm8k"]}
    none = tiny_config(eval__benchmarks="gsm8k", eval__temperature=1.5, sampling__slots=3, log__trees=0)
    run(few, tmp_path, none)
    assert not (tmp_path / "gsm8k" / "trees.html").exists()
    assert "trees.html" not in (tmp_path / "gsm8k" / "responses.html").read_text()


def test_verdicts_are_those_of_the_kind(run, benchmarks, tmp_path):
    run(benchmarks, tmp_path)
    for line in read_lines(tmp_path, "gsm8k"):
        assert line["correct"] == (line["extracted"] == line["answer"])
    assert any(line["extracted"] is None for line in read_lines(tmp_path, "gpqa_diamond"))
    followed = [instructions.check(line["response"], line["answer"]) for line in read_lines(tmp_path, "ifeval")]
    for line, found in zip(read_lines(tmp_path, "ifeval"), followed):
        assert {mode: line[mode] for mode in ("strict", "loose")} == found
        assert line["correct"] == all(found["strict"]) and line["extracted"] is None
    summary = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["ifeval"]
    expected = instruction_accuracies(followed)
    assert {name: summary[name] for name in expected} == pytest.approx(expected)


def test_an_interrupted_evaluation_goes_on_after_what_is_finished(run, benchmarks, tiny_config, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(benchmarks, tmp_path, fail_at="gpqa_diamond")
    assert list(json.loads((tmp_path / "summary.json").read_text())["benchmarks"]) == ["gsm8k"]
    assert run(benchmarks, tmp_path) == ["gpqa_diamond", "ifeval"]
    assert "gsm8k: finished before" in capsys.readouterr().out
    whole = json.loads((tmp_path / "summary.json").read_text())
    assert list(whole["benchmarks"]) == list(NAMES)
    capsys.readouterr()
    assert run(benchmarks, tmp_path) == []
    assert "compiling" not in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text()) == whole
    # Another checkpoint, setting or problem is another evaluation.
    last = dataclasses.replace(benchmarks["ifeval"][3], question="Start with 9. Add 9.")
    changed = benchmarks | {"ifeval": [*benchmarks["ifeval"][:3], last]}
    assert run(changed, tmp_path) == ["ifeval"]
    assert run(changed, tmp_path, checkpoint=CHECKPOINT | {"step": 4}) == list(NAMES)
    warmer = tiny_config(eval__benchmarks=",".join(NAMES), eval__temperature=1.6, sampling__slots=3)
    assert run({"gsm8k": benchmarks["gsm8k"]}, tmp_path, warmer, CHECKPOINT | {"step": 4}) == ["gsm8k"]


def test_results_that_are_not_whole_are_made_again(run, benchmarks, tmp_path):
    run({"gsm8k": benchmarks["gsm8k"]}, tmp_path)
    (tmp_path / "gsm8k" / "summary.json").write_text('{"benchmark": "gsm8k"')
    assert run({"gsm8k": benchmarks["gsm8k"]}, tmp_path) == ["gsm8k"]


def stop_after(monkeypatch, number):
    """An evaluation that ends like one that is killed, behind its `number`-th question."""
    add, count = partial.Partial.add, []

    def added(self, tree):
        add(self, tree)
        count.append(tree)
        if len(count) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(partial.Partial, "add", added)


@pytest.mark.parametrize("name", ["gsm8k", "ifeval"])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_evaluation_goes_on_with_the_questions_it_has(
    run, benchmarks, tmp_path, monkeypatch, capsys, name, torn
):
    few = {name: benchmarks[name]}
    run(few, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        run(few, tmp_path / "killed")
    file = tmp_path / "killed" / name / "partial.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and not (tmp_path / "killed" / name / "summary.json").exists()
    if torn:
        file.write_bytes(b"".join(lines[:2]) + lines[2][:-9])
    capsys.readouterr()
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(TreeSampler, "__call__", watched(TreeSampler.__call__, asked))
        assert run(few, tmp_path / "killed") == [name]
    known = 1 if torn else 2
    assert len(asked) == 4 - known and f"{name}: {known} of 4 questions are there already" in capsys.readouterr().out
    assert not file.exists()
    for found in ("responses.jsonl", "summary.json", "responses.html"):
        expected = (tmp_path / "whole" / name / found).read_bytes()
        assert (tmp_path / "killed" / name / found).read_bytes() == expected, found
    whole, killed = (read_file(tmp_path / each / name / "trees.json.gz").trees for each in ("whole", "killed"))
    for one, other in zip(whole, killed, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            # In a batch of other questions the logits differ by rounding.
            if not (isinstance(value, list) and any(isinstance(x, float) for x in value)):
                assert other[key] == value, key
        assert other["log_probs"] == pytest.approx(one["log_probs"], abs=1e-4)


def watched(call, asked):
    def sample(self, params, questions, *arguments, **options):
        asked.extend(questions)
        return call(self, params, questions, *arguments, **options)

    return sample


def test_questions_of_another_evaluation_are_sampled_anew(run, benchmarks, tmp_path, monkeypatch, capsys):
    few = {"gsm8k": benchmarks["gsm8k"]}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        run(few, tmp_path)
    capsys.readouterr()
    run(few, tmp_path, checkpoint=CHECKPOINT | {"step": 4})
    out = capsys.readouterr().out
    assert "partial.jsonl: questions of another checkpoint, configuration or version are sampled anew" in out
    assert "are there already" not in out and len(read_lines(tmp_path, "gsm8k")) == 8


def test_all_questions_may_be_there_already(run, benchmarks, tmp_path, monkeypatch):
    few = {"gsm8k": benchmarks["gsm8k"]}
    run(few, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 4)
        run(few, tmp_path / "killed")
    run(few, tmp_path / "killed")
    assert read_lines(tmp_path / "killed", "gsm8k") == read_lines(tmp_path / "whole", "gsm8k")


@pytest.mark.parametrize("damage", [b"", b"null\n", b"\xff\xfe\n", b"[1]\n", b'{"id": 0, "responses": []}\n'])
def test_a_damaged_file_of_finished_questions_is_made_anew(benchmarks, tmp_path, damage):
    (tmp_path / partial.PARTIAL).write_bytes(damage)
    assert partial.Partial(tmp_path, {"a": 1}, 2).finished == {}
    # Lines that are no question are left out.
    (tmp_path / partial.PARTIAL).write_bytes(b'{"a": 1}\n' + damage)
    assert partial.Partial(tmp_path, {"a": 1}, 2).finished == {}
