"""Two evaluations on the questions that both have: the paired differences of their metrics."""

import os
from collections.abc import Mapping

from ibtpo.errors import UserError
from ibtpo.evaluation.files import read_evaluation
from ibtpo.evaluation.results import Evaluation, Metric, common_names, mean_of_benchmarks
from ibtpo.evaluation.tables import label, show_checkpoint, show_interval, show_value
from ibtpo.report import summary_table


def pair(a: Evaluation, b: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both on the questions that both have, in a's order.

    Raises:
      UserError: no common question, or one id with two texts or two reference answers.
    """
    places = {problem.id: i for i, problem in enumerate(b.problems)}
    common = [(i, places[problem.id]) for i, problem in enumerate(a.problems) if problem.id in places]
    if not common:
        raise UserError("the two evaluations have no question id in common")
    for i, j in common:
        for name in ("question", "answer"):
            ours, theirs = getattr(a.problems[i], name), getattr(b.problems[j], name)
            if ours != theirs:
                raise UserError(
                    f"the {name} with id {a.problems[i].id} is {_excerpt(ours, theirs)!r} in the first evaluation and "
                    f"{_excerpt(theirs, ours)!r} in the second: they are not about the same problems"
                )
    in_a, in_b = zip(*common)
    return a.select(in_a), b.select(in_b)


def _excerpt(text: str, other: str) -> str:
    """The text from shortly before the first place where it differs from the other."""
    at = next((i for i, pair in enumerate(zip(text, other)) if pair[0] != pair[1]), min(len(text), len(other)))
    begin = max(at - 20, 0)
    return ("..." if begin else "") + text[begin : at + 40] + ("..." if at + 40 < len(text) else "")


def differences(a: Evaluation, b: Evaluation) -> dict[str, tuple[Metric, Metric, Metric]]:
    """{metric: (a's, b's, b's - a's)} over the questions that both have, in the same order.

    With different numbers of responses k is the smaller one, of which pass@k and maj@k are the exact expectations.

    Raises:
      UserError: as `pair`.
    """
    a, b = pair(a, b)
    k = min(a.samples, b.samples)
    ours, theirs = a.metrics(k), b.metrics(k)
    return {
        name: (ours[name], theirs[name], Metric(theirs[name].values - ours[name].values, ours[name].weights))
        for name in common_names([ours, theirs])
    }


def compare(folder_a: str | os.PathLike, folder_b: str | os.PathLike) -> str:
    """The paired differences of two evaluations as text: a table per benchmark that both have, the mean over them, and
    the settings in which the two differ.

    Raises:
      UserError: a folder without an evaluation, no benchmark in common, or questions that differ; the message names the
        benchmark and the difference.
    """
    (summary_a, found_a), (summary_b, found_b) = read_evaluation(folder_a), read_evaluation(folder_b)
    common = common_names([found_a, found_b])
    if not common:
        raise UserError(
            f"no benchmark in common: {folder_a} has {', '.join(found_a)}, {folder_b} has {', '.join(found_b)}"
        )
    parts = [f"A: {show_checkpoint(summary_a['checkpoint'])}\nB: {show_checkpoint(summary_b['checkpoint'])}"]
    paired = {}
    for name in common:
        a, b = found_a[name], found_b[name]
        try:
            paired[name] = differences(a, b)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
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
