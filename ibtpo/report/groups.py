"""Runs compared: which are repeats of one another with other seeds, their mean curves with intervals, and what differs
between their configurations and machines."""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibtpo import environment
from ibtpo.config.keys import flatten
from ibtpo.report.runs import Series, read_run

# Keys that say nothing about what is learnt: runs that differ in these and the seed alone are repeats.
_NO_DIFFERENCE = ("train.seed", "log.", "checkpoint.", "compilation_cache", "data.dir", "data.files", "reward.workers")
# The 97.5 % quantile of Student's distribution by degrees of freedom (any table of it); beyond them the normal's.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.960


@dataclass(frozen=True)
class Run:
    """A run as the report shows it. series: of `read_run`. config: flat; empty where there is none."""

    name: str
    workdir: pathlib.Path
    series: Mapping[str, Series]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs that repeat one another (`runs`: their places). curves: {metric: (steps, mean, low, high)}, [n] each; low
    and high are NaN where nothing is known of the spread. spread: what they are, in words."""

    name: str
    runs: Sequence[int]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    spread: str


def load(workdir: str | os.PathLike, name: str) -> Run:
    """Reads a run. FileNotFoundError without metrics.jsonl; a missing or damaged config.json is an empty one."""
    folder = pathlib.Path(workdir)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = {}
    entries = environment.read(folder)
    flat = flatten(config) if isinstance(config, dict) else {}
    return Run(name, folder, read_run(folder), flat, entries[-1] if entries else {})


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs in groups of repeats, in the order of each group's first."""
    members: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        what = {key: x for key, x in run.config.items() if not key.startswith(_NO_DIFFERENCE)}
        seed = run.config.get("train.seed")
        key = json.dumps(what, sort_keys=True, default=str) if what else f"no config {place}"
        same_seed = [runs[other].config.get("train.seed") == seed for other in members.get(key, [])]
        # The same seed twice is the same run twice, and no second sample of it.
        members.setdefault(f"{key} again {place}" if any(same_seed) else key, []).append(place)
    found = [_group([runs[i] for i in places], places) for places in members.values()]
    names = [group.name for group in found]
    return [
        group if names.count(group.name) == 1 else Group(", ".join(runs[i].name for i in group.runs), *_rest(group))
        for group in found
    ]


def _rest(group: Group) -> tuple:
    return group.runs, group.curves, group.spread


def _group(runs: Sequence[Run], places: Sequence[int]) -> Group:
    if len(runs) == 1:
        return Group(runs[0].name, places, _own_curves(runs[0].series), "95 % interval over questions")
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*(run.name for run in runs)))
    prefix = "".join(letters[0] for letters in alike).rstrip("0123456789").rstrip("_-. /")
    prefix = prefix.removesuffix("seed").rstrip("_-. /") or runs[0].name
    spread = "range of 2 seeds" if len(runs) == 2 else f"95 % interval of the mean of {len(runs)} seeds"
    return Group(f"{prefix} ({len(runs)} seeds)", places, _mean_curves([run.series for run in runs]), spread)


def _own_curves(series: Mapping[str, Series]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The curves of one run; the interval over questions where the evaluation logged one."""
    curves = {}
    for name, (steps, values) in series.items():
        bounds = [f"{name.removesuffix('_at_k')}_{side}" for side in ("low", "high")]
        unknown = np.full(len(steps), np.nan)
        low, high = (_at(series[b], steps) if b in series else unknown for b in bounds)
        curves[name] = steps, values, low, high
    return curves


def _mean_curves(all_series: Sequence[Mapping[str, Series]]) -> dict[str, tuple]:
    """Mean over the runs at the steps that all have, and its spread: Student's 95 % interval, of two runs the range."""
    curves = {}
    for name in [name for name in all_series[0] if all(name in series for series in all_series)]:
        steps = all_series[0][name][0]
        for series in all_series[1:]:
            steps = np.intersect1d(steps, series[name][0])
        if not len(steps):
            continue
        values = np.stack([_at(series[name], steps) for series in all_series])
        mean, n = values.mean(axis=0), len(values)
        if n == 2:
            low, high = values.min(axis=0), values.max(axis=0)
        else:
            quantile = _STUDENT[n - 2] if n - 2 < len(_STUDENT) else _NORMAL
            reach = quantile * values.std(axis=0, ddof=1) / np.sqrt(n)
            low, high = mean - reach, mean + reach
        curves[name] = steps, mean, low, high
    return curves


def _at(series: Series, steps: np.ndarray) -> np.ndarray:
    """The values at some of a series' steps; NaN where it has none."""
    known, values = series
    place = np.minimum(np.searchsorted(known, steps), len(known) - 1)
    return np.where(known[place] == steps, values[place], np.nan)


def differences(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{key: its value in each of the tables} of the keys whose values are not all equal; None where one lacks it."""
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key) for table in tables] for key in keys}
    return {key: row for key, row in rows.items() if any(x != row[0] for x in row[1:])}
