"""One page about runs: curves, what differs, and every saved tree to look into. It is a single file that loads nothing.

The data of the page, each packed as `ibtpo.pages.pack` does, in a <script type="text/plain"> of this id:

    curves    {"groups": [{"name", "spread", "runs": [place], "curves": {metric: [steps, mean, low, high]},
               "axes": {"tokens" | "seconds": [steps, values]}}],
               "runs": [{"name", "curves": {metric: [steps, values]}}],    of groups with several runs only
               "panels": [{"title", "unit", "metrics": [[name, label], ...]}]}        null for what is not finite
    trees     [{"block", "source", "label", "problem", "first"}]: the id of the tree's own block, where it is from, its
              question with how many of its responses are right, the problem's id, whether it is to be shown first
    t<n>      a tree as `ibtpo.saved_trees.files` describes it, with "options" and the "vocabulary" of its tokens

What it holds is text from a model: the scripts put it in place as text. templates/report_curves.js draws the curves,
tree_model.js, tree_draw.js, tree_panel.js, tree_view.js and math_view.js the trees.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ibtpo.pages import pack, render
from ibtpo.report.groups import Group, Run, differences, groups, load
from ibtpo.report.runs import run_names, shown, summarize
from ibtpo.saved_trees import FOLDER, TreeFile, list_files, read_file
from ibtpo.whole_files import write_text

PAGE = "report.html"
_TREE_SCRIPTS = ("math_view.js", "tree_model.js", "tree_draw.js", "tree_panel.js", "tree_save.js", "tree_view.js")
_MOST_POINTS = 1500  # of a curve; beyond, neighbours are averaged
_PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Held-out accuracy", "share correct", {"eval/avg_at_k": "avg@k"}),
    ("Mean reward in training", "reward", {"train/avg_rate_initial": "unguided only", "train/avg_rate": "all"}),
    ("Effective rate", "share of groups with unequal rewards", {"train/eff_rate": "Eff-Rate"}),
    ("IB-Score", "J", {"train/ib_score": "all nodes", "train/ib_score_root": "the question"}),
    ("Covariance", "Cov(η1, η2)", {"train/cov": "all nodes", "train/cov_root": "the question"}),
    ("Entropy", "nats per token", {"train/entropy": "entropy"}),
    ("KL to the reference", "nats per token", {"train/kl": "KL"}),
    (
        "Response length",
        "tokens",
        {"train/response_length_initial": "unguided only", "train/response_length": "all"},
    ),
    ("Gradient norm", "before clipping", {"train/grad_norm": "norm"}),
)


def report_page(runs: Sequence[Run], most_trees: int = 200) -> tuple[str, list[str]]:
    """(the page, what could not be read in a line each) of runs of `groups.load`. most_trees: on the page; 0: all."""
    found, problems = saved_trees(runs, most_trees)
    together = groups(runs)
    rows = [summarize(run.workdir, run.name) for run in runs]
    configs = differences([run.config for run in runs])
    page = _page(
        found,
        title=" · ".join(run.name for run in runs)[:200],
        curves=pack(curves_data(runs, together)),
        names=[run.name for run in runs],
        summary=_table(rows),
        groups=[group.name for group in together],
        differences={key: [_shown(x) for x in row] for key, row in configs.items()},
        settings={key: _shown(x) for key, x in runs[0].config.items() if key not in configs},
        environments=_environments(runs),
        problems=problems,
    )
    return page, problems


def write_report(
    workdirs: Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    names: Sequence[str] | None = None,
    most_trees: int = 200,
) -> str:
    """Writes the page of runs and returns its path; by default report.html in the first run's workdir."""
    path = os.fspath(out if out is not None else os.path.join(workdirs[0], PAGE))
    runs = [load(*run) for run in zip(workdirs, run_names(workdirs) if names is None else names)]
    write_text(path, report_page(runs, most_trees)[0])
    return path


def trees_page(files: Iterable[tuple[str, TreeFile]], title: str) -> str:
    """A page of trees alone: (where they are from, the trees) of each file."""
    return _page(list(files), title=title, curves=None, problems=[])


def _page(
    found: Sequence[tuple[str, TreeFile]], *, title: str, curves: Any, problems: Sequence[str], **values: Any
) -> str:
    entries, blocks = _entries(found)
    empty: dict[str, Any] = dict(names=[], summary=[], groups=[], differences={}, settings={}, environments={})
    return render(
        "report.html",
        styles=["report.css", "tree_view.css"],
        scripts=[*_TREE_SCRIPTS, *["report_curves.js"] * (curves is not None), "report.js"],
        title=title,
        curves=curves,
        trees=pack(entries) if entries else None,
        count=len(entries),
        blocks=blocks,
        problems=problems,
        **empty | values,
    )


def saved_trees(runs: Sequence[Run], most: int) -> tuple[list[tuple[str, TreeFile]], list[str]]:
    """(source, trees) of the files of runs, and what could not be read. Where they hold more than `most` trees, files
    are left out so that those that stay cover the runs evenly."""
    found, problems = [], []
    for run in runs:
        for step, kind, path in sorted(list_files(run.workdir / FOLDER), key=lambda file: (file[1] == "eval", file[0])):
            try:
                content = read_file(path)
            except ValueError as error:  # UserError: a line about the file
                problems.append(str(error))
                continue
            when = f"evaluation at update {step}" if kind == "eval" else f"update {step}"
            found.append((f"{run.name} · {when}", content))
    total = sum(len(content.trees) for _, content in found)
    if 0 < most < total:
        each = max(max(len(content.trees) for _, content in found), 1)
        keep = np.unique(np.linspace(0, len(found) - 1, max(most // each, 1)).round().astype(int))
        found = [found[i] for i in keep]
        problems.append(f"{sum(len(c.trees) for _, c in found)} of {total} saved trees are here: --trees=0 takes all")
    return found, problems


def _entries(found: Sequence[tuple[str, TreeFile]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The list of the trees, and their blocks. The one shown first: of the last files of training, or else of all, the
    one with most rounds and then the most unequal rewards."""
    entries: list[dict[str, Any]] = []
    blocks: list[Any] = []
    best, first = (-1, -1.0, -1), 0
    for number, (source, content) in enumerate(found):
        for tree in content.trees:
            tokens = {*tree["tokens"], *tree["prompt"]}
            words = {str(token): content.vocabulary[str(token)] for token in tokens}
            right, place = sum(reward == 1 for reward in tree["reward"]), len(entries)
            question = " ".join(tree["question"].split())
            short = question if len(question) <= 90 else f"{question[:89]}…"
            label = f"{right}/{len(tree['reward'])} right · {short}"
            entries.append({"block": f"t{place}", "source": source, "label": label, "problem": tree["problem"]})
            blocks.append(pack({**tree, "options": content.options, "vocabulary": words}))
            score = (min(max(tree["round"]), 1), float(np.std(tree["reward"])), number)
            if score > best:
                best, first = score, place
    for place, entry in enumerate(entries):
        entry["first"] = place == first
    return entries, blocks


def curves_data(runs: Sequence[Run], together: Sequence[Group]) -> dict[str, Any]:
    """The data of the curves, as the docstring of the module describes them."""
    of_groups = []
    for group in together:
        series = runs[group.runs[0]].series
        axes = {
            axis: [x.tolist() for x in series[name]]
            for axis, name in (("tokens", "train/generated_tokens"), ("seconds", "time/elapsed_s"))
            if name in series and np.isfinite(series[name][1]).all()
        }
        of_groups.append(
            {
                "name": group.name,
                "spread": group.spread,
                "runs": list(group.runs),
                "curves": {name: _numbers(*curve) for name, curve in group.curves.items()},
                "axes": axes,
            }
        )
    several = {i for group in together if len(group.runs) > 1 for i in group.runs}
    of_runs = [
        {
            "name": run.name,
            "curves": {name: _numbers(*s) for name, s in run.series.items()} if i in several else {},
        }
        for i, run in enumerate(runs)
    ]
    panels = [{"title": title, "unit": unit, "metrics": list(names.items())} for title, unit, names in _PANELS]
    return {"groups": of_groups, "runs": of_runs, "panels": panels}


def _numbers(*columns: np.ndarray) -> list[list[float | None]]:
    """Columns of equal length as JSON, with 6 digits; runs of neighbours are averaged where they are too many."""
    size = len(columns[0])
    if size > _MOST_POINTS:
        part = np.arange(size) * _MOST_POINTS // size
        counts = np.bincount(part)
        columns = tuple(np.bincount(part, np.asarray(c, float)) / counts for c in columns)
    return [[float(f"{x:.6g}") if np.isfinite(x) else None for x in np.asarray(c, float)] for c in columns]


def _environments(runs: Sequence[Run]) -> dict[str, list[str]]:
    """{field: its value in each run}; none where no run noted any."""
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in ("step",))
    return {key: [_shown(run.environment.get(key)) for run in runs] for key in keys}


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The summary's rows as text, each with all columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: _shown(row.get(name)) for name in columns} for row in rows]


def _shown(value: Any) -> str:
    return shown(value, missing="–") if value != "" else '""'


