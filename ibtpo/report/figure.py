"""One figure of the learning curves of one or several runs, by matplotlib."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ibtpo.report.runs import Series, generated_tokens, read_run, run_names, smooth

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
