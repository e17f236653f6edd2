"""The evaluation command on the tiny model: many benchmarks, one after the other, each written when it is done."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import Future

import numpy as np
import pytest

from ibtpo import config as config_lib
from ibtpo import evaluate as evaluate_lib
from ibtpo.data.problems import Problem
from ibtpo.policy import load_policy, make_grader
from ibtpo.rewards import instructions
from tests.eval_cases import instruction_accuracies

CHECKPOINT = {"path": "made/up", "step": 3}
NAMES = ("gsm8k", "gpqa_diamond", "ifeval")


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(eval__benchmarks=",".join(NAMES), eval__temperature=1.5)


@pytest.fixture(scope="module")
def policy(config):
    return load_policy(config)


@pytest.fixture(scope="module")
def sampler(policy, config):
    return evaluate_lib.make_eval_sampler(policy, config)


@pytest.fixture(scope="module")
def grader(config):
    with make_grader(config) as grader:
        yield grader


@pytest.fixture
def benchmarks():
    """Three sets of the same questions, which the tiny model can answer, graded in three ways."""
    questions = [f"Start with {i}. Add {i + 1}. Multiply by 2." for i in range(4)]
    reference = {"instruction_id_list": ["punctuation:no_comma", "keywords:frequency"], "prompt": ""}
    reference["kwargs"] = [{}, {"keyword": "+", "frequency": 2, "relation": "less than"}]
    answers = {
        "gsm8k": ("math", [str(2 * (2 * i + 1)) for i in range(4)]),
        "gpqa_diamond": ("multiple_choice", ["A"] * 4),
        "ifeval": ("instructions", [json.dumps(reference)] * 4),
    }
    return {
        name: [Problem(i, q, a, kind) for i, (q, a) in enumerate(zip(questions, references))]
        for name, (kind, references) in answers.items()
    }


@pytest.fixture
def run(policy, sampler, grader, config, monkeypatch):
    """run(benchmarks, folder) evaluates, and gives the names of those that were sampled."""

    def run(benchmarks, folder, config=config, checkpoint=CHECKPOINT, fail_at=None):
        sampled, evaluate = [], evaluate_lib.evaluate

        def counted(*arguments, stream, **options):
            if stream == fail_at:
                raise KeyboardInterrupt
            sampled.append(stream)
            return evaluate(*arguments, stream=stream, **options)

        with monkeypatch.context() as patch:
            patch.setattr(evaluate_lib, "evaluate", counted)
            evaluate_lib.evaluate_benchmarks(policy, benchmarks, sampler, grader, config, checkpoint, folder)
        return sampled

    return run


def lines(folder, name):
    return [json.loads(line) for line in (folder / name / "responses.jsonl").open()]


def texts(folder, name):
    return [line["response"] for line in lines(folder, name)]


def test_each_benchmark_has_its_files_and_its_draws(run, benchmarks, tmp_path, capsys):
    assert run(benchmarks, tmp_path / "one") == list(NAMES)
    printed = capsys.readouterr()
    for number, name in enumerate(NAMES, 1):
        assert f"{name}: 4 questions, 2 responses each" in printed.out
        assert f"{name} ({number} of 3) 4/4" in printed.err
        assert len(lines(tmp_path / "one", name)) == 4 * 2
        summary = json.loads((tmp_path / "one" / name / "summary.json").read_text())
        assert summary["checkpoint"] == CHECKPOINT and summary["config"]["eval.samples"] == 2
        assert summary["metrics"]["avg_at_k"] == np.mean([x["correct"] for x in lines(tmp_path / "one", name)])
        assert (tmp_path / "one" / name / "responses.html").is_file()
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


def test_verdicts_are_those_of_the_kind(run, benchmarks, tmp_path):
    run(benchmarks, tmp_path)
    for line in lines(tmp_path, "gsm8k"):
        assert line["correct"] == (line["extracted"] == line["answer"])
    assert any(line["extracted"] is None for line in lines(tmp_path, "gpqa_diamond"))
    followed = [instructions.check(line["response"], line["answer"]) for line in lines(tmp_path, "ifeval")]
    for line, found in zip(lines(tmp_path, "ifeval"), followed):
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
    assert run(benchmarks, tmp_path) == []
    assert json.loads((tmp_path / "summary.json").read_text()) == whole
    # Another checkpoint, setting or problem is another evaluation.
    last = dataclasses.replace(benchmarks["ifeval"][3], question="Start with 9. Add 9.")
    changed = benchmarks | {"ifeval": [*benchmarks["ifeval"][:3], last]}
    assert run(changed, tmp_path) == ["ifeval"]
    assert run(changed, tmp_path, checkpoint=CHECKPOINT | {"step": 4}) == list(NAMES)
    warmer = tiny_config(eval__benchmarks=",".join(NAMES), eval__temperature=1.6)
    assert run({"gsm8k": benchmarks["gsm8k"]}, tmp_path, warmer, CHECKPOINT | {"step": 4}) == ["gsm8k"]


def test_results_that_are_not_whole_are_made_again(run, benchmarks, tmp_path):
    run({"gsm8k": benchmarks["gsm8k"]}, tmp_path)
    (tmp_path / "gsm8k" / "summary.json").write_text('{"benchmark": "gsm8k"')
    assert run({"gsm8k": benchmarks["gsm8k"]}, tmp_path) == ["gsm8k"]


# --- what cannot be evaluated ---------------------------------------------------------------------------------------


def test_a_reference_that_cannot_be_graded_is_found_first(benchmarks, grader):
    evaluate_lib.check_grading(benchmarks, grader)
    for name, answer, message in (
        ("gsm8k", " ", "gsm8k, id 9: the reference answer is empty"),
        ("gpqa_diamond", "Z", "gpqa_diamond, id 9: .*letter"),
        ("ifeval", '{"instruction_id_list": ["no:such"], "kwargs": [{}]}', "ifeval, id 9: .*no:such"),
    ):
        broken = Problem(9, "Why?", answer, benchmarks[name][0].kind)
        with pytest.raises(config_lib.ConfigError, match=message):
            evaluate_lib.check_grading(benchmarks | {name: [*benchmarks[name], broken]}, grader)


def test_workers_that_cannot_start_are_found_first(benchmarks, monkeypatch):
    class Broken:
        def submit(self, text, reference, kind=None):
            future = Future()
            if text:
                future.set_exception(RuntimeError("no grading worker could be started"))
            return future

    with pytest.raises(config_lib.ConfigError, match="no grading worker"):
        evaluate_lib.check_grading(benchmarks, Broken())


def test_every_benchmark_is_loaded_before_one_is_sampled(tiny_config, policy, tmp_path):
    fields = {"gsm8k": {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}}
    fields["aime_2025"] = {"problem": "What is 1 + 3? " + "Think hard. " * 20, "answer": "4"}
    names = {"gsm8k": "gsm8k_test.jsonl", "aime_2025": "aime_2025.jsonl"}
    for name, record in fields.items():
        (tmp_path / names[name]).write_text(json.dumps(record) + "\n")

    def load(benchmarks, **changes):
        files = dict(data__files=str(tmp_path), data__dir=str(tmp_path / "tfds"), data__check_rows=False)
        return evaluate_lib.load_benchmarks(tiny_config(eval__benchmarks=benchmarks, **files, **changes), tokenizer)

    tokenizer = policy.tokenizer
    found = load("aime_2025, gsm8k", data__max_prompt_tokens=400)
    assert [(name, [p.answer for p in problems]) for name, problems in found.items()] == [
        ("aime_2025", ["4"]),
        ("gsm8k", ["3"]),
    ]
    with pytest.raises(config_lib.ConfigError, match=r"aime_2025: 1 of 1 prompts .*max_prompt_tokens=64: set it to \d"):
        load("gsm8k,aime_2025")
    with pytest.raises(config_lib.ConfigError, match=r"benchmark amc_2023: .*has no files"):
        load("gsm8k,amc_2023")


@pytest.mark.parametrize(
    "source, name",
    [
        ("tfds:chained_arithmetic", "chained_arithmetic"),
        ("jsonl:/data/problems_{split}.jsonl", "problems"),
        ("parquet:mine.parquet", "mine"),
        ("jsonl:data/{split}.jsonl", "problems"),
    ],
)
def test_results_of_a_source_are_called_by_its_file(source, name):
    assert evaluate_lib.source_name(source) == name


def test_checkpoints_are_told_apart(tmp_path, tiny_model_dir):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    first = evaluate_lib.identify(tmp_path)
    assert first == evaluate_lib.identify(tmp_path) != evaluate_lib.identify(tiny_model_dir)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert evaluate_lib.identify(tmp_path) != first
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(config_lib.ConfigError, match=r"neither a run .*checkpoint\.dir.*nor a Hugging Face model"):
        evaluate_lib.identify(tmp_path)


def test_a_run_is_known_by_its_folder_of_checkpoints(tmp_path):
    (tmp_path / "bucket" / "7").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"checkpoint": {"dir": str(tmp_path / "bucket")}}))
    expected = {"path": str(tmp_path / "bucket"), "step": 7}
    assert evaluate_lib.identify(tmp_path / "run") == evaluate_lib.identify(tmp_path / "bucket") == expected


# --- the command ----------------------------------------------------------------------------------------------------


def command(repo_root, *arguments):
    program = [sys.executable, "-m", "ibtpo.evaluate", *arguments]
    return subprocess.run(program, cwd=repo_root, capture_output=True, text=True)


def test_the_command_on_real_problems_and_its_comparison(tiny_config, tiny_model_dir, shared_data, repo_root, tmp_path):
    changes = dict(data__files=str(shared_data), data__max_prompt_tokens=464, eval__questions=3)
    config = tiny_config(sampling__max_new_tokens=16, tree__min_new_tokens=8, **changes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    options = [
        f"--config={tmp_path / 'config.json'}",
        f"--checkpoint={tiny_model_dir}",
        f"--workdir={tmp_path}/results",
    ]
    # Rows of training, which hold none of these prompts, are no limit here.
    options += ["--config.train.row_tokens=64", "--config.eval.benchmarks=amc_2023,gsm8k"]
    done = command(repo_root, *options)
    assert done.returncode == 0, done.stderr
    for name in ("amc_2023", "gsm8k"):
        assert f"{name}: 3 questions, 2 responses each" in done.stdout
        assert len(lines(tmp_path / "results", name)) == 6
    assert str(tmp_path / "results" / "index.html") in done.stdout
    done = command(repo_root, f"--compare={tmp_path / 'results'}", f"--compare={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert "gsm8k, 3 questions" in done.stdout and "mean of 2 benchmarks" in done.stdout
    changes = [line.split()[-4:] for line in done.stdout.splitlines() if line.startswith("avg@2")]
    assert changes == [["pp", "0.0", "..", "0.0"]] * 3


def test_what_is_wrong_with_a_comparison_is_one_line(tmp_path, capsys):
    for arguments, message in (
        ([f"--compare={tmp_path}", f"--compare={tmp_path}"], f"error: --compare={tmp_path}: no evaluation there"),
        ([f"--compare={tmp_path}"], "must be given twice, not 1 times"),
        ([f"--compare={tmp_path}", "--config=configs/tiny.py"], "unrecognized arguments: --config"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate_lib.compare(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
