"""The study: its flags are valid, its runs go on where they stopped, its numbers are what they say."""

import argparse
import csv
import functools
import json
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks.branching import tree_options
from benchmarks.study import tables, training
from benchmarks.study.__main__ import branched, run_training
from benchmarks.study.branching import VARIANTS, estimate_errors, file_of, mixed
from benchmarks.study.jobs import OUTPUT, ROOT, Job, JobError, run_command, run_jobs
from benchmarks.study.tasks import BASELINE, METHODS, SWEEPS, TASKS
from ibtpo.sampling import TreeOptions
from ibtpo.sampling.strategies import num_responses
from tests.config_cases import parse


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_method_is_a_valid_configuration(task):
    for flags in (METHODS | SWEEPS).values():
        config = parse(*flags, path=ROOT / "configs" / f"{task.config}.py")
        responses = num_responses(TreeOptions.from_config(config))
        assert responses == (8 if config.tree.strategy == "independent" and config.tree.initial == 8 else 12)


def test_a_sweep_changes_the_one_value_that_it_names():
    base = parse(*METHODS["ibtpo"])
    for value in (0.0, 0.5):
        assert parse(*SWEEPS[f"lambda {value:g}"]).loss.ib_weight == value
    assert base.loss.ib_weight == 0.1 and base.tree.beta == 5.0
    assert parse(*SWEEPS["lambda 0.1"]) == base == parse(*SWEEPS["beta 5"])


def test_variants_are_trees_with_names_of_their_own():
    groups = {name: num_responses(tree_options(changes, TreeOptions())) for name, changes in VARIANTS.items()}
    assert groups.pop("independent 8") == 8 and set(groups.values()) == {12}
    assert len(groups) == 5 + 4 * 2 * 3
    assert len({file_of(name) for name in VARIANTS}) == len(VARIANTS)
    readings = [json.dumps(VARIANTS[name], sort_keys=True) for name in VARIANTS]
    assert len(set(readings)) == len(readings)


def job(folder, what, seen):
    def work(own, cores):
        seen.append((own.name, tuple(cores)))
        if isinstance(what, Exception):
            raise what
        return {"found": what}

    return Job(folder, work)


def test_runs_that_are_done_are_read_and_failures_do_not_stop_the_others(tmp_path):
    seen, lines = [], []
    found = {"a": 1, "b": JobError("b: broken"), "c": 3}
    jobs = [job(tmp_path / name, what, seen) for name, what in found.items()]
    assert run_jobs(jobs, 1, lines.append) == ["b: broken"]
    assert [name for name, _ in seen] == ["a", "b", "c"]
    assert [j.result() for j in jobs] == [{"found": 1}, None, {"found": 3}]
    assert any("FAILED b: broken" in line for line in lines) and lines[0] == "3 runs, 0 of them done already"
    assert run_jobs(jobs, 0, lines.append) == [] and len(seen) == 3  # only what is there
    again: list = []
    assert run_jobs([job(tmp_path / name, 9, again) for name in "abc"], 2, lines.append) == []
    assert [name for name, _ in again] == ["b"]
    assert Job(tmp_path / "a", None).result() == {"found": 1}


def test_rows_that_are_there_are_read_whoever_asked_for_them(tmp_path):
    """Of a longer list of variants only the missing ones are sampled."""
    made = []

    def work(names, folder, cores):
        folder.mkdir(exist_ok=True)
        for name in names:
            if not (folder / file_of(name)).exists():
                made.append(name)
                (folder / file_of(name)).write_text(json.dumps({"tree": name}))
        return branched(names, folder)

    for names in (["ib"], ["random", "ib"], ["ib"]):
        one = Job(tmp_path / "seed0", functools.partial(work, names), functools.partial(branched, names))
        assert (one.result() is None) == (names != ["ib"] or not made)
        assert run_jobs([one], 1, lambda _: None) == []
        assert one.result() == {"rows": [{"tree": name} for name in names]}
    assert made == ["ib", "random"] and not (tmp_path / "seed0" / "result.json").exists()


def test_a_bug_is_no_failed_run(tmp_path, monkeypatch):
    """It ends the study, and of the runs behind it those do not begin that have not yet."""
    seen: list = []
    noticed, shutdown = threading.Event(), ThreadPoolExecutor.shutdown
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", lambda *a, **k: (shutdown(*a, **k), noticed.set()))
    second = Job(tmp_path / "b", lambda folder, cores: {"noticed": noticed.wait(60)})
    jobs = [job(tmp_path / "a", ZeroDivisionError(), seen), second, job(tmp_path / "c", 2, seen)]
    with pytest.raises(ZeroDivisionError):
        run_jobs(jobs, 1, lambda _: None)
    assert [name for name, _ in seen] == ["a"] and jobs[2].result() is None


def test_a_run_that_was_stopped_is_no_result(tmp_path, monkeypatch):
    """ibtpo.train ends well where it is asked to stop; the study is not done with it."""
    (tmp_path / "run").mkdir()
    rows = [{"step": step, "train/generated_tokens": 10.0 * step} for step in (1, 2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands: list = []
    monkeypatch.setattr(training, "run_command", lambda command, *_: commands.append(command))
    training.train("tiny", tmp_path, [0], ["--config.method=grpo"], 2)
    assert {"--config.train.steps=2", "--config.method=grpo"} <= set(commands[0])
    with pytest.raises(JobError, match=r"stopped after 2 of 3 updates"):
        training.train("tiny", tmp_path, [0], [], 3)


def test_a_command_runs_on_its_cores_and_says_why_it_failed(tmp_path):
    import os

    cores = sorted(os.sched_getaffinity(0))[:1]
    run_command(["-c", "import os; print(sorted(os.sched_getaffinity(0)))"], tmp_path, cores)
    assert (tmp_path / OUTPUT).read_text() == f"{cores}\n"
    with pytest.raises(JobError, match=r"exit code 3: .*last words"):
        run_command(["-c", "print('last words'); raise SystemExit(3)"], tmp_path, cores)


def result(seed, gain, seconds=100.0, rate=1e-3):
    return {
        "learning_rate": rate, "seed": seed, "updates": 10, "steps": [0, 5, 10], "tokens": [0.0, 500.0, 1000.0],
        "seconds": [0.0, seconds / 2, seconds], "avg": [0.2, 0.3 + gain, 0.4 + gain], "pass": [0.5, 0.6, 0.7],
        "avg_at_many": 0.4, "pass_at_many": 0.8 + gain,
        "curves": {
            "eff_rate": [0.5, 0.7], "entropy": [1.0, 0.5], "ib_score_root": [0.1, 0.2, gain], "cov_root": [0.0, 0.3],
        },
    }  # fmt: skip


def test_costs_are_read_between_evaluations():
    run = result(0, 0.0)
    assert training.at_cost(run, "tokens", 750) == pytest.approx(0.35)
    assert training.at_cost(run, "seconds", 25) == pytest.approx(0.25)
    assert training.at_cost(run, "tokens", 5000) == 0.4  # it ended before
    assert training.updates_for(1000, {"tokens_per_update": 90.0}) == 11
    assert training.updates_for(10, {"tokens_per_update": 90.0}) == 1


def test_the_learning_rate_is_that_of_the_best_run():
    runs = {rate: {"avg": [0.9, last]} for rate, last in ((1e-3, 0.5), (3e-4, 0.5), (1e-4, 0.4))}
    assert training.best_rate(runs) == 3e-4


def test_differences_are_paired_by_seed():
    gains = {0: 0.10, 1: 0.14, 2: 0.12}
    noise = {0: 0.0, 1: -0.2, 2: 0.1}  # the seed's own, which the pairs do without
    results = {}
    for seed in range(3):
        results["t", BASELINE, seed] = result(seed, noise[seed], seconds=100.0)
        results["t", "ibtpo", seed] = result(seed, noise[seed] + gains[seed], seconds=200.0)
    rows = tables.seed_rows(results, {"t": 1000})
    table = {row["method"]: row for row in tables.training_table(rows, "t")}
    # Student's t with two degrees of freedom: 4.303 x 0.02 / sqrt(3) = 0.0497.
    assert table["ibtpo"]["avg less grpo 8"] == table["ibtpo"]["pass less grpo 8"] == "12.0 (7.0 .. 17.0)"
    assert table[BASELINE]["avg less grpo 8"] == "-"
    assert rows[0]["Cov, last third"] == 0.3 and rows[0]["IB-Score, last third"] == noise[0]
    # In the time of the quickest the other has done half of its updates.
    half = [row["avg at equal time"] for row in rows if row["method"] == "ibtpo"]
    assert half == pytest.approx([0.3 + noise[s] + gains[s] for s in range(3)])
    assert tables.training_table(rows, "other") == []


@pytest.mark.parametrize("suite", ["training", "sweeps"])
def test_each_method_has_its_own_learning_rate_and_sweeps_that_of_the_method(suite, tmp_path, monkeypatch):
    best = {"grpo 8": 3e-4, "ibtpo": 1e-3}
    named = {flags: name for name, flags in METHODS.items()}

    def learn(task, flags, setting, updates, rate, seed, tuning, folder, cores):
        assert updates == (5 if tuning else 10) * task.tokens // 600_000
        last = 0.9 if tuning and rate == best[named[flags]] else 0.5
        return result(seed, 0.0, rate=rate) | {"avg": [0.2, 0.3, last], "flags": flags}

    monkeypatch.setattr(training, "pilot", lambda *_: {"tokens_per_update": 60_000.0})
    monkeypatch.setattr(training, "learn", learn)
    methods = {name: METHODS[name] for name in best} if suite == "training" else SWEEPS
    arguments = argparse.Namespace(folder=tmp_path, quick=False, jobs=1, seeds=2, rates=(3e-4, 1e-3))
    lines: list = []
    tasks = {"navigation": TASKS["navigation"]}
    found, failed = run_training(arguments, tasks, methods, lines.append, lines.append, name=suite)
    assert failed == [] and set(found["results"]) == {("navigation", m, s) for m in methods for s in (0, 1)}
    for (_, method, _), run in found["results"].items():
        assert run["learning_rate"] == best.get(method, 1e-3) and run["flags"] == list(methods[method])


def test_a_single_learning_rate_is_taken_untried(tmp_path, monkeypatch):
    def learn(task, flags, setting, updates, rate, seed, tuning, folder, cores):
        assert not tuning
        return result(seed, 0.0, rate=rate)

    monkeypatch.setattr(training, "pilot", lambda *_: {"tokens_per_update": 60_000.0})
    monkeypatch.setattr(training, "learn", learn)
    arguments = argparse.Namespace(folder=tmp_path, quick=False, jobs=1, seeds=1, rates=[3e-3])
    methods, tasks = {"grpo 8": METHODS["grpo 8"]}, {"navigation": TASKS["navigation"]}
    found, failed = run_training(arguments, tasks, methods, lambda _: None, lambda _: None, name="training")
    assert failed == [] and found["results"]["navigation", "grpo 8", 0]["learning_rate"] == 3e-3


def test_a_running_mean_is_as_long_as_its_curve():
    assert tables.running_mean([1.0, 2.0, 4.0]).tolist() == [1.0, 2.0, 4.0]  # of too few to average
    curve = [0.0] * 15 + [3.0] * 15
    mean = tables.running_mean(curve)
    assert mean.shape == (30,) and mean[[0, 13, 14, 15, 16, 29]] == pytest.approx([0, 0, 1, 2, 3, 3])


def test_intervals_are_students():
    mean, low, high = tables.interval([1.0, 2.0, 3.0, 4.0])
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - 2.0542, 2.5 + 2.0542), abs=1e-4)
    assert tables.shown([0.25]) == "25.0" and np.isnan(tables.interval([1.0])[1])


def test_rows_are_written_with_all_columns(tmp_path):
    tables.write_csv(tmp_path / "x" / "rows.csv", [{"a": 1, "b": 0.123456789}, {"a": 2, "c": "text, more"}])
    with open(tmp_path / "x" / "rows.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"a": "1", "b": "0.123457", "c": ""}, {"a": "2", "b": "", "c": "text, more"},
        ]  # fmt: skip


def test_estimates_are_compared_with_what_is_true():
    from benchmarks import simulated

    simulation = simulated.Simulation(tree_options(VARIANTS["random"], TreeOptions()))
    trees = [simulation.grow(id) for id in range(4)]

    class Known:
        def __init__(self, value):
            self.value = value

        def of_nodes(self, sampled):
            return np.full(sampled.tree.node_parent.shape[1], self.value)

    errors = estimate_errors(trees, [Known(0.0)] * 4)
    unguided = [np.mean([r.reward for r in t.responses if r.round == 0]) for t in trees]
    everyone = [np.mean([r.reward for r in t.responses]) for t in trees]
    assert errors["root bias, unguided"] == pytest.approx(np.mean(unguided))
    assert errors["root bias, leaf mean"] == pytest.approx(np.mean(everyone))
    assert errors["root error, leaf mean"] == pytest.approx(np.sqrt(np.mean(np.square(everyone))))
    shifted = estimate_errors(trees, [Known(0.5)] * 4)
    assert shifted["bias, backup"] == pytest.approx(errors["bias, backup"] - 0.5)


def test_trees_are_compared_question_by_question():
    def row(tree, seed, mixed):
        rate = sum(map(int, mixed)) / len(mixed)
        return {"task": "t", "tree": tree, "seed": seed, "Eff-Rate": rate, "right": 0.1, "unguided": 0.1,
                "tokens": 100.0, "mixed": mixed}  # fmt: skip

    rows = [
        row("random", 0, "1000"), row("random", 1, "1100"), row("ib", 0, "1100"), row("ib", 1, "1101"),
        row("entropy", 1, "1100"), row("independent 8", 7, "0000"),
    ]  # fmt: skip
    table = {found["tree"]: found for found in tables.branching_table(rows, "t")}
    # By question, in the mean of two seeds: 0, 1/2, 0, 1/2, of which the standard error is 0.1443; t is 3.182.
    assert table["ib"]["less random"] == "25.0 (-20.9 .. 70.9)"
    assert table["entropy"]["less ib"] == "-25.0 (-104.6 .. 54.6)"  # of the seed that both have
    assert table["ib"]["less ib"] == table["independent 8"]["less ib"] == "-"


def test_mixed_groups_have_a_digit_each():
    def group(*rewards):
        return types.SimpleNamespace(responses=[types.SimpleNamespace(reward=reward) for reward in rewards])

    assert mixed([group(0.0, 0.0), group(0.0, 1.0), group(1.0, 1.0), group(1.0, 0.0, 0.0)]) == "0101"


@pytest.mark.slow
def test_a_quick_study_runs_and_is_read_the_second_time(tmp_path):
    command = [
        sys.executable, "-m", "benchmarks.study", "--quick", "--json", "--tasks=arithmetic", "--methods=grpo 8,ibtpo",
        f"--folder={tmp_path}", f"--csv={tmp_path / 'csv'}",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(first.stdout)
    assert found["failed"] == [] and {row["method"] for row in found["results"]["training"]} == {"grpo 8", "ibtpo"}
    assert {row["tree"] for row in found["results"]["branching"]} >= {"ib", "random"}
    assert [goal["name"] for goal in found["goals"]]
    assert (tmp_path / "csv" / "training-arithmetic.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["results"] == found["results"]
    assert "2 runs, 2 of them done already" in again.stderr
