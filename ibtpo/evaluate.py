r"""Accuracy of a checkpoint on any number of benchmarks: avg@k, pass@k and maj@k with 95 % intervals.

    python -m ibtpo.evaluate --config=configs/tiny.py --checkpoint=runs/tiny
    python -m ibtpo.evaluate --config=configs/qwen3_8b.py --checkpoint=runs/qwen3_8b \
        --config.eval.benchmarks=gsm8k,math_500,aime_2024
    python -m ibtpo.evaluate --compare=runs/one --compare=runs/other

--checkpoint is the workdir of a run or its checkpoint.dir (the newest checkpoint; the architecture and the tokenizer
come from config.model.path) or a Hugging Face directory. A workdir without checkpoints of its own leads to the
checkpoint.dir that its config.json names. Responses are independent, eval.samples per question. Without eval.benchmarks
the held-out split of data.source is evaluated.

Prints a table per benchmark and one over all, and writes them to --workdir (default: <checkpoint>/evaluation), with
every response and its verdict as JSON lines and as a page to browse. A benchmark that is there already, from the same
checkpoint, settings and problems, is not sampled again.

--compare, given twice, names two such folders, or workdirs that have one: it prints the paired differences, second
minus first, with 95 % intervals, and needs no model. See docs/evaluation.md.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from ibtpo import __version__, checkpoints, eval_page, eval_results, parallel
from ibtpo import config as config_lib
from ibtpo.data.datasets import load_benchmark, split_names
from ibtpo.data.problems import Problem, load_problems, prompt_lengths
from ibtpo.eval_results import Evaluation
from ibtpo.metrics import Progress
from ibtpo.policy import Policy, load_policy, make_grade, make_grader, make_sampler
from ibtpo.report import summary_table
from ibtpo.rewards import EXTRACT, instructions
from ibtpo.rewards.pool import Grader
from ibtpo.sampling.engine import SampledTree, TreeSampler
from ibtpo.sampling.logits import SamplingParams

# Folded into the run's key, so that evaluation never repeats the draws of training.
EVALUATION_STREAM = 0x65766C
# A response, reference and kind that no fast path decides.
_NEEDS_WORKER = (r"\boxed{(x-1)(x+1)}", "x^2-1", "math")
# What an evaluation's results depend on, and is recorded with them.
_SETTINGS = ("model.", "data.", "sampling.", "reward.", "eval.", "train.seed")
_NOT_RECORDED = ("eval.benchmarks", "eval.every")

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "workdir of a run, or a folder in Hugging Face format")


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
    stream: str = "",
    on_finished: Callable[[SampledTree], None] | None = None,
) -> Evaluation:
    """Samples and grades eval.samples responses per problem with the given parameters.

    The draws depend on train.seed, `stream` and the problems' ids alone, so two checkpoints are compared on the same
    random numbers. stream: the benchmark's name, so that those of two benchmarks differ; "" for the held-out split.
    """
    key = jax.random.fold_in(jax.random.key(config.train.seed), EVALUATION_STREAM)
    if stream:
        key = jax.random.fold_in(key, zlib.crc32(stream.encode()))
    problems = [dataclasses.replace(p, kind=p.kind or config.reward.kind) for p in problems]
    questions = [policy.question(p.id, p, config.data) for p in problems]
    by_id = {p.id: p for p in problems}
    answers, followed = {}, {}  # by question id

    def read(tree: SampledTree) -> None:
        """What is read off the texts, while the device decodes: telling a language takes a tenth of a second."""
        problem = by_id[tree.question.id]
        texts = [policy.text(r.tokens) for r in tree.responses]
        if problem.kind == "instructions":
            followed[problem.id] = [instructions.check(text, problem.answer) for text in texts]
        extract = EXTRACT.get(problem.kind, lambda text: None)
        answers[problem.id] = [extract(text) for text in texts]
        if on_finished is not None:
            on_finished(tree)

    trees, stats = sampler(
        params,
        questions,
        make_grade(policy, grader, by_id),
        key=key,
        sampling=SamplingParams.from_config(config.eval),
        on_finished=read,
    )
    modes = ("strict", "loose") if len(followed) == len(problems) else ()
    return Evaluation(
        problems=problems,
        correct=np.array([[float(r.reward == 1) for r in tree.responses] for tree in trees]),
        answers=[answers[p.id] for p in problems],
        texts=[[policy.text(r.tokens) for r in tree.responses] for tree in trees],
        lengths=np.array([[len(r.tokens) for r in tree.responses] for tree in trees]),
        truncated=np.array([[r.finish == "length" for r in tree.responses] for tree in trees]),
        generated_tokens=stats.generated_tokens,
        followed={mode: [np.array([found[mode] for found in followed[p.id]]) for p in problems] for mode in modes},
    )


def load_benchmarks(config, tokenizer) -> dict[str, list[Problem]]:
    """{name: problems} of eval.benchmarks, in the order given; without any, of data.source's eval_split. The first
    eval.questions of each.

    A prompt that is too long is an error in a benchmark, which would be another one without it; of a data.source it is
    left out, as in training.

    Raises:
      ConfigError: a benchmark is not there, or cannot be used; the message names it.
      FileNotFoundError, ValueError: the same of data.source.
    """
    data, count, found = config.data, config.eval.questions or None, {}
    for name in split_names(config.eval.benchmarks):
        try:
            found[name] = load_benchmark(name, data)[:count]
            lengths = np.array(prompt_lengths(found[name], data, tokenizer))
        except (FileNotFoundError, ValueError) as error:
            raise config_lib.ConfigError(f"benchmark {name}: {error}") from error
        if (too_long := lengths > data.max_prompt_tokens).any():
            raise config_lib.ConfigError(
                f"benchmark {name}: {too_long.sum():,} of {len(lengths):,} prompts are longer than "
                f"data.max_prompt_tokens={data.max_prompt_tokens}: set it to {lengths.max()} or more"
            )
    if not found:
        found[source_name(data.source)] = load_problems(data, data.eval_split, tokenizer)[:count]
    return found


def source_name(source: str) -> str:
    """What the results of a data.source are called: tfds:chained_arithmetic -> chained_arithmetic,
    jsonl:/data/problems_{split}.jsonl -> problems."""
    kind, _, name = source.partition(":")
    return name if kind == "tfds" else pathlib.PurePath(name).stem.replace("{split}", "").strip("-_. ") or "problems"


def check_grading(benchmarks: Mapping[str, Sequence[Problem]], grader: Grader) -> None:
    """Grades a blank response against every reference, and one that needs a worker, so that what cannot be graded is
    found before anything is sampled.

    Raises:
      ConfigError: a reference that cannot be used, with its benchmark and id; or no worker starts.
    """
    for name, problems in benchmarks.items():
        for problem in problems:
            try:
                grader.submit("", problem.answer, problem.kind or None)
            except ValueError as error:
                raise config_lib.ConfigError(f"benchmark {name}, id {problem.id}: {error}") from error
    try:
        grader.submit(*_NEEDS_WORKER).result()
    except RuntimeError as error:
        raise config_lib.ConfigError(str(error)) from error


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether it is a Hugging Face directory with weights."""
    folder = pathlib.Path(path)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def identify(checkpoint: str | os.PathLike) -> dict:
    """What tells a checkpoint from another, as JSON: its path, and a run's step or a folder's weights (size and time).

    Raises:
      ConfigError: it is neither a run nor a Hugging Face directory.
      ValueError: as `checkpoints.find`.
    """
    if is_model_folder(checkpoint):
        files = sorted(pathlib.Path(checkpoint).glob("*.safetensors"))
        weights = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
        return {"path": os.path.abspath(checkpoint), "weights": weights}
    folder = checkpoints.find(checkpoint)
    if folder is None:
        raise config_lib.ConfigError(
            f"--checkpoint={checkpoint} holds neither a run ({checkpoints.why_missing(checkpoint)}) nor a Hugging Face "
            "model (no config.json with *.safetensors)"
        )
    return {"path": os.fspath(folder), "step": checkpoints.latest_step(checkpoint)}


def load_checkpoint(config, checkpoint: str | os.PathLike) -> Policy:
    """The policy of a Hugging Face directory, or of the newest checkpoint in a run's workdir.

    Raises ConfigError where `checkpoint` is neither.
    """
    step = identify(checkpoint).get("step")
    mesh = parallel.use_mesh(config.mesh)
    if step is None:
        return load_policy(config, path=pathlib.Path(checkpoint), mesh=mesh)
    policy = load_policy(config, mesh=mesh)
    return policy.with_params(checkpoints.load_params(checkpoint, policy.params, step))


def origin(config, checkpoint: Mapping, stream: str, problems: Sequence[Problem]) -> dict:
    """What a benchmark's results come from, as JSON: where it is the same, so are they."""
    settings = {
        key: value
        for key, value in config_lib.flatten(config).items()
        if key.startswith(_SETTINGS) and key not in _NOT_RECORDED
    }
    content = json.dumps([[p.id, p.question, p.answer, p.kind, p.prompt] for p in problems])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"checkpoint": checkpoint, "config": settings, "stream": stream, "problems": digest, "ibtpo": __version__}


def read_finished(folder: pathlib.Path, wanted: Mapping) -> Evaluation | None:
    """The benchmark's results in a folder, if they are complete and of this origin. Says so where others are there."""
    try:
        found = eval_results.read_summary(folder)
        if {name: found.get(name) for name in wanted} == json.loads(json.dumps(wanted)):
            return eval_results.read_benchmark(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        print(f"{error}; sampled again")
        return None
    print(f"{folder}: results of another checkpoint, configuration or version are replaced")
    return None


def _agreed(flag: bool) -> bool:
    """The first host's flag, on all hosts: only it may see the results, and all have to do the same."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def main(config, workdir: str | None) -> None:
    checkpoint = _CHECKPOINT.value
    if not checkpoint:
        raise config_lib.ConfigError("--checkpoint is missing: name a run's workdir or a Hugging Face folder")
    if "://" in checkpoint and not workdir:
        raise config_lib.ConfigError(f"--checkpoint={checkpoint} is remote: name a local --workdir for results")
    with config_lib.user_errors():
        parallel.initialize()
        identity = identify(checkpoint)
        policy = load_checkpoint(config, checkpoint)
        benchmarks = load_benchmarks(config, policy.tokenizer)
        sampler = make_eval_sampler(policy, config)
        grader = make_grader(config)
    folder = pathlib.Path(workdir or pathlib.Path(checkpoint) / "evaluation")
    with grader:
        check_grading(benchmarks, grader)
        evaluate_benchmarks(policy, benchmarks, sampler, grader, config, identity, folder)


def evaluate_benchmarks(
    policy: Policy,
    benchmarks: Mapping[str, Sequence[Problem]],
    sampler: TreeSampler,
    grader: Grader,
    config,
    checkpoint: Mapping,
    folder: pathlib.Path,
) -> None:
    """Evaluates one benchmark after the other; each is written to `folder` and printed as soon as it is done, and one
    that is there already is read instead. checkpoint: from `identify`."""
    first_host = jax.process_index() == 0
    summaries, metrics = {}, {}
    for number, (name, problems) in enumerate(benchmarks.items(), 1):
        stream = name if config.eval.benchmarks else ""
        wanted = origin(config, checkpoint, stream, problems)
        evaluation = read_finished(folder / name, wanted) if first_host else None
        finished = _agreed(evaluation is not None)
        if not finished:
            description = name if len(benchmarks) == 1 else f"{name} ({number} of {len(benchmarks)})"
            evaluation = _with_progress(description, policy, problems, sampler, grader, config, stream=stream)
        if not first_host:
            continue
        summaries[name], metrics[name] = evaluation.summary(), evaluation.metrics()
        if finished:
            print(f"{name}: finished before, read from {folder / name}")
        else:
            write(evaluation, summaries[name], folder, name, wanted)
        write_overview(summaries, metrics, folder, checkpoint, wanted["config"])
        questions, samples = f"{len(problems):,} questions", f"{evaluation.samples} responses each"
        print(f"{name}: {questions}, {samples}\n{eval_results.table(summaries[name])}\n", flush=True)
    if not first_host:
        return
    if len(summaries) > 1:
        mean = eval_results.mean_of_benchmarks(metrics)
        print(summary_table(eval_results.overview_rows(summaries, mean)) + "\n")
    print(f"written: {folder / eval_results.INDEX} (to browse), {folder / eval_results.SUMMARY}")


def _with_progress(description: str, policy: Policy, problems: Sequence[Problem], *arguments, **options) -> Evaluation:
    """`evaluate` of the policy with a progress bar."""
    done = correct = 0

    def show(tree: SampledTree) -> None:
        nonlocal done, correct
        done, correct = done + 1, correct + float(np.mean([r.reward == 1 for r in tree.responses]))
        progress.update(done, {"avg": correct / done})

    with Progress(len(problems), description=description) as progress:
        return evaluate(policy, policy.params, problems, *arguments, **options, on_finished=show)


def write(evaluation: Evaluation, summary: Mapping[str, float], folder: pathlib.Path, name: str, origin: dict) -> None:
    """Writes the files of one benchmark to folder/name: responses and page first, then the summary, which says that it
    is finished. origin: as `origin` makes it."""
    place, checkpoint = folder / name, eval_results.show_checkpoint(origin["checkpoint"])
    (place / eval_results.SUMMARY).unlink(missing_ok=True)
    eval_results.write_responses(evaluation, place / eval_results.RESPONSES)
    page = eval_page.responses_page(evaluation, summary, name, checkpoint)
    eval_results.write_text(place / eval_results.PAGE, page)
    eval_results.write_json(place / eval_results.SUMMARY, {"benchmark": name, **origin, "metrics": summary})


def write_overview(
    summaries: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, eval_results.Metric]],
    folder: pathlib.Path,
    checkpoint: Mapping,
    settings: Mapping,
) -> None:
    """Writes the summary and the page over the benchmarks evaluated so far. metrics: of each (`Evaluation.metrics`)."""
    mean = eval_results.mean_of_benchmarks(metrics)
    page = eval_page.index_page(summaries, mean, eval_results.show_checkpoint(checkpoint), settings)
    eval_results.write_text(folder / eval_results.INDEX, page)
    content = {"checkpoint": checkpoint, "config": settings, "benchmarks": summaries}
    content["mean"] = eval_results.with_bounds(mean)
    eval_results.write_json(folder / eval_results.SUMMARY, content)


def compare(arguments: Sequence[str]) -> None:
    """The command with --compare; whatever is wrong ends it with one line and code 2."""
    parser = argparse.ArgumentParser(prog="python -m ibtpo.evaluate", allow_abbrev=False)
    parser.add_argument("--compare", action="append", required=True, metavar="FOLDER", help="evaluation; give two")
    folders = parser.parse_args(arguments).compare
    if len(folders) != 2:
        parser.error(f"--compare must be given twice, not {len(folders)} times: it names the two evaluations")
    try:
        print(eval_results.compare(*folders))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    if any(argument.split("=")[0] == "--compare" for argument in sys.argv[1:]):
        compare(sys.argv[1:])
    else:
        # A benchmark may need longer prompts than the rows of training hold.
        config_lib.run(main, resolve=functools.partial(config_lib.resolve, training=False), needs_workdir=False)
