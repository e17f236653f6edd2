"""Numbers of runs, read from their metrics, and tables of them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ibtpo import metrics as metrics_lib

Series = tuple[np.ndarray, np.ndarray]


def read_run(workdir: str | os.PathLike) -> dict[str, Series]:
    """{metric: (steps [n], values [n])} of a run, in order of steps; values that were not finite are NaN.

    Raises:
      FileNotFoundError: the folder has no metrics.jsonl.
    """
    points: dict[str, dict[int, float]] = {}
    for row in metrics_lib.read(workdir):
        for name, value in row.items():
            if name != "step":
                points.setdefault(name, {})[row["step"]] = np.nan if value is None else value
    return {
        name: (np.array(sorted(series)), np.array([series[step] for step in sorted(series)], float))
        for name, series in points.items()
    }


def generated_tokens(run: Mapping[str, Series], steps: np.ndarray) -> np.ndarray | None:
    """Tokens generated for training until each of `steps`, [n]; None where the run did not log them.

    The cumulative count of the last update at or before the step; 0 before the first update.
    """
    if "train/generated_tokens" not in run:
        return None
    logged, tokens = run["train/generated_tokens"]
    return np.concatenate([[0.0], tokens])[np.searchsorted(logged, steps, side="right")]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over at most `window` neighbours, [n]; narrower at both ends, NaN left out."""
    half = window // 2
    known = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    # The same reach to both sides: a one-sided mean would bend the ends of a rising curve.
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    low, high = index - reach, index + reach + 1
    with np.errstate(invalid="ignore"):
        return (totals[high] - totals[low]) / (counts[high] - counts[low])


def run_names(workdirs: Sequence[str | os.PathLike]) -> list[str]:
    """The last part of each path, with as many parent folders as it takes to tell the runs apart."""
    parts = [os.path.abspath(workdir).split(os.sep) for workdir in workdirs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


def summary_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A text table: one line per row under the names of the columns, text to the left, numbers to the right.

    Columns appear in the order in which the rows first name them; a missing or NaN value is "-". Floats are shown
    with 4 significant digits, whole numbers with thousands separators. No rows give an empty text.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[shown(row.get(name)) for name in columns] for row in rows]
    is_text = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]

    def render(line: Sequence[str]) -> str:
        pairs = zip(line, widths, is_text)
        return "  ".join(c.ljust(width) if text else c.rjust(width) for c, width, text in pairs).rstrip()

    if not rows:
        return ""
    return "\n".join([render(columns), "  ".join("-" * width for width in widths), *map(render, cells)])


def shown(value: Any, missing: str = "-") -> str:
    """A value of a table: floats with four digits, large numbers in groups; missing: of None and NaN."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return missing
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(float(value)) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def summarize(workdir: str | os.PathLike, name: str) -> dict[str, Any]:
    """One row about a run for `summary_table`: its evaluations, and their cost."""
    run = read_run(workdir)
    row: dict[str, Any] = {"run": name, "updates": int(max((steps[-1] for steps, _ in run.values()), default=0))}
    if "eval/avg_at_k" in run:
        steps, values = run["eval/avg_at_k"]
        row |= {"first avg@k": values[0], "last avg@k": values[-1]}
        if "eval/avg_low" in run and "eval/avg_high" in run:
            row["interval"] = f"{run['eval/avg_low'][1][-1]:.3f}..{run['eval/avg_high'][1][-1]:.3f}"
        if np.isfinite(values).any():
            row |= {"best avg@k": np.nanmax(values), "at update": int(steps[np.nanargmax(values)])}
    for name, column in (("train/eff_rate", "eff-rate"), ("train/tokens_per_question", "tokens/question")):
        if name in run and np.isfinite(run[name][1]).any():
            row[column] = float(np.nanmean(run[name][1]))
    for name, column in (("train/generated_tokens", "tokens"), ("time/elapsed_s", "seconds")):
        if name in run and np.isfinite(run[name][1][-1]):
            row[column] = int(run[name][1][-1])
    return row
