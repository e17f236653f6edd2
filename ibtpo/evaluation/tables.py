"""Metrics as text: names, units, and the rows of tables."""

from collections.abc import Mapping

from ibtpo.evaluation.results import bound
from ibtpo.report import summary_table

_LABELS = {
    "avg_at_k": "avg@{k}",
    "pass_at_k": "pass@{k}",
    "maj_at_k": "maj@{k}",
    "mean_length": "mean length",
    "truncation_rate": "truncated",
    "prompt_strict": "prompt, strict",
    "prompt_loose": "prompt, loose",
    "instruction_strict": "instruction, strict",
    "instruction_loose": "instruction, loose",
}
_IN_TOKENS = ("mean_length",)  # the metrics that are numbers of tokens; all others are shares
_FOLLOWED = ("prompt_", "instruction_")  # of instruction following alone


def label(metric: str, k: float | str) -> str:
    """The name of a metric in a table: avg_at_k -> "avg@32"."""
    return _LABELS[metric].format(k=k)


def metric_names(summary: Mapping[str, float]) -> list[str]:
    """The metrics that a summary holds, in their usual order."""
    return [name for name in _LABELS if name in summary]


def show_value(metric: str, value: float, *, signed: bool = False, unit: bool = True) -> str:
    """A metric's value with one decimal: percent, or tokens. signed: a difference, in percentage points or tokens."""
    scaled, name = (value, " tokens") if metric in _IN_TOKENS else (100 * value, " pp" if signed else " %")
    scaled = round(scaled, 1) or 0.0  # no "-0.0"
    return (f"{scaled:+.1f}" if signed and scaled else f"{scaled:.1f}") + (name if unit else "")


def show_interval(metric: str, low: float, high: float, *, signed: bool = False) -> str:
    """An interval as text, in the unit of `show_value`."""
    return " .. ".join(show_value(metric, x, signed=signed, unit=False) for x in (low, high))


def accuracy_line(evaluated: Mapping[str, float]) -> str:
    """ "held-out avg@8 = 42.1 %, 95 % interval 39.0 .. 45.2", of an evaluation's row. The unit is that of every table:
    the files have shares from 0 to 1."""
    name, k = "avg_at_k", f"{evaluated['eval/k']:g}"
    value = show_value(name, evaluated[f"eval/{name}"])
    low, high = (evaluated[f"eval/{bound(name, side)}"] for side in ("low", "high"))
    return f"held-out {label(name, k)} = {value}, 95 % interval {show_interval(name, low, high)}"


def table(summary: Mapping[str, float]) -> str:
    """One benchmark's summary as text, a metric a line."""
    return summary_table(metric_rows(summary))


def metric_rows(summary: Mapping[str, float]) -> list[dict[str, str]]:
    """The rows of `table`."""
    return [
        {
            "metric": label(name, summary["k"]),
            "value": show_value(name, summary[name]),
            "95 % interval": show_interval(name, summary[bound(name, "low")], summary[bound(name, "high")]),
        }
        for name in metric_names(summary)
    ]


def overview_rows(
    summaries: Mapping[str, Mapping[str, float]], mean: Mapping[str, tuple[float, float, float]]
) -> list[dict[str, str | float | None]]:
    """One row per benchmark: its questions and metrics, avg@k with its interval; None where it has no such metric. With
    several benchmarks a last row has `mean`, that of `mean_of_benchmarks`."""
    k = next(iter(summaries.values()))["k"]  # eval.samples of the command
    shown = [name for name in _LABELS if any(name in s for s in summaries.values()) and not name.startswith(_FOLLOWED)]
    rows: list[dict[str, str | float | None]] = []
    for benchmark, summary in summaries.items():
        row: dict[str, str | float | None] = {"benchmark": benchmark, "questions": summary["questions"]}
        for name in shown:
            row[label(name, k)] = show_value(name, summary[name]) if name in summary else None
            if name == "avg_at_k":
                row["95 % interval"] = show_interval(name, summary["avg_low"], summary["avg_high"])
        rows.append(row)
    if len(summaries) > 1:
        row = {"benchmark": "mean", "questions": None}
        for name in shown:
            row[label(name, k)] = show_value(name, mean[name][0]) if name in mean else None
            if name == "avg_at_k":
                row["95 % interval"] = show_interval(name, *mean[name][1:])
        rows.append(row)
    return rows


def show_checkpoint(checkpoint: Mapping) -> str:
    """A checkpoint's identity in words."""
    step = f", update {checkpoint['step']}" if "step" in checkpoint else ""
    return f"{checkpoint['path']}{step}"
