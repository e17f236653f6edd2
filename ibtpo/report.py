"""Learning curves and tables from the metrics of one or several runs.

    python -m ibtpo.report --workdir=runs/tiny --workdir=runs/tiny_grpo --out=runs/compare.png

Draws `workdir/metrics.jsonl` of each run into one figure and prints the last and the best evaluation of each.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ibtpo import metrics as metrics_lib
from ibtpo.arguments import Parser, program
from ibtpo.errors import UserError, one_line

Series = tuple[np.ndarray, np.ndarray]
Style = Literal["-", "--"]

# Colours that the common forms of colour blindness still tell apart (Okabe and Ito), one per run.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Metrics on a scale of their own beside another one, with the name of that scale.
_RIGHT_AXIS = {"train/cov": "Cov(η1, η2) (dashed)", "train/kl": "KL, nats per token (dashed)"}
# The line styles of a panel with several metrics.
_LABELS = {
    "train/avg_rate": "all responses",
    "train/avg_rate_initial": "unguided only",
    "train/ib_score": "IB-Score J",
    "train/cov": "Cov(η1, η2) (right axis)",
    "train/entropy": "entropy",
    "train/kl": "KL (right axis)",
}
_MARKED_POINTS = 40  # more points than this are drawn without markers


class _Panel(NamedTuple):
    """One of the figure's panels. metrics: {name: line style}; scale: the name of its y axis; by_tokens: drawn against
    generated tokens instead of updates."""

    title: str
    metrics: dict[str, Style]
    scale: str
    by_tokens: bool = False


_PANELS = (
    _Panel("Held-out {avg_at_k}", {"eval/avg_at_k": "-"}, "share correct"),
    _Panel("Held-out {avg_at_k} by sampling cost", {"eval/avg_at_k": "-"}, "share correct", by_tokens=True),
    _Panel("Mean reward in training", {"train/avg_rate": "-", "train/avg_rate_initial": "--"}, "mean reward"),
    _Panel("Effective rate (groups with unequal rewards)", {"train/eff_rate": "-"}, "share of groups"),
    _Panel("IB-Score and covariance", {"train/ib_score": "-", "train/cov": "--"}, "IB-Score J"),
    _Panel("Entropy and KL of trained tokens", {"train/entropy": "-", "train/kl": "--"}, "entropy, nats per token"),
)


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


def learning_curve(
    workdirs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    names: Sequence[str] | None = None,
) -> str:
    """Draws the runs' curves into a PNG and returns its path.

    Panels: held-out avg@k with its interval against updates and against generated tokens; mean reward in training
    (all responses, and the unguided ones alone: guided responses are no fair sample of the policy); effective rate;
    IB-Score and covariance; entropy and KL. Noisy curves are drawn smoothed over the thin raw line. A metric that a
    run did not log is left out.

    Args:
      workdirs: one run or several.
      out: the PNG; its folder is made if missing.
      names: of the runs; default: the last part of each workdir.

    Raises:
      FileNotFoundError: a workdir without metrics.jsonl.
      ValueError: as many names as runs are needed, and at least one run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    workdirs = [workdirs] if isinstance(workdirs, str | os.PathLike) else list(workdirs)
    names = run_names(workdirs) if names is None else list(names)
    if not workdirs or len(names) != len(workdirs):
        raise ValueError(f"{len(names)} names for {len(workdirs)} runs: give one name per run, and at least one run")
    runs = [read_run(workdir) for workdir in workdirs]

    figure = Figure(figsize=(15, 8.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), dpi=110)  # inches
    FigureCanvasAgg(figure)
    k = {int(run["eval/k"][1][-1]) for run in runs if "eval/k" in run}
    avg_at_k = f"avg@{k.pop()}" if len(k) == 1 else "avg@k"
    for axis, panel in zip(figure.subplots(2, 3).flat, _PANELS):
        axis.set_title(panel.title.format(avg_at_k=avg_at_k), fontsize=12, pad=8)
        _draw_panel(axis, panel, runs)
    handles = [Line2D([], [], color=c, linewidth=3, label=name) for name, c in zip(names, _COLOURS * len(names))]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 4), frameon=False, fontsize=12)

    out = os.fspath(out)
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    figure.savefig(out)
    return out


def _draw_panel(axis: Any, panel: _Panel, runs: Sequence[Mapping[str, Series]]) -> None:
    """All but the title: frame, curves, ticks, and a legend where there are several metrics."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_xlabel("tokens generated for training" if panel.by_tokens else "update")
    axis.set_ylabel(panel.scale)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    drawn = []  # names of metrics
    for name in panel.metrics:
        target = axis
        if name in _RIGHT_AXIS and any(name in run and np.isfinite(run[name][1]).any() for run in runs):
            target = axis.twinx()
            target.spines["top"].set_visible(False)
            target.set_ylabel(_RIGHT_AXIS[name])
        if _draw_metric(target, name, panel, runs):
            drawn.append(name)
    if not drawn:
        axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center", va="center", color="0.5")
        axis.set_xticks([])
        axis.set_yticks([])
        return
    if panel.by_tokens:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    if len(panel.metrics) > 1:
        _add_legend(axis, {_LABELS[name]: panel.metrics[name] for name in drawn})


def _draw_metric(axis: Any, name: str, panel: _Panel, runs: Sequence[Mapping[str, Series]]) -> bool:
    """One metric of all runs, with its interval if it is the evaluation's; whether any run logged it."""
    drawn = False
    for run, colour in zip(runs, _COLOURS * len(runs)):
        if name not in run:
            continue
        steps, values = run[name]
        x = generated_tokens(run, steps) if panel.by_tokens else steps
        if x is None or not np.isfinite(values).any():
            continue
        drawn = True
        _draw_curve(axis, x, values, panel.metrics[name], colour, raw=name.startswith("train/"))
        if name == "eval/avg_at_k" and {"eval/avg_low", "eval/avg_high"} <= run.keys():
            low, high = (np.interp(steps, *run[bound]) for bound in ("eval/avg_low", "eval/avg_high"))
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    return drawn


def _add_legend(axis: Any, styles: Mapping[str, Style]) -> None:
    """The legend of the line styles, {label: style}; below the frame, where it can cover no curve."""
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color="0.25", linestyle=style, label=label) for label, style in styles.items()]
    axis.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=10)


def _draw_curve(axis: Any, x: np.ndarray, values: np.ndarray, style: str, colour: str, raw: bool) -> None:
    """One curve; with `raw` and many points a smoothed line over the thin measured one."""
    if raw and len(values) > _MARKED_POINTS:
        axis.plot(x, values, "-", color=colour, alpha=0.22, linewidth=0.8)
        axis.plot(x, smooth(values, max(len(values) // 10, 3)), style, color=colour, linewidth=1.8)
    else:
        marker = "o" if len(values) <= _MARKED_POINTS else None
        axis.plot(x, values, style, color=colour, linewidth=1.8, marker=marker, markersize=3.5)


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
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    is_text = [any(isinstance(row.get(name), str) for row in rows) for name in columns]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]

    def render(line: Sequence[str]) -> str:
        pairs = zip(line, widths, is_text)
        return "  ".join(c.ljust(width) if text else c.rjust(width) for c, width, text in pairs).rstrip()

    if not rows:
        return ""
    return "\n".join([render(columns), "  ".join("-" * width for width in widths), *map(render, cells)])


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
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


def _check_runs(workdirs: Sequence[str], names: Sequence[str], out: str) -> None:
    """Raises a UserError where a run or an option cannot be used."""
    from matplotlib.backend_bases import FigureCanvasBase

    if len(names) != len(workdirs):
        raise UserError(f"--name: {len(names)} names for {len(workdirs)} runs: give one name per run")
    kind, kinds = os.path.splitext(out)[1][1:].lower() or "png", FigureCanvasBase.get_supported_filetypes()
    if os.path.isdir(out) or kind not in kinds:
        raise UserError(f"--out={out} is a folder, or no kind of picture: name a file that ends in .png")
    for workdir in workdirs:
        file = os.path.join(workdir, metrics_lib.FILE_NAME)
        if not metrics_lib.exist(workdir):
            raise UserError(f"{file}: no such file; --workdir names the folder of a run")
        try:
            empty = not read_run(workdir)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({one_line(error)}): is it that of a run?") from error
        if empty:
            raise UserError(f"{file} has no row of metrics: the run has not got that far, or it is another file")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a missing file ends it with one line and code 2."""
    parser = Parser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", action="append", required=True, help="folder of a run; repeat to compare runs")
    parser.add_argument("--name", action="append", help="name of a run in the figure, one per --workdir")
    parser.add_argument("--out", help="the PNG; default: learning_curve.png in the first workdir")
    arguments = parser.parse_args(argv)
    names = arguments.name or run_names(arguments.workdir)
    out = arguments.out or os.path.join(arguments.workdir[0], "learning_curve.png")
    try:
        _check_runs(arguments.workdir, names, out)
        out = learning_curve(arguments.workdir, out, names=names)
        table = summary_table([summarize(workdir, name) for workdir, name in zip(arguments.workdir, names)])
    except UserError as error:
        parser.fail(str(error))
    except OSError as error:
        parser.fail(f"--out={out} cannot be written ({error.strerror or error}): name another file")
    print(table)
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    main()
