"""The problems that are evaluated: loaded, measured and tried before anything is sampled."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ibtpo.data.datasets import load_benchmark, split_names
from ibtpo.data.problems import Problem, load_problems, prompt_lengths
from ibtpo.errors import UserError
from ibtpo.rewards.pool import Grader

# A response, reference and kind that no fast path decides.
_NEEDS_WORKER = (r"\boxed{(x-1)(x+1)}", "x^2-1", "math")


def load_benchmarks(config, tokenizer) -> dict[str, list[Problem]]:
    """{name: problems} of eval.benchmarks, in the order given; without any, of data.source's eval_split. The first
    eval.questions of each.

    A prompt that is too long is an error in a benchmark, which would be another one without it; of a data.source it is
    left out, as in training.

    Raises:
      UserError: a benchmark, or data.source, is not there or cannot be used; the message names it.
    """
    data, count, found = config.data, config.eval.questions or None, {}
    for name in split_names(config.eval.benchmarks):
        try:
            found[name] = load_benchmark(name, data)[:count]
            lengths = np.array(prompt_lengths(found[name], data, tokenizer))
        except UserError as error:
            raise UserError(f"benchmark {name}: {error}") from error
        if (too_long := lengths > data.max_prompt_tokens).any():
            raise UserError(
                f"benchmark {name}: {too_long.sum():,} of {len(lengths):,} prompts are longer than "
                f"data.max_prompt_tokens={data.max_prompt_tokens}: set it to {lengths.max()} or more"
            )
        found[name] = [dataclasses.replace(p, prompt_tokens=n) for p, n in zip(found[name], lengths.tolist())]
    if not found:
        found[source_name(data.source)] = load_problems(data, data.eval_split, tokenizer)[:count]
    return found


def source_name(source: str) -> str:
    """The name of the results of a data.source: tfds:chained_arithmetic -> chained_arithmetic,
    jsonl:/data/problems_{split}.jsonl -> problems."""
    kind, _, name = source.partition(":")
    stem = re.sub(r"[*?\[\]]", "", pathlib.PurePath(name).stem.replace("{split}", ""))
    return name if kind == "tfds" else stem.strip("-_. ~") or "problems"


def check_grading(benchmarks: Mapping[str, Sequence[Problem]], grader: Grader) -> None:
    """Grades a blank response against every reference, and one that needs a worker, so that a bad reference is found
    before anything is sampled.

    Raises:
      UserError: a reference that cannot be used, with its benchmark and id; or no worker starts.
    """
    for name, problems in benchmarks.items():
        for problem in problems:
            try:
                grader.submit("", problem.answer, problem.kind or None)
            except UserError as error:
                raise UserError(f"benchmark {name}, id {problem.id}: {error}") from error
    try:
        grader.submit(*_NEEDS_WORKER).result()
    except RuntimeError as error:
        raise UserError(str(error)) from error
