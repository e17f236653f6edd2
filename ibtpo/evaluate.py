r"""Held-out accuracy of a checkpoint: avg@k, pass@k and maj@k with 95 % intervals.

    python -m ibtpo.evaluate --config=configs/tiny.py --checkpoint=runs/tiny
    python -m ibtpo.evaluate --config=configs/tiny.py --checkpoint=assets/qwen3-tiny

--checkpoint is the workdir of a run or its checkpoint.dir (the newest checkpoint; the architecture and the tokenizer
come from config.model.path) or a Hugging Face directory. Responses are independent, eval.samples per question.
Prints a table and writes summary.json and responses.jsonl, every response with its verdict, to
--workdir (default: <checkpoint>/evaluation).
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from absl import flags

from ibtpo import checkpoints, estimators, parallel
from ibtpo import config as config_lib
from ibtpo.data.problems import Problem, load_problems
from ibtpo.metrics import Progress
from ibtpo.policy import Policy, load_policy, make_grade, make_grader, make_sampler
from ibtpo.report import summary_table
from ibtpo.rewards.math import extract_answer
from ibtpo.rewards.pool import Grader
from ibtpo.sampling.engine import SampledTree, SamplerStats, TreeSampler
from ibtpo.sampling.logits import SamplingParams

# Folded into the run's key, so that evaluation never repeats the draws of training.
EVALUATION_STREAM = 0x65766C

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a run, or a folder in Hugging Face format")


@dataclass
class Evaluation:
    """Graded responses: Q questions, n each.

    correct: [Q, n] rewards. answers: [Q][n] extracted answers, None where there is none.
    texts: [Q][n]. lengths: [Q, n] tokens. truncated: [Q, n] bool. stats: the sampler's.
    """

    problems: Sequence[Problem]
    correct: np.ndarray
    answers: list[list[str | None]]
    texts: list[list[str]]
    lengths: np.ndarray
    truncated: np.ndarray
    stats: SamplerStats

    def summary(self, seed: int = 0) -> dict[str, float]:
        """avg, pass and maj @k (k = n) with bootstrap intervals over questions, lengths, truncation."""
        num_samples = self.correct.shape[1]
        result = {"questions": len(self.problems), "k": num_samples}
        for name, per_question in (
            ("avg", estimators.avg_at_k(self.correct)),
            ("pass", estimators.pass_at_k(self.correct, num_samples)),
            ("maj", estimators.maj_at_k(self.correct, self.answers, num_samples)),
        ):
            mean, low, high = estimators.bootstrap_interval(per_question, seed=seed)
            result |= {f"{name}_at_k": mean, f"{name}_low": low, f"{name}_high": high}
        result["mean_length"] = float(self.lengths.mean())
        result["truncation_rate"] = float(self.truncated.mean())
        result["generated_tokens"] = self.stats.generated_tokens
        return result


def make_eval_sampler(policy: Policy, config) -> TreeSampler:
    """The sampler of `evaluate`: eval.samples independent responses per question.

    Its pool is no larger than that of training, whose memory is known to suffice, unless one question needs more.
    """
    independent = dict(strategy="independent", initial=config.eval.samples, rounds=1)
    sampler = make_sampler(policy, config, **independent)
    pages = max(make_sampler(policy, config).total_pages, sampler.least_pages)
    return make_sampler(policy, config, pages=pages, **independent) if pages < sampler.total_pages else sampler


def evaluate(
    policy: Policy,
    params,
    problems: Sequence[Problem],
    sampler: TreeSampler,
    grader: Grader,
    config,
    *,
    on_finished: Callable[[SampledTree], None] | None = None,
) -> Evaluation:
    """Samples and grades eval.samples responses per problem with the given parameters.

    The draws depend on train.seed and the problems' ids alone, so two checkpoints are compared on the
    same random numbers.
    """
    key = jax.random.fold_in(jax.random.key(config.train.seed), EVALUATION_STREAM)
    questions = [policy.question(p.id, p, config.data) for p in problems]
    grade = make_grade(policy, grader, {p.id: p for p in problems})
    trees, stats = sampler(
        params, questions, grade, key=key, sampling=SamplingParams.from_config(config.eval), on_finished=on_finished
    )
    texts = [[policy.text(r.tokens) for r in tree.responses] for tree in trees]
    return Evaluation(
        problems=problems,
        correct=np.array([[r.reward for r in tree.responses] for tree in trees]),
        answers=[[extract_answer(text) for text in row] for row in texts],
        texts=texts,
        lengths=np.array([[len(r.tokens) for r in tree.responses] for tree in trees]),
        truncated=np.array([[r.finish == "length" for r in tree.responses] for tree in trees]),
        stats=stats,
    )


def write(evaluation: Evaluation, folder: str | os.PathLike) -> dict[str, float]:
    """Writes summary.json and responses.jsonl to `folder`; returns the summary."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = evaluation.summary()
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (folder / "responses.jsonl").open("w") as file:
        for q, problem in enumerate(evaluation.problems):
            for i, text in enumerate(evaluation.texts[q]):
                file.write(
                    json.dumps(
                        {
                            "id": problem.id,
                            "question": problem.question,
                            "answer": problem.answer,
                            "sample": i,
                            "response": text,
                            "extracted": evaluation.answers[q][i],
                            "reward": float(evaluation.correct[q, i]),
                            "tokens": int(evaluation.lengths[q, i]),
                            "truncated": bool(evaluation.truncated[q, i]),
                        }
                    )
                    + "\n"
                )
    return summary


def table(summary: dict[str, float]) -> str:
    """The summary as text, one metric a line, in percent."""
    k = summary["k"]
    rows = [
        {
            "metric": f"{name}@{k}",
            "value": f"{100 * summary[f'{name}_at_k']:.1f} %",
            "95 % interval": f"{100 * summary[f'{name}_low']:.1f} .. {100 * summary[f'{name}_high']:.1f}",
        }
        for name in ("avg", "pass", "maj")
    ]
    rows.append({"metric": "mean length", "value": f"{summary['mean_length']:.1f} tokens"})
    rows.append({"metric": "truncated", "value": f"{100 * summary['truncation_rate']:.1f} %"})
    return summary_table(rows)


def load_checkpoint(config, checkpoint: str | os.PathLike) -> Policy:
    """The policy of a Hugging Face directory, or of the newest checkpoint in a run's workdir.

    Raises ConfigError where `checkpoint` is neither.
    """
    mesh, folder = parallel.use_mesh(config.mesh), pathlib.Path(checkpoint)
    if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
        return load_policy(config, path=folder, mesh=mesh)
    if checkpoints.find(checkpoint) is None:
        raise config_lib.ConfigError(
            f"--checkpoint={checkpoint} holds neither a run (no folder checkpoints) nor a Hugging Face "
            "model (no config.json with *.safetensors)"
        )
    policy = load_policy(config, mesh=mesh)
    return policy.with_params(checkpoints.load_params(checkpoint, policy.params))


def main(config, workdir: str | None) -> None:
    if not _CHECKPOINT.value:
        raise config_lib.ConfigError("--checkpoint is missing: name a run's workdir or a Hugging Face folder")
    if "://" in _CHECKPOINT.value and not workdir:
        raise config_lib.ConfigError(f"--checkpoint={_CHECKPOINT.value} is remote: name a local --workdir for results")
    with config_lib.user_errors():
        parallel.initialize()
        policy = load_checkpoint(config, _CHECKPOINT.value)
        problems = load_problems(config.data, config.data.eval_split, policy.tokenizer)
        problems = problems[: config.eval.questions or None]
        sampler = make_eval_sampler(policy, config)
        grader = make_grader(config)
    done = correct = 0

    def show(tree: SampledTree) -> None:
        nonlocal done, correct
        done, correct = done + 1, correct + float(np.mean([r.reward for r in tree.responses]))
        progress.update(done, {"avg": correct / done})

    with grader, Progress(len(problems), description="questions") as progress:
        evaluation = evaluate(policy, policy.params, problems, sampler, grader, config, on_finished=show)
    if jax.process_index():
        return
    folder = pathlib.Path(workdir or pathlib.Path(_CHECKPOINT.value) / "evaluation")
    print(table(write(evaluation, folder)))
    print(f"\nwritten: {folder / 'summary.json'}, {folder / 'responses.jsonl'}")


if __name__ == "__main__":
    config_lib.run(main, needs_workdir=False)
