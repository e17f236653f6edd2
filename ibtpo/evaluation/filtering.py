"""Problems by how often a policy solves them: sampled like an evaluation, and those within bounds written."""

import json
import pathlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from ibtpo import config as config_lib
from ibtpo import hosts
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.data.datasets import load_training
from ibtpo.data.problems import load_problems
from ibtpo.errors import UserError
from ibtpo.evaluation import files
from ibtpo.evaluation.benchmarks import check_grading, source_name
from ibtpo.evaluation.checkpoint import open_checkpoint
from ibtpo.evaluation.results import Evaluation
from ibtpo.evaluation.run import make_eval_sampler
from ibtpo.evaluation.suite import evaluate_benchmarks
from ibtpo.interruption import Interruption
from ibtpo.policy import make_grader
from ibtpo.whole_files import write_text

KEPT = "kept.jsonl"
_SAMPLED_AS = ("temperature", "top_k", "top_p", "min_p")
_ROUNDING = 1e-9  # 0.2 of 5 responses is one


@dataclass(frozen=True)
class Bounds:
    """The shares of right responses, both included, of a problem that is kept."""

    low: float
    high: float

    def keep(self, shares: np.ndarray) -> np.ndarray:
        """Which of the shares lie within."""
        return (shares >= self.low - _ROUNDING) & (shares <= self.high + _ROUNDING)


def filter_problems(config, workdir: str, bounds: Bounds, *, samples: int, split: str = "") -> None:
    """The command: samples `samples` responses to each problem of a split of data.source with the model of
    config.model.path, and writes those within `bounds` to kept.jsonl in the workdir.

    workdir: gets the evaluation too, from which a second call goes on. split: "" is data.train_split.

    Raises:
      UserError: the model, the problems or the grading cannot be used, or no problem is kept.
    """
    enable_compilation_cache(config)
    config = as_trained(config, samples)
    with hosts.connected(config.train.host_timeout, Interruption()):
        _, identity, policy, config = open_checkpoint(config, config.model.path)
        if split in ("", config.data.train_split):
            problems = load_training(config.data, policy.tokenizer)
        else:
            problems = load_problems(config.data, split, policy.tokenizer)
        name = source_name(config.data.source)
        sampler = make_eval_sampler(policy, config, len(problems))
        with make_grader(config) as grader:
            check_grading({name: problems}, grader)
            folder = pathlib.Path(workdir)
            evaluate_benchmarks(policy, {name: problems}, sampler, grader, config, identity, folder)
        if jax.process_index() == 0:
            write_kept(files.read_benchmark(folder / name), bounds, str(folder / KEPT), config)


def as_trained(config, samples: int):
    """The configuration with an evaluation that draws `samples` responses as training does."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.eval.update(samples=samples, benchmarks="", **{key: config.sampling[key] for key in _SAMPLED_AS})
    return changed.lock()


def kept_records(evaluation: Evaluation, bounds: Bounds) -> Iterator[dict]:
    """What is written of each problem that is kept, in their order."""
    shares = evaluation.correct.mean(axis=1)
    for q in np.flatnonzero(bounds.keep(shares)).tolist():
        problem = evaluation.problems[q]
        yield {
            "question": problem.question,
            "answer": problem.answer,
            "solved": round(float(shares[q]), 6),
            "samples": evaluation.samples,
            "kind": problem.kind,
            "id": problem.id,
        }


def write_kept(evaluation: Evaluation, bounds: Bounds, out: str, config) -> None:
    """Writes the problems that are kept, complete or not at all, and says how many there are and how to train on them.

    Raises:
      UserError: there are none.
    """
    shares, records = evaluation.correct.mean(axis=1), list(kept_records(evaluation, bounds))
    never, always, total = int((shares == 0).sum()), int((shares == 1).sum()), len(shares)
    said = f"solved {100 * bounds.low:g} to {100 * bounds.high:g} % of {evaluation.samples} times"
    others = f"{never:,} never solved, {always:,} always"
    if not records:
        raise UserError(
            f"none of {total:,} problems is {said} ({others}): set --low and --high wider, --samples higher, or take "
            "other problems in data.source"
        )
    text = "".join(json.dumps(record) + "\n" for record in records)
    write_text(out, text)
    print(f"kept {len(records):,} of {total:,} problems, {said} ({others}): {out}")
    keys = [f"--config.{key}={value}" for key, value in _keys(records, out, config).items()]
    print(f"train on them: {shlex.join(keys)}")


def _keys(records: list[dict], out: str, config) -> dict[str, str]:
    """The keys of a configuration that read the file, without those that have their values."""
    fields = {"data.question_field": "question", "data.answer_field": "answer", "data.answer_pattern": ""}
    kinds = {record["kind"] for record in records}
    if len(kinds) == 1:
        fields["reward.kind"] = kinds.pop()
    flat = config_lib.flatten(config)
    return {"data.source": f"jsonl:{out}"} | {key: value for key, value in fields.items() if flat[key] != value}
