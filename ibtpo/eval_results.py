"""What an evaluation found: its metrics, the files that hold them, and the paired difference of two evaluations.

A folder with the results of one command:

    summary.json, index.html       every benchmark of the command, and their mean
    <benchmark>/summary.json       metrics with intervals, and what they were computed from; written last
    <benchmark>/responses.jsonl    every response with its verdict, one a line
    <benchmark>/responses.html     the same to browse

Metrics are computed from what responses.jsonl holds, so that they can be computed again without a model. Nothing here
imports JAX.
"""

import contextlib
import json
import os
import pathlib
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ibtpo import estimators
from ibtpo.data.problems import Problem
from ibtpo.report import summary_table
from ibtpo.rewards import EXTRACT
from ibtpo.rewards.math import canonical

SUMMARY, RESPONSES, PAGE, INDEX = "summary.json", "responses.jsonl", "responses.html", "index.html"
_IN_TOKENS = ("mean_length",)  # the metrics that are numbers of tokens; all others are shares
_FOLLOWED = ("prompt_", "instruction_")  # of instruction following alone
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


@dataclass(frozen=True)
class Metric:
    """A mean over questions: values [Q], and weights [Q] where questions do not count alike."""

    values: np.ndarray
    weights: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))


@dataclass
class Evaluation:
    """Graded responses: Q questions, n each.

    problems: each with its reward kind. correct: [Q, n] 0 or 1. answers: [Q][n] extracted answers, None where there is
    none. texts: [Q][n]. lengths: [Q, n] tokens. truncated: [Q, n] bool. generated_tokens: of all responses.
    followed: "strict" and "loose" -> [Q] arrays [n, instructions of the question] bool; empty unless the questions are
    instructions to follow (IFEval).
    """

    problems: Sequence[Problem]
    correct: np.ndarray
    answers: list[list[str | None]]
    texts: list[list[str]]
    lengths: np.ndarray
    truncated: np.ndarray
    generated_tokens: int
    followed: Mapping[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """n, the responses of each question."""
        return self.correct.shape[1]

    def metrics(self, k: int | None = None) -> dict[str, Metric]:
        """avg, pass and maj @k (default: k = n), mean length and truncation rate; for instructions also the share of
        prompts with every instruction followed, and of instructions (prompt_* and instruction_*, over all n responses).

        maj_at_k is left out where responses state no answer that could be voted for (kinds without `EXTRACT`).

        Raises:
          ValueError: k is not between 1 and n.
        """
        k = self.samples if k is None else k
        found = {
            "avg_at_k": Metric(estimators.avg_at_k(self.correct)),
            "pass_at_k": Metric(estimators.pass_at_k(self.correct, k)),
        }
        if all(problem.kind in EXTRACT for problem in self.problems):
            votes = [[None if answer is None else canonical(answer) for answer in row] for row in self.answers]
            found["maj_at_k"] = Metric(estimators.maj_at_k(self.correct, votes, k))
        found["mean_length"] = Metric(self.lengths.mean(axis=1))
        found["truncation_rate"] = Metric(self.truncated.mean(axis=1))
        for mode, verdicts in self.followed.items():
            found[f"prompt_{mode}"] = Metric(np.array([v.all(axis=1).mean() for v in verdicts]))
            counts = np.array([v.shape[1] for v in verdicts])
            found[f"instruction_{mode}"] = Metric(np.array([v.mean() for v in verdicts]), counts)
        return found

    def summary(self, seed: int = 0) -> dict[str, float]:
        """The metrics with their 95 % bootstrap intervals over questions.

        {"questions", "k", "generated_tokens", and for each metric its name and `bound` (name, "low" and "high")}.
        """
        intervals = {
            name: estimators.bootstrap_interval(metric.values, metric.weights, seed=seed)
            for name, metric in self.metrics().items()
        }
        counts = {"questions": len(self.problems), "k": self.samples}
        return counts | with_bounds(intervals) | {"generated_tokens": self.generated_tokens}

    def select(self, indices: Sequence[int]) -> "Evaluation":
        """The questions at these places, in this order; generated_tokens stays that of all."""
        return Evaluation(
            problems=[self.problems[i] for i in indices],
            correct=self.correct[indices],
            answers=[self.answers[i] for i in indices],
            texts=[self.texts[i] for i in indices],
            lengths=self.lengths[indices],
            truncated=self.truncated[indices],
            generated_tokens=self.generated_tokens,
            followed={mode: [verdicts[i] for i in indices] for mode, verdicts in self.followed.items()},
        )


def bound(metric: str, side: str) -> str:
    """The key of a metric's interval in a summary: avg_at_k -> avg_low, mean_length -> mean_length_low."""
    return f"{metric.removesuffix('_at_k')}_{side}"


def with_bounds(intervals: Mapping[str, tuple[float, float, float]]) -> dict[str, float]:
    """{metric: (mean, low, high)} as the flat dict of a summary."""
    return {
        key: value
        for name, interval in intervals.items()
        for key, value in zip((name, bound(name, "low"), bound(name, "high")), interval)
    }


def mean_of_benchmarks(
    metrics: Mapping[str, Mapping[str, Metric]], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """{metric: (mean, low, high)}: the mean over benchmarks, each counted alike, of every metric that all of them have.

    metrics: by benchmark and name. The 95 % interval is a bootstrap that resamples the questions of each benchmark.
    """
    result = {}
    for name in _common(metrics.values()):
        means = [found[name].mean for found in metrics.values()]
        resampled = [
            estimators.bootstrap_means(found[name].values, found[name].weights, seed=_stream(seed, benchmark))
            for benchmark, found in metrics.items()
        ]
        result[name] = (float(np.mean(means)), *estimators.percentiles(np.mean(resampled, axis=0)))
    return result


def _common(dicts: Iterable[Mapping]) -> list[str]:
    """The keys that all have, in the order of the first."""
    first, *others = dicts
    return [name for name in first if all(name in other for other in others)]


def _stream(seed: int, name: str) -> list[int]:
    """A seed for each benchmark: their resamples are independent, and do not depend on the order of a list."""
    return [seed, zlib.crc32(name.encode())]


# --- tables ---------------------------------------------------------------------------------------------------------


def label(metric: str, k: int | str) -> str:
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
) -> list[dict[str, str | int | None]]:
    """One row per benchmark: its questions and metrics, avg@k with its interval; None where it has no such metric. With
    several benchmarks a last row has `mean`, that of `mean_of_benchmarks`."""
    k = next(iter(summaries.values()))["k"]  # eval.samples of the command
    shown = [name for name in _LABELS if any(name in s for s in summaries.values()) and not name.startswith(_FOLLOWED)]
    rows = []
    for benchmark, summary in summaries.items():
        row = {"benchmark": benchmark, "questions": summary["questions"]}
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


# --- files ----------------------------------------------------------------------------------------------------------


def records(evaluation: Evaluation, q: int) -> Iterator[dict]:
    """The lines of responses.jsonl about question q, as dicts."""
    problem = evaluation.problems[q]
    for i, text in enumerate(evaluation.texts[q]):
        verdicts = {mode: found[q][i].tolist() for mode, found in evaluation.followed.items()}
        yield {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "kind": problem.kind,
            "sample": i,
            "response": text,
            "extracted": evaluation.answers[q][i],
            "correct": bool(evaluation.correct[q, i]),
            "tokens": int(evaluation.lengths[q, i]),
            "truncated": bool(evaluation.truncated[q, i]),
            **verdicts,
        }


def write_responses(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Writes responses.jsonl: plain ASCII, whatever the texts hold, complete or not at all."""
    with replacing(path) as part, part.open("w", encoding="ascii") as file:
        for q in range(len(evaluation.problems)):
            file.writelines(json.dumps(record) + "\n" for record in records(evaluation, q))


def read_responses(path: str | os.PathLike, generated_tokens: int = 0) -> Evaluation:
    """The evaluation that `write_responses` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is not such a record, with its number; questions without the same number of responses.
    """
    questions: dict[int, list[dict]] = defaultdict(list)
    needed = ("question", "answer", "kind", "response", "extracted", "correct", "tokens", "truncated")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                questions[record["id"]].append({name: record[name] for name in needed} | _verdicts(record))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is no response of an evaluation ({error!r})") from error
    counts = {len(rows) for rows in questions.values()}
    if len(counts) != 1:
        raise ValueError(f"{path}: questions have {sorted(counts)} responses; each needs the same number, at least one")
    rows = list(questions.values())

    def column(name: str) -> list[list]:
        return [[record[name] for record in row] for row in rows]

    return Evaluation(
        problems=[Problem(id, row[0]["question"], row[0]["answer"], row[0]["kind"]) for id, row in questions.items()],
        correct=np.array(column("correct"), float),
        answers=column("extracted"),
        texts=column("response"),
        lengths=np.array(column("tokens")),
        truncated=np.array(column("truncated"), bool),
        generated_tokens=generated_tokens,
        followed={mode: [np.array(v, bool) for v in column(mode)] for mode in _verdicts(rows[0][0])},
    )


def _verdicts(record: Mapping) -> dict:
    return {mode: record[mode] for mode in ("strict", "loose") if mode in record}


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name to write a file under, which becomes `path` when all went well: the file is complete or not there."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    yield part
    os.replace(part, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, complete or not at all; lone surrogates become character references."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes JSON, complete or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_benchmark(folder: str | os.PathLike) -> Evaluation:
    """The evaluation in a benchmark's folder.

    Raises:
      FileNotFoundError, ValueError: it is not there, not complete, or not what this program wrote.
    """
    folder = pathlib.Path(folder)
    return read_responses(folder / RESPONSES, read_summary(folder)["metrics"]["generated_tokens"])


def read_summary(folder: str | os.PathLike) -> dict:
    """summary.json of an evaluation's folder or of one of its benchmarks.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one that this program wrote.
    """
    path = pathlib.Path(folder) / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): evaluate again") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path} is no summary of an evaluation: evaluate again")
    return summary


# --- two evaluations ------------------------------------------------------------------------------------------------


def find_evaluation(folder: str | os.PathLike) -> pathlib.Path:
    """The folder of an evaluation, given that or the workdir (or model folder) that has it as `evaluation`.

    Raises:
      FileNotFoundError: it is neither.
    """
    for path in (pathlib.Path(folder), pathlib.Path(folder) / "evaluation"):
        if (path / SUMMARY).is_file() and "benchmarks" in read_summary(path):
            return path
    raise FileNotFoundError(
        f"--compare={folder}: no evaluation there (no {SUMMARY} with benchmarks, nor in its folder evaluation): "
        "run python -m ibtpo.evaluate on it first"
    )


def read_evaluation(folder: str | os.PathLike) -> tuple[dict, dict[str, Evaluation]]:
    """(summary, {benchmark: evaluation}) of an evaluation's folder."""
    folder = find_evaluation(folder)
    summary = read_summary(folder)
    return summary, {name: read_benchmark(folder / name) for name in summary["benchmarks"]}


def pair(a: Evaluation, b: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both on the questions that both have, in a's order.

    Raises:
      ValueError: no common question, or one id with two texts or two reference answers.
    """
    places = {problem.id: i for i, problem in enumerate(b.problems)}
    common = [(i, places[problem.id]) for i, problem in enumerate(a.problems) if problem.id in places]
    if not common:
        raise ValueError("the two evaluations have no question id in common")
    for i, j in common:
        for name in ("question", "answer"):
            ours, theirs = getattr(a.problems[i], name), getattr(b.problems[j], name)
            if ours != theirs:
                raise ValueError(
                    f"the {name} with id {a.problems[i].id} is {_excerpt(ours, theirs)!r} in the first evaluation and "
                    f"{_excerpt(theirs, ours)!r} in the second: they are not about the same problems"
                )
    ours, theirs = zip(*common)
    return a.select(list(ours)), b.select(list(theirs))


def _excerpt(text: str, other: str) -> str:
    """The text from shortly before the first place where it differs from the other."""
    at = next((i for i, pair in enumerate(zip(text, other)) if pair[0] != pair[1]), min(len(text), len(other)))
    begin = max(at - 20, 0)
    return ("..." if begin else "") + text[begin : at + 40] + ("..." if at + 40 < len(text) else "")


def differences(a: Evaluation, b: Evaluation) -> dict[str, tuple[Metric, Metric, Metric]]:
    """{metric: (a's, b's, b's - a's)} over the questions that both have, in the same order.

    With different numbers of responses k is the smaller one, of which pass@k and maj@k are the exact expectations.

    Raises:
      ValueError: as `pair`.
    """
    a, b = pair(a, b)
    k = min(a.samples, b.samples)
    ours, theirs = a.metrics(k), b.metrics(k)
    return {
        name: (ours[name], theirs[name], Metric(theirs[name].values - ours[name].values, ours[name].weights))
        for name in _common([ours, theirs])
    }


def compare(folder_a: str | os.PathLike, folder_b: str | os.PathLike) -> str:
    """The paired differences of two evaluations as text: a table per benchmark that both have, the mean over them, and
    the settings in which the two differ.

    Raises:
      FileNotFoundError: a folder without an evaluation.
      ValueError: no benchmark in common, or questions that differ; the message names the benchmark and what differs.
    """
    (summary_a, found_a), (summary_b, found_b) = read_evaluation(folder_a), read_evaluation(folder_b)
    common = _common([found_a, found_b])
    if not common:
        raise ValueError(
            f"no benchmark in common: {folder_a} has {', '.join(found_a)}, {folder_b} has {', '.join(found_b)}"
        )
    parts = [f"A: {show_checkpoint(summary_a['checkpoint'])}\nB: {show_checkpoint(summary_b['checkpoint'])}"]
    paired = {}
    for name in common:
        a, b = found_a[name], found_b[name]
        try:
            paired[name] = differences(a, b)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        k, questions = min(a.samples, b.samples), len(paired[name]["avg_at_k"][0].values)
        parts.append(f"{name}, {questions:,} questions\n{_difference_table({name: paired[name]}, k)}")
        if a.samples != b.samples:
            parts[-1] += f"\n{a.samples} responses a question in A, {b.samples} in B; avg is over all of them"
        for side, one in (("A", a), ("B", b)):
            if left_out := len(one.problems) - questions:
                parts[-1] += f"\nleft out, in {side} only: {left_out:,} questions"
    if len(common) > 1:
        parts.append(f"mean of {len(common)} benchmarks\n{_difference_table(paired, k)}")
    for side, ours, theirs in (("A", found_a, found_b), ("B", found_b, found_a)):
        if alone := [name for name in ours if name not in theirs]:
            parts.append(f"in {side} only: {', '.join(alone)}")
    settings_a, settings_b = summary_a["config"], summary_b["config"]
    changed = [
        f"  {key}: {settings_a.get(key)!r} (A), {settings_b.get(key)!r} (B)"
        for key in sorted(settings_a.keys() | settings_b.keys())
        if settings_a.get(key) != settings_b.get(key)
    ]
    if changed:
        parts.append("settings that differ\n" + "\n".join(changed))
    return "\n\n".join(parts)


def _difference_table(paired: Mapping[str, Mapping[str, tuple[Metric, Metric, Metric]]], k: int | str) -> str:
    """The table of one benchmark's differences, or of the means over several."""
    means_a, means_b, changes = (
        mean_of_benchmarks({name: {m: metrics[i] for m, metrics in found.items()} for name, found in paired.items()})
        for i in range(3)
    )
    return summary_table(
        [
            {
                "metric": label(name, k),
                "A": show_value(name, means_a[name][0]),
                "B": show_value(name, means_b[name][0]),
                "B - A": show_value(name, difference, signed=True),
                "95 % interval": show_interval(name, low, high, signed=True),
            }
            for name, (difference, low, high) in changes.items()
        ]
    )


def show_checkpoint(checkpoint: Mapping) -> str:
    """A checkpoint's identity in words."""
    step = f", update {checkpoint['step']}" if "step" in checkpoint else ""
    return f"{checkpoint['path']}{step}"
