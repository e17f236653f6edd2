"""Responses of a policy to problems, sampled and graded."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from ibtpo import memory
from ibtpo.data.problems import Problem
from ibtpo.evaluation.results import Evaluation
from ibtpo.policy import Policy, make_grade, make_sampler
from ibtpo.rewards import instructions, stated
from ibtpo.rewards.pool import Grader
from ibtpo.sampling import SampledTree, SamplingParams, TreeSampler
from ibtpo.sampling.strategies import flat_group

# Folded into the run's key, so that evaluation never repeats the draws of training.
EVALUATION_STREAM = 0x65766C


def make_eval_sampler(policy: Policy, config, questions: int = 0, *, training: bool = False) -> TreeSampler:
    """The sampler of `evaluate`: eval.samples independent responses per question, of which a call has `questions` at
    most (0: any number). training: as for `make_sampler`.

    Its pool is no larger than that of training, whose memory is known to suffice, unless one question needs more.
    """
    independent = flat_group(config.eval.samples)
    sampler = make_sampler(policy, config, questions=questions, training=training, **independent)
    trained = make_sampler(policy, config, questions=config.train.questions_per_step, training=training)
    pages = max(trained.total_pages, sampler.least_pages)
    if pages >= sampler.total_pages:
        return sampler
    return make_sampler(policy, config, questions=questions, pages=pages, **independent)


def evaluate(
    policy: Policy,
    params,
    problems: Sequence[Problem],
    sampler: TreeSampler,
    grader: Grader,
    config,
    *,
    stream: str = "",
    on_finished: Callable[[SampledTree], None] | None = None,
    between_chunks: Callable[[], None] | None = None,
    finished: Sequence[SampledTree] = (),
) -> Evaluation:
    """Samples and grades eval.samples responses per problem with the given parameters.

    The draws depend on train.seed, `stream` and the problems' ids alone, so two checkpoints are compared on the same
    random numbers. stream: the benchmark's name, so that those of two benchmarks differ; "" for the held-out split.
    on_finished, between_chunks: see `TreeSampler`. finished: what was sampled of these problems before, with its
    rewards; it is read like the rest, and not sampled again.
    """
    key = _key_of(config.train.seed, stream)
    problems = [dataclasses.replace(p, kind=p.kind or config.reward.kind) for p in problems]
    by_id = {p.id: p for p in problems}
    rows: dict[int, dict[str, list]] = {}  # by question id
    checks: dict[int, list[Future]] = {}

    def read(tree: SampledTree) -> None:
        problem = by_id[tree.question.id]
        row = rows[problem.id] = _read(policy, problem, tree)
        if problem.kind == "instructions":
            checks[problem.id] = [check_instructions(grader, text, problem.answer) for text in row["texts"]]
        if on_finished is not None:
            on_finished(tree)

    for tree in finished:
        read(tree)
    generated_tokens = sum(len(r.tokens) for tree in finished for r in tree.responses)
    left = [policy.question(p.id, p, config.data) for p in problems if p.id not in rows]
    options: dict[str, Any] = dict(key=key, sampling=SamplingParams.from_config(config.eval))
    if left:
        with memory.enough(config, "evaluating", memory.SAMPLING):
            grade = make_grade(policy, grader, by_id)
            _, stats = sampler(params, left, grade, on_finished=read, between_chunks=between_chunks, **options)
        generated_tokens += stats.generated_tokens

    def column(name: str) -> list[list]:
        return [rows[p.id][name] for p in problems]

    verdicts = _verdicts(checks, rows)
    modes = ("strict", "loose") if len(verdicts) == len(problems) else ()
    return Evaluation(
        problems=problems,
        correct=np.array(column("correct")),
        answers=column("answers"),
        texts=column("texts"),
        lengths=np.array(column("lengths")),
        truncated=np.array(column("truncated")),
        generated_tokens=generated_tokens,
        followed={mode: [np.array([v[mode] for v in verdicts[p.id]]) for p in problems] for mode in modes},
    )


def _key_of(seed: int, stream: str) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM)
    return jax.random.fold_in(key, zlib.crc32(stream.encode())) if stream else key


def _verdicts(checks: dict[int, list[Future]], rows: dict[int, dict[str, list]]) -> dict[int, list[dict]]:
    """The verdicts on instructions by question id, which decide what is correct in its row."""
    verdicts = {id: [check.result() for check in row] for id, row in checks.items()}
    for id, row in verdicts.items():  # the reward's verdict, unless the check overran
        rows[id]["correct"] = [float(all(verdict["strict"])) for verdict in row]
    return verdicts


def _read(policy: Policy, problem: Problem, tree: SampledTree) -> dict[str, list]:
    """All that is kept of a question's responses, each a list of them; made while the device decodes the others'."""
    texts = [policy.text(r.tokens) for r in tree.responses]
    truncated = [r.finish == "length" for r in tree.responses]
    return {
        "correct": [float(r.reward == 1) for r in tree.responses],
        "answers": [stated(problem.kind, text, cut) for text, cut in zip(texts, truncated)],
        "texts": texts,
        "lengths": [len(r.tokens) for r in tree.responses],
        "truncated": truncated,
    }


def check_instructions(grader: Grader, text: str, reference: str) -> Future:
    """`instructions.check` in one of the grader's workers; a text on which it overruns its limits follows none."""
    none = [False] * len(instructions.parse(reference))
    return grader.call(instructions.check, text, reference, otherwise={"strict": none, "loose": none})
