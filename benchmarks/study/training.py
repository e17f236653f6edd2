"""Suite "training": what each method learns from equally many generated tokens, and in equal time.

For each task and method: a pilot of two updates says how many tokens an update generates, from which the number of
updates follows; the learning rate is the best of several on the validation split, by one run with half of the tokens
and a seed of its own; then one run a seed, evaluated five times on the way on the test split, whose last checkpoint is
evaluated with 64 responses a question.
"""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.study.jobs import Job, JobError, run_command
from benchmarks.study.tasks import LEARNING_RATES, Task

PILOT_UPDATES, EVALUATIONS = 2, 5
TUNING_SEED = 100
SAMPLES, QUESTIONS = 16, 256  # of avg@k on the way
MANY, MANY_QUESTIONS = 64, 128  # of pass@k at the end

Flags = Sequence[str]


def slug(name: str) -> str:
    """A method's or task's name as that of a folder."""
    return name.replace(" ", "_")


class Setting:
    """Where runs are, how large they are, and the learning rates to choose from. quick: tiny ones, to see that all
    works."""

    def __init__(self, folder: pathlib.Path, quick: bool, rates: Sequence[float] = LEARNING_RATES):
        self.folder, self.quick, self.rates = folder, quick, rates

    def tokens(self, task: Task) -> int:
        return task.tokens // 100 if self.quick else task.tokens

    def evaluation(self) -> list[str]:
        samples, questions = (2, 8) if self.quick else (SAMPLES, QUESTIONS)
        return [f"--config.eval.samples={samples}", f"--config.eval.questions={questions}"]

    def many(self) -> list[str]:
        samples, questions = (4, 8) if self.quick else (MANY, MANY_QUESTIONS)
        return [f"--config.eval.samples={samples}", f"--config.eval.questions={questions}"]

    def small(self) -> list[str]:
        return ["--config.train.questions_per_step=4"] if self.quick else []


def train(config: str, folder: pathlib.Path, cores: Sequence[int], flags: Flags, updates: int) -> None:
    """One command of training; goes on where the folder's run stopped.

    Raises:
      JobError: it failed, or was asked to stop before its last update.
    """
    command = ["-m", "ibtpo.train", f"--config={config}", f"--workdir={folder / 'run'}", *flags]
    command += [f"--config.train.steps={updates}", "--config.reward.workers=1", "--config.log.trees_every=0"]
    run_command(command, folder, cores)
    done = int(read(folder)["train/generated_tokens"][0][-1])
    if done != updates:
        raise JobError(f"{folder}: stopped after {done} of {updates} updates; run the study again")


def read(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The metrics of the folder's run."""
    from ibtpo.report import read_run

    return read_run(folder / "run")


def pilot(task: Task, flags: Flags, setting: Setting, folder: pathlib.Path, cores: Sequence[int]) -> dict[str, Any]:
    """Tokens that an update generates."""
    own = ["--config.eval.every=0", "--config.checkpoint.every=1000"]
    train(task.config, folder, cores, [*flags, *setting.small(), *own], PILOT_UPDATES)
    return {"tokens_per_update": float(read(folder)["train/generated_tokens"][1][-1]) / PILOT_UPDATES}


def updates_for(tokens: int, pilot_result: Mapping[str, Any]) -> int:
    """As many updates as generate about these tokens, at least one."""
    return max(1, round(tokens / pilot_result["tokens_per_update"]))


def learn(
    task: Task, flags: Flags, setting: Setting, updates: int, rate: float, seed: int, tuning: bool,
    folder: pathlib.Path, cores: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """One run: its curve, and what it cost. tuning: a run that only says how good its learning rate is."""
    every = updates if tuning else math.ceil(updates / EVALUATIONS)
    own = [
        f"--config.train.seed={seed}",
        f"--config.optimizer.learning_rate={rate}",
        f"--config.eval.every={every}",
        f"--config.checkpoint.every={every}",
    ]
    split = ["--config.data.eval_split=validation"] if tuning else []
    train(task.config, folder, cores, [*flags, *setting.small(), *own, *split, *setting.evaluation()], updates)
    result = curve_of(read(folder)) | {"learning_rate": rate, "seed": seed, "updates": updates}
    if not tuning:
        result |= evaluate(task, setting, folder, cores)
    return result


def evaluate(task: Task, setting: Setting, folder: pathlib.Path, cores: Sequence[int]) -> dict[str, Any]:
    """avg@k and pass@k of the last checkpoint with many responses."""
    command = ["-m", "ibtpo.evaluate", f"--config={task.config}", f"--checkpoint={folder / 'run'}", *setting.many()]
    run_command([*command, "--config.reward.workers=1", "--config.log.trees=0"], folder, cores)
    summary = json.loads((folder / "run" / "evaluation" / "summary.json").read_text())
    (found,) = summary["benchmarks"].values()
    return {"samples": found["k"], "avg_at_many": found["avg_at_k"], "pass_at_many": found["pass_at_k"]}


def curve_of(run: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Held-out accuracy against tokens and against seconds of sampling and updates, and what the curves show."""
    from ibtpo.report import generated_tokens

    steps, accuracy = run["eval/avg_at_k"]
    tokens = generated_tokens(run, steps)
    updates, sampling = run["time/sample_s"]
    seconds = np.concatenate([[0.0], np.cumsum(sampling + run["time/update_s"][1])])
    at = seconds[np.searchsorted(updates, steps, side="right")]
    shown = {
        name: run[f"train/{name}"][1].tolist()
        for name in ("entropy", "eff_rate", "ib_score_root", "cov_root", "avg_rate_initial", "tokens_per_question")
        if f"train/{name}" in run
    }
    return {
        "steps": steps.tolist(),
        "tokens": np.asarray(tokens).tolist(),
        "seconds": at.tolist(),
        "avg": accuracy.tolist(),
        "pass": run["eval/pass_at_k"][1].tolist(),
        "curves": shown,
    }


def at_cost(result: Mapping[str, Any], cost: str, value: float) -> float:
    """avg@k when so many "tokens" or "seconds" were spent, between the two evaluations around; the last one's where the
    run ended before."""
    return float(np.interp(value, result[cost], result["avg"]))


def best_rate(results: Mapping[float, Mapping[str, Any]]) -> float:
    """The learning rate with the highest last avg@k; of equal ones the lowest."""
    return max(sorted(results), key=lambda rate: results[rate]["avg"][-1])


def pilots(tasks: Mapping[str, Task], methods: Mapping[str, Flags], setting: Setting) -> dict[tuple[str, str], Job]:
    """{(task, method): its pilot}."""
    return {
        (t, m): Job(setting.folder / "pilots" / slug(t) / slug(m), functools.partial(pilot, task, flags, setting))
        for t, task in tasks.items()
        for m, flags in methods.items()
    }


def tuning(
    tasks: Mapping[str, Task], methods: Mapping[str, Flags], setting: Setting,
    tokens_of: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[tuple[str, str, float], Job]:  # fmt: skip
    """{(task, method, learning rate): its run with half of the tokens}; methods without a pilot are left out."""
    found = {}
    for t, m in itertools.product(tasks, methods):
        if (t, m) not in tokens_of:
            continue
        updates = updates_for(setting.tokens(tasks[t]) // 2, tokens_of[t, m])
        for rate in setting.rates:
            work = functools.partial(learn, tasks[t], methods[m], setting, updates, rate, TUNING_SEED, True)
            found[t, m, rate] = Job(setting.folder / "tuning" / slug(t) / slug(m) / f"{rate:g}", work)
    return found


def seeds(
    tasks: Mapping[str, Task], methods: Mapping[str, Flags], setting: Setting, number: int,
    tokens_of: Mapping[tuple[str, str], Mapping[str, Any]], rates: Mapping[tuple[str, str], float],
) -> dict[tuple[str, str, int], Job]:  # fmt: skip
    """{(task, method, seed): its run}, all methods of a seed before the next seed."""
    found = {}
    for seed in range(number):
        for (t, m), rate in rates.items():
            updates = updates_for(setting.tokens(tasks[t]), tokens_of[t, m])
            work = functools.partial(learn, tasks[t], methods[m], setting, updates, rate, seed, False)
            folder = setting.folder / "training" / slug(t) / slug(m)
            found[t, m, seed] = Job(folder / f"rate{rate:g}_seed{seed}", work)
    return found
