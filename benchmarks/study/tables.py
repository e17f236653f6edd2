"""What the study found, as tables, CSV files and figures."""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.study.tasks import BASELINE
from benchmarks.study.training import at_cost


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (Student's t over the values); NaN bounds for a single value."""
    from scipy import stats

    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def shown(values: Sequence[float], scale: float = 100) -> str:
    """ "42.1 (40.0 .. 44.2)"; the mean alone for a single value."""
    mean, low, high = (scale * x for x in interval(values))
    return f"{mean:.1f}" if np.isnan(low) else f"{mean:.1f} ({low:.1f} .. {high:.1f})"


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row; the columns of all of them, in the order in which they first occur."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def seed_rows(results: Mapping[tuple[str, str, int], Mapping[str, Any]], tokens: Mapping[str, int]) -> list[dict]:
    """A row of each run. Equal time is that of the task's quickest method, in the mean over its seeds."""
    totals: dict[str, dict[str, list[float]]] = {}
    for (task, method, _), result in results.items():
        totals.setdefault(task, {}).setdefault(method, []).append(result["seconds"][-1])
    quickest = {task: min(np.mean(found) for found in by.values()) for task, by in totals.items()}
    return [
        {
            "task": task,
            "method": method,
            "seed": seed,
            "learning rate": result["learning_rate"],
            "updates": result["updates"],
            "tokens": result["tokens"][-1],
            "seconds": result["seconds"][-1],
            "avg before": result["avg"][0],
            "avg at equal tokens": at_cost(result, "tokens", tokens[task]),
            "avg at equal time": at_cost(result, "seconds", quickest[task]),
            "pass before": result["pass"][0],
            "pass after": result["pass"][-1],
            "avg@many": result["avg_at_many"],
            "pass@many": result["pass_at_many"],
            "Eff-Rate": float(np.mean(result["curves"]["eff_rate"])),
            "entropy before": result["curves"]["entropy"][0],
            "entropy after": result["curves"]["entropy"][-1],
            "IB-Score, last third": last_third(result["curves"]["ib_score_root"]),
            "Cov, last third": last_third(result["curves"]["cov_root"]),
        }
        for (task, method, seed), result in results.items()
    ]


def last_third(curve: Sequence[float]) -> float:
    """Mean over the last third of the updates."""
    return float(np.mean(curve[2 * len(curve) // 3 :]))


def training_table(rows: Iterable[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    """A row of each method: means over seeds with intervals, and the paired difference to the baseline."""
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["task"] == task:
            by_method.setdefault(row["method"], {})[row["seed"]] = row
    base = by_method.get(BASELINE, {})
    table = []
    for method, seeds in by_method.items():
        found = list(seeds.values())
        paired = sorted(set(seeds) & set(base)) if method != BASELINE else []

        def difference(name, seeds=seeds, paired=paired):
            return shown([seeds[s][name] - base[s][name] for s in paired]) if paired else "-"

        table.append({
            "method": method,
            "seeds": len(found),
            "rate": found[0]["learning rate"],
            "updates": found[0]["updates"],
            "equal tokens": shown([row["avg at equal tokens"] for row in found]),
            f"avg less {BASELINE}": difference("avg at equal tokens"),
            "equal time": shown([row["avg at equal time"] for row in found]),
            "pass@many": shown([row["pass@many"] for row in found]),
            f"pass less {BASELINE}": difference("pass@many"),
            "Eff-Rate": shown([row["Eff-Rate"] for row in found]),
        })  # fmt: skip
    return table


def digits(text: str) -> np.ndarray:
    """ "0110" as numbers."""
    return np.array([int(digit) for digit in text])


def rows_by_tree(rows: Iterable[Mapping[str, Any]], task: str) -> dict[str, list[Mapping[str, Any]]]:
    """Those of a task, by the tree's name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["task"] == task:
            found.setdefault(row["tree"], []).append(row)
    return found


def branching_table(rows: Iterable[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    """A row of each variant: means over seeds, with intervals where they decide. Differences in Eff-Rate are taken
    question by question, in the mean over the seeds that both have, and their intervals are over the questions."""
    by_tree = rows_by_tree(rows, task)
    by_question = {tree: {row["seed"]: digits(row["mixed"]) for row in found} for tree, found in by_tree.items()}
    random = np.mean([row["tokens"] for row in by_tree["random"]]) if "random" in by_tree else np.nan
    table = []
    for tree, found in by_tree.items():

        def mean(name, found=found):
            values = [row[name] for row in found if row.get(name) is not None]
            return float(np.mean(values)) if values else None

        def less(other, tree=tree):
            seeds = sorted(set(by_question[tree]) & set(by_question.get(other, ())))
            if tree == other or not seeds:
                return "-"
            return shown(np.mean([by_question[tree][s] - by_question[other][s] for s in seeds], axis=0))

        table.append({
            "tree": tree,
            "seeds": len(found),
            "Eff-Rate": shown([row["Eff-Rate"] for row in found]),
            "less random": less("random"),
            "less ib": less("ib"),
            "right": shown([row["right"] for row in found]),
            "unguided": shown([row["unguided"] for row in found]),
            "tokens": mean("tokens"),
            "/ random": mean("tokens") / random,
            "places of 8": mean("places"),
            "depth": mean("depth"),
            "at best": mean("at the best node"),
            "by chance": mean("best by chance"),
            "bias": mean("bias, leaf mean"),
            "error": mean("error, leaf mean"),
            "bias, backup": mean("bias, backup"),
            "error, backup": mean("error, backup"),
        })  # fmt: skip
    return table


def draw_branching(rows: Iterable[Mapping[str, Any]], task: str, path: pathlib.Path) -> None:
    """Eff-Rate and the share of right responses against tokens a question, a point for each tree; bars are intervals
    over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_tree = rows_by_tree(rows, task)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, name in zip(axes, ("Eff-Rate", "right")):
        for number, (tree, found) in enumerate(by_tree.items()):
            mean, low, high = (100 * x for x in interval([row[name] for row in found]))
            bars = None if np.isnan(low) else [[mean - low], [high - mean]]
            at = np.mean([row["tokens"] for row in found])
            style = dict(color=f"C{number % 10}", marker="os^Dv"[number % 5], capsize=3, linestyle="none")
            axis.errorbar(at, mean, yerr=bars, label=tree, **style)
        axis.set(title=f"{name}, %", xlabel="tokens a question")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def running_mean(curve: Sequence[float]) -> np.ndarray:
    """Means over a tenth of the updates around each; the first and the last are repeated beyond the ends."""
    width = len(curve) // 10 | 1
    return np.convolve(np.pad(curve, width // 2, mode="edge"), np.full(width, 1 / width), mode="valid")


def draw_training(results: Mapping[tuple[str, str, int], Mapping[str, Any]], task: str, path: pathlib.Path) -> None:
    """Held-out avg@k against tokens, entropy, Eff-Rate, and IB-Score and Cov of the questions, which methods without
    branches have too; means over seeds, and but for the first running ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for (name, method, _), result in results.items():
        if name == task:
            by_method.setdefault(method, []).append(result)
    panels = ("avg@16, held out", "entropy", "eff_rate", "ib_score_root", "cov_root")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), layout="constrained")
    for number, (method, found) in enumerate(by_method.items()):
        style = dict(color=f"C{number % 10}", linestyle="-" if number < 10 else "--", label=method)
        top = min(result["tokens"][-1] for result in found)
        grid = np.linspace(0, top, 60)
        axes[0].plot(grid, np.mean([np.interp(grid, r["tokens"], r["avg"]) for r in found], axis=0), **style)
        for axis, name in zip(axes[1:], panels[1:]):
            curves = [r["curves"][name] for r in found if name in r["curves"]]
            if not curves:
                continue
            at = [np.linspace(0, r["tokens"][-1], len(r["curves"][name])) for r in found]
            lines = [np.interp(grid, x, running_mean(y)) for x, y in zip(at, curves)]
            axis.plot(grid, np.mean(lines, axis=0), **style)
    for axis, name in zip(axes, panels):
        axis.set(title=name, xlabel="generated tokens")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
