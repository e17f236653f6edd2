"""The files of an evaluation.

A folder with the results of one command:

    summary.json, index.html       every benchmark of the command, and their mean
    <benchmark>/summary.json       metrics with intervals, and their origin; written last
    <benchmark>/responses.jsonl    every response with its verdict, one a line
    <benchmark>/responses.html     the same to browse
    <benchmark>/partial.jsonl      the questions that are finished, until the benchmark is (`partial`)
    <benchmark>/trees.html         the first questions' responses as trees, step by step, and
    <benchmark>/trees.json.gz      the same as data (`ibtpo.saved_trees.files`); unless log.trees is 0
"""

import json
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from ibtpo.data.problems import Problem
from ibtpo.errors import UserError
from ibtpo.evaluation.results import Evaluation
from ibtpo.whole_files import replacing, write_text

SUMMARY, RESPONSES, PAGE, INDEX = "summary.json", "responses.jsonl", "responses.html", "index.html"
TREES, TREES_PAGE = "trees.json.gz", "trees.html"


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
      UserError: no such file; a line that is not such a record, with its number; questions without the same number of
        responses.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: evaluate again")
    questions: dict[int, list[dict]] = defaultdict(list)
    needed = ("question", "answer", "kind", "response", "extracted", "correct", "tokens", "truncated")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                questions[record["id"]].append({name: record[name] for name in needed} | _verdicts(record))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is no response of an evaluation ({error!r})") from error
    counts = {len(rows) for rows in questions.values()}
    if len(counts) != 1:
        raise UserError(f"{path}: questions have {sorted(counts)} responses; each needs the same number, at least one")
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


def write_json(path: str | os.PathLike, content: Mapping) -> None:
    """Writes JSON, complete or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_benchmark(folder: str | os.PathLike) -> Evaluation:
    """The evaluation in a benchmark's folder.

    Raises:
      UserError: it is not there, not complete, or not what this program wrote.
    """
    folder = pathlib.Path(folder)
    metrics = read_summary(folder).get("metrics")
    if not isinstance(metrics, dict) or "generated_tokens" not in metrics:
        raise UserError(f"{folder / SUMMARY} is no summary of a benchmark: evaluate again")
    return read_responses(folder / RESPONSES, metrics["generated_tokens"])


def read_summary(folder: str | os.PathLike) -> dict:
    """summary.json of an evaluation's folder or of one of its benchmarks.

    Raises:
      UserError: there is none, or it is not one that this program wrote.
    """
    path = pathlib.Path(folder) / SUMMARY
    if not path.is_file():
        raise UserError(f"{path} is not there: evaluate again")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): evaluate again") from error
    if not isinstance(summary, dict):
        raise UserError(f"{path} is no summary of an evaluation: evaluate again")
    return summary


def find_evaluation(folder: str | os.PathLike) -> pathlib.Path:
    """The folder of an evaluation, given that or the workdir (or model folder) that has it as `evaluation`.

    Raises:
      UserError: it is neither.
    """
    for path in (pathlib.Path(folder), pathlib.Path(folder) / "evaluation"):
        if (path / SUMMARY).is_file() and "benchmarks" in read_summary(path):
            return path
    raise UserError(
        f"--compare={folder}: no evaluation there (no {SUMMARY} with benchmarks, nor in its folder evaluation): "
        "run python -m ibtpo.evaluate on it first"
    )


def read_evaluation(folder: str | os.PathLike) -> tuple[dict, dict[str, Evaluation]]:
    """(summary, {benchmark: evaluation}) of an evaluation's folder. Raises UserError as `find_evaluation` and
    `read_benchmark`."""
    folder = find_evaluation(folder)
    summary = read_summary(folder)
    return summary, {name: read_benchmark(folder / name) for name in summary["benchmarks"]}
