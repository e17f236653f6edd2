"""One benchmark evaluated after the other: each written when it is done, and no question sampled twice."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from ibtpo import __version__, hosts, memory
from ibtpo import config as config_lib
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.data.problems import Problem, lengths_to_prefill
from ibtpo.errors import UserError
from ibtpo.evaluation import files, page, tables
from ibtpo.evaluation.benchmarks import check_grading, load_benchmarks
from ibtpo.evaluation.checkpoint import open_checkpoint
from ibtpo.evaluation.partial import PARTIAL, Partial
from ibtpo.evaluation.results import Evaluation, Metric, mean_of_benchmarks, with_bounds
from ibtpo.evaluation.run import evaluate, make_eval_sampler
from ibtpo.interruption import Interruption
from ibtpo.metrics import Progress
from ibtpo.policy import Policy, make_grader
from ibtpo.precompiled import compile_all
from ibtpo.report import summary_table
from ibtpo.report.page import trees_page
from ibtpo.rewards.pool import Grader
from ibtpo.sampling import SampledTree, TreeSampler
from ibtpo.saved_trees import TreeFile, write_file
from ibtpo.saved_trees.shown import ShownTrees
from ibtpo.whole_files import write_text

# Settings that an evaluation's results depend on; recorded with them.
_SETTINGS = ("model.", "data.", "sampling.", "reward.", "eval.", "train.seed")
_NOT_RECORDED = ("eval.benchmarks", "eval.every")


def evaluate_checkpoint(config, checkpoint: str, workdir: str | None) -> None:
    """The command: evaluates `checkpoint` on every benchmark of the config.

    checkpoint: a run's workdir, its checkpoint.dir, a Hugging Face directory, or hf:<id>. workdir: where results go;
    None: <checkpoint>/evaluation.

    Raises:
      UserError: the checkpoint, a benchmark or the grading cannot be used.
    """
    enable_compilation_cache(config)
    with hosts.connected(config.train.host_timeout, Interruption()):
        _evaluate_checkpoint(config, checkpoint, workdir)


def _evaluate_checkpoint(config, checkpoint: str, workdir: str | None) -> None:
    """The same, once the hosts are connected."""
    checkpoint, identity, policy, config = open_checkpoint(config, checkpoint)
    benchmarks = load_benchmarks(config, policy.tokenizer)
    sampler = make_eval_sampler(policy, config, max(map(len, benchmarks.values())))
    folder = pathlib.Path(workdir or pathlib.Path(checkpoint) / "evaluation")
    with make_grader(config) as grader:
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
    summaries, metrics, shown, compiled = {}, {}, ShownTrees(config.log.trees), False
    for number, (name, problems) in enumerate(benchmarks.items(), 1):
        stream = name if config.eval.benchmarks else ""
        wanted = origin(config, checkpoint, stream, problems)
        evaluation = read_finished(folder / name, wanted) if first_host else None
        finished = hosts.first_says(evaluation is not None)  # only it may see the results
        if not finished:
            if not compiled:
                left = [problem for some in list(benchmarks.values())[number - 1 :] for problem in some]
                programs = sampler.ahead(policy.params, lengths_to_prefill(left))
                with memory.enough(config, "compiling", memory.SAMPLING):
                    print(compile_all({"sampler": programs}), flush=True)
                compiled = True
            description = name if len(benchmarks) == 1 else f"{name} ({number} of {len(benchmarks)})"
            keep = shown.evaluated(problems)
            with open_partial(folder / name, wanted, problems, config) as partial:
                evaluation = sample_benchmark(
                    policy, problems, sampler, grader, config,
                    stream=stream, description=description, partial=partial, keep=keep,
                )  # fmt: skip
        if evaluation is None or not first_host:
            continue
        summaries[name], metrics[name] = evaluation.summary(), evaluation.metrics()
        if finished:
            print(f"{name}: finished before, read from {folder / name}")
        else:
            trees = shown.of_evaluation(0, policy, config)
            write_benchmark(evaluation, summaries[name], folder, name, wanted, trees)
        write_overview(summaries, metrics, folder, checkpoint, wanted["config"])
        questions, samples = f"{len(problems):,} questions", f"{evaluation.samples} responses each"
        print(f"{name}: {questions}, {samples}\n{tables.table(summaries[name])}\n", flush=True)
    if not first_host:
        return
    if len(summaries) > 1:
        mean = mean_of_benchmarks(metrics)
        print(summary_table(tables.overview_rows(summaries, mean)) + "\n")
    print(f"written: {folder / files.INDEX} (to browse), {folder / files.SUMMARY}")


def open_partial(folder: pathlib.Path, wanted: Mapping, problems: Sequence[Problem], config) -> Partial:
    """What an earlier call of the same command has finished of a benchmark; the first host has it."""
    shown = [problem.id for problem in problems[: config.log.trees]]
    return Partial(folder, wanted, config.eval.samples, shown, active=jax.process_index() == 0)


def sample_benchmark(
    policy: Policy,
    problems: Sequence[Problem],
    sampler: TreeSampler,
    grader: Grader,
    config,
    *,
    stream: str,
    description: str,
    partial: Partial,
    keep: Callable[[SampledTree], None],
) -> Evaluation:
    """`evaluate` of the policy with a progress bar, from where an earlier call ended. keep: gets each tree.

    The file of what is finished, `partial`, stays until the benchmark is written.
    """
    known = hosts.first_says_each([problem.id in partial.finished for problem in problems])
    finished = partial.trees(policy, problems, config)
    if known.any():
        print(f"{description}: {known.sum():,} of {len(problems):,} questions are there already", flush=True)
    if jax.process_index():  # the others need the rest only
        problems = list(itertools.compress(problems, ~known))
    done, correct = 0, 0.0

    def show(tree: SampledTree) -> None:
        nonlocal done, correct
        keep(tree)
        partial.add(tree)
        done, correct = done + 1, correct + float(np.mean([r.reward == 1 for r in tree.responses]))
        if done > len(finished):
            progress.update(done, {"avg": correct / done})

    with Progress(len(problems), len(finished), description) as progress:
        return evaluate(
            policy,
            policy.params,
            problems,
            sampler,
            grader,
            config,
            stream=stream,
            on_finished=show,
            finished=finished,
        )


def origin(config, checkpoint: Mapping, stream: str, problems: Sequence[Problem]) -> dict:
    """The origin of a benchmark's results, as JSON: where it is the same, so are they."""
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
    if not (folder / files.SUMMARY).is_file():
        return None
    try:
        found = files.read_summary(folder)
        if {name: found.get(name) for name in wanted} == json.loads(json.dumps(wanted)):
            return files.read_benchmark(folder)
    except UserError as error:
        print(f"{error}; sampled again")
        return None
    print(f"{folder}: results of another checkpoint, configuration or version are replaced")
    return None


def write_benchmark(
    evaluation: Evaluation,
    summary: Mapping[str, float],
    folder: pathlib.Path,
    name: str,
    origin: dict,
    trees: TreeFile | None = None,
) -> None:
    """Writes the files of one benchmark to folder/name: responses, trees and pages first, then the summary, which says
    that it is finished. origin: as `origin` makes it."""
    place, checkpoint = folder / name, tables.show_checkpoint(origin["checkpoint"])
    (place / files.SUMMARY).unlink(missing_ok=True)
    files.write_responses(evaluation, place / files.RESPONSES)
    for old in (files.TREES, files.TREES_PAGE):
        (place / old).unlink(missing_ok=True)
    if trees is not None:
        write_file(place / files.TREES, trees)
        write_text(place / files.TREES_PAGE, trees_page([(name, trees)], f"{name}: {checkpoint}"))
    html = page.responses_page(evaluation, summary, name, checkpoint, files.TREES_PAGE if trees is not None else "")
    write_text(place / files.PAGE, html)
    files.write_json(place / files.SUMMARY, {"benchmark": name, **origin, "metrics": summary})
    (place / PARTIAL).unlink(missing_ok=True)


def write_overview(
    summaries: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, Metric]],
    folder: pathlib.Path,
    checkpoint: Mapping,
    settings: Mapping,
) -> None:
    """Writes the summary and the page over the benchmarks evaluated so far. metrics: of each (`Evaluation.metrics`)."""
    mean = mean_of_benchmarks(metrics)
    html = page.index_page(summaries, mean, tables.show_checkpoint(checkpoint), settings)
    write_text(folder / files.INDEX, html)
    content = {"checkpoint": checkpoint, "config": settings, "benchmarks": summaries}
    content["mean"] = with_bounds(mean)
    files.write_json(folder / files.SUMMARY, content)
