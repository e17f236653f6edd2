"""The command line of the study; see the package."""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import benchmarks.study
from benchmarks.output import streams
from benchmarks.study import branching, tables, training
from benchmarks.study.jobs import Job, run_command, run_jobs
from benchmarks.study.tasks import BASELINE, LEARNING_RATES, METHODS, SWEEPS, TASKS, Task

SUITES = ("branching", "training", "sweeps")
QUESTIONS = 1024
Log = Callable[[str], None]


def results_of(jobs: Mapping[Any, Job]) -> dict[Any, dict[str, Any]]:
    """Of the jobs that are done."""
    found = {key: job.result() for key, job in jobs.items()}
    return {key: result for key, result in found.items() if result is not None}


def branch(task: str, seed: int, questions: int, names: Sequence[str], folder: pathlib.Path, cores) -> dict[str, Any]:
    """One job of suite "branching": the variants of these names of a task and a seed that are not there."""
    own = [f"--task={task}", f"--seed={seed}", f"--questions={questions}", f"--out={folder}"]
    run_command(["-m", "benchmarks.study.branching", *own, f"--trees={';'.join(names)}"], folder, cores)
    found = branched(names, folder)
    assert found is not None, folder
    return found


def branched(names: Sequence[str], folder: pathlib.Path) -> dict[str, Any] | None:
    """The rows of these variants, None where one is missing."""
    paths = [folder / branching.file_of(name) for name in names]
    if not all(path.exists() for path in paths):
        return None
    return {"rows": [json.loads(path.read_text()) for path in paths]}


def run_branching(arguments, tasks: Mapping[str, Task], log: Log, show: Log) -> tuple[list[dict], list[str]]:
    """The rows of all tasks and seeds, and what failed."""
    questions, names = arguments.questions, list(arguments.trees)
    root = arguments.folder / "branching" / f"{questions}_questions"
    jobs = {
        (task, seed): Job(
            root / training.slug(task) / f"seed{seed}",
            functools.partial(branch, task, seed, questions, names),
            functools.partial(branched, names),
        )
        for seed in range(arguments.seeds)
        for task in tasks
    }
    log("branching")
    failed = run_jobs(list(jobs.values()), arguments.jobs, log)
    rows = [row for result in results_of(jobs).values() for row in result["rows"]]
    print_tables(rows, tasks, tables.branching_table, "branching", show)
    return rows, failed


def run_training(
    arguments, tasks: Mapping[str, Task], methods: Mapping[str, training.Flags], log: Log, show: Log, *, name: str
) -> tuple[dict, list[str]]:
    """The results of all tasks, methods and seeds, and what failed. Sweeps take the learning rate of "ibtpo"."""
    setting = training.Setting(arguments.folder, arguments.quick, arguments.rates)
    tuned = methods if name == "training" else {"ibtpo": METHODS["ibtpo"]}
    log(f"{name}: pilots")
    pilots = training.pilots(tasks, {**methods, **tuned}, setting)
    failed = run_jobs(list(pilots.values()), arguments.jobs, log)
    tokens_of = results_of(pilots)
    if len(setting.rates) == 1:
        best = dict.fromkeys(tokens_of, setting.rates[0])
    else:
        log(f"{name}: learning rates")
        tuning = training.tuning(tasks, tuned, setting, tokens_of)
        failed += run_jobs(list(tuning.values()), arguments.jobs, log)
        by_pair: dict[tuple[str, str], dict[float, dict]] = {}
        for (task, method, rate), result in results_of(tuning).items():
            by_pair.setdefault((task, method), {})[rate] = result
        best = {pair: training.best_rate(found) for pair, found in by_pair.items()}
    pairs = {(t, m): (t, m if m in tuned else "ibtpo") for t in tasks for m in methods if (t, m) in tokens_of}
    best = {pair: best[own] for pair, own in pairs.items() if own in best}
    log(f"{name}: seeds")
    jobs = training.seeds(tasks, methods, setting, arguments.seeds, tokens_of, best)
    failed += run_jobs(list(jobs.values()), arguments.jobs, log)
    results = results_of(jobs)
    rows = tables.seed_rows(results, {task: setting.tokens(tasks[task]) for task in tasks})
    print_tables(rows, tasks, tables.training_table, name, show)
    return {"rows": rows, "results": results}, failed


def print_tables(rows, tasks, make, name: str, show: Log) -> None:
    """A table of each task."""
    from ibtpo.report import summary_table

    for task in tasks:
        show(f"\n{name}, {task}\n{summary_table(make(rows, task))}")


def chosen(
    text: str, known: Mapping[str, Any], parser: argparse.ArgumentParser, option: str, between: str = ","
) -> dict[str, Any]:
    """The named ones of `known`, all where none is named."""
    names = [name.strip() for name in text.split(between)] if text else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--{option}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=benchmarks.study.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", default="branching,training", help=f"of {', '.join(SUITES)}, separated by commas")
    parser.add_argument("--tasks", default="", help=f"of {', '.join(TASKS)}; all")
    parser.add_argument("--methods", default="", help="of suite training; all")
    parser.add_argument("--rates", type=float, nargs="+", default=LEARNING_RATES, help="tried; a single one is taken")
    parser.add_argument("--trees", default="", help="of suite branching, separated by semicolons; all")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of suite branching")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, which share the cores; 0: only report")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/study"))
    parser.add_argument("--csv", type=pathlib.Path, help="folder for the rows of each seed and the figures")
    parser.add_argument("--quick", action="store_true", help="tiny runs of one seed, to see that all works")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the tables go to stderr")
    arguments = parser.parse_args()
    suites = chosen(arguments.suite, dict.fromkeys(SUITES), parser, "suite")
    tasks = chosen(arguments.tasks, TASKS, parser, "tasks")
    methods = chosen(arguments.methods, METHODS, parser, "methods")
    arguments.trees = chosen(
        arguments.trees or ";".join(branching.FIRST if arguments.quick else branching.VARIANTS),
        branching.VARIANTS, parser, "trees", ";",
    )  # fmt: skip
    arguments.folder = arguments.folder.resolve()
    if arguments.quick:
        arguments.seeds, arguments.questions, arguments.folder = 1, 8, arguments.folder / "quick"
    out = streams(arguments.json)
    failed: list[str] = []
    figures: dict[str, Any] = {}
    for suite in suites:
        if suite == "branching":
            rows, bad = run_branching(arguments, tasks, **out)
        else:
            own = methods if suite == "training" else SWEEPS
            found, bad = run_training(arguments, tasks, own, name=suite, **out)
            rows = found["rows"]
            for task in tasks if arguments.csv else ():
                path = arguments.csv / f"{suite}-{training.slug(task)}.png"
                tables.draw_training(found["results"], task, path)
        failed += bad
        figures[suite] = rows
        for task in tasks if arguments.csv else ():
            if own_rows := [row for row in rows if row["task"] == task]:
                if suite == "branching":
                    tables.draw_branching(own_rows, task, arguments.csv / f"{suite}-{training.slug(task)}.png")
                tables.write_csv(arguments.csv / f"{suite}-{training.slug(task)}.csv", own_rows)
    for line in failed:
        out["log"](f"FAILED {line}")
    if arguments.json:
        print(json.dumps(dict(quick=arguments.quick, results=figures, goals=goals(figures), failed=failed)))
    return int(bool(failed))


def goals(figures: Mapping[str, list[dict]]) -> list[dict]:
    """What the paper says, as goals: the method learns more from as many tokens, and its forks leave more groups mixed
    than random ones."""
    from benchmarks.goals import make_goal

    found = []
    for task in dict.fromkeys(row["task"] for row in figures.get("training", ())):
        rows = [row for row in figures["training"] if row["task"] == task]
        ours, base = (
            {row["seed"]: row["avg at equal tokens"] for row in rows if row["method"] == method}
            for method in ("ibtpo", BASELINE)
        )
        if common := sorted(set(ours) & set(base)):
            low = tables.interval([ours[s] - base[s] for s in common])[1]
            name = f"{task}: ibtpo over {BASELINE} at equal tokens, lower end"
            found.append(make_goal(name, None if low != low else low, 0.0, at_least=True))
    for task in dict.fromkeys(row["task"] for row in figures.get("branching", ())):
        rows = {(r["tree"], r["seed"]): r["Eff-Rate"] for r in figures["branching"] if r["task"] == task}
        off = [rows["ib", s] - rows["random", s] for t, s in rows if t == "ib" and ("random", s) in rows]
        if off:
            found.append(make_goal(f"{task}: Eff-Rate of ib over random's", sum(off) / len(off), 0.0, at_least=True))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
