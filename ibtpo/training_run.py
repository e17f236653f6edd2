"""A whole run: where it begins, its updates with their metrics, evaluations and checkpoints, and its end."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ibtpo import checkpoints, environment, first_responses, hosts, memory, parallel, pinned, report, sizing
from ibtpo import config as config_lib
from ibtpo import interruption as interruption_lib
from ibtpo import metrics as metrics_lib
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.data.problems import Problem
from ibtpo.evaluation import tables
from ibtpo.interruption import GivenUp, Interruption
from ibtpo.metrics import samples, sinks
from ibtpo.precompiled import compile_all
from ibtpo.profiling import Profile, phase
from ibtpo.saved_trees import TreeFile, TreeFolder
from ibtpo.trainer import Trainer
from ibtpo.tree import Tree
from ibtpo.workdir_lock import locked


def run(config: Any, workdir: str, interruption: Interruption, profile: Profile | None = None) -> None:
    """Runs `config` in `workdir` to its last update, or until it is asked to stop. profile: the updates to trace."""
    enable_compilation_cache(config)
    interruption.grace = config.checkpoint.grace_seconds
    with hosts.connected(config.train.host_timeout, interruption):
        config = pinned.of_run(config, workdir)
        with parallel.together():
            config_lib.save(config, workdir, write=False)  # refuses another run's workdir before anything is loaded
        checkpoints.check_writable(workdir, config.checkpoint.dir)
        with alone(config, workdir):
            run_alone(config, workdir, interruption, profile or Profile())


@contextlib.contextmanager
def alone(config: Any, workdir: str) -> Iterator[None]:
    """Holds the folders of the run, on its first host: no other run may write there (`ibtpo.workdir_lock`)."""

    with contextlib.ExitStack() as stack:
        with parallel.together():
            if jax.process_index() == 0:
                folders = [workdir, config.checkpoint.dir or str(pathlib.Path(workdir) / "checkpoints")]
                release = stack.enter_context(locked(folders, on_lost=interruption_lib.folder_lost))
                stack.enter_context(interruption_lib.at_end(lambda code, line: release()))
        yield


def run_alone(config: Any, workdir: str, interruption: Interruption, profile: Profile) -> None:
    """The same, once its folders are its own."""
    trainer = Trainer(config, interruption)
    interruption.keep()
    first_host, total = jax.process_index() == 0, config.train.steps
    with (
        trainer.grader,
        interruption_lib.at_end(lambda code, line: trainer.grader.close()),
        checkpoints.Checkpoints(workdir, folder=config.checkpoint.dir, keep=config.checkpoint.keep) as store,
    ):
        resumed = resume(trainer, store, workdir)
        config_lib.save(config, workdir, write=first_host)
        first = int(trainer.state.step)
        owes = resumed and bool(trainer.held_out) and owes_evaluation(trainer, workdir)
        if first >= total and not owes:
            # A schedule that ends with the run fixes its length (`config.diff`).
            go_on = "Raise --config.train.steps to continue, or choose" * (config.optimizer.schedule == "constant")
            print(f"{workdir} is finished: {first} of {total} updates are done. {go_on or 'Choose'} another --workdir.")
            if first_host and metrics_lib.exist(workdir):  # not in the new workdir of an old checkpoint.dir
                finish(config, workdir)
            return
        profile.check_begin(first)
        introduce(trainer, workdir, resumed)
        trainer.position.owes_evaluation = owes or (bool(trainer.held_out) and not resumed)
        with services(config, workdir, active=first_host) as opened:
            with memory.enough(config, "compiling", (*memory.SAMPLING, *memory.UPDATE)):
                print(compile_all(trainer.programs_ahead(updates=first < total)), flush=True)
            resume_step = first if resumed else -1
            with (
                metrics_lib.MetricWriter(
                    workdir,
                    config.log.tensorboard,
                    resume_step=resume_step,
                    active=first_host,
                    sinks=opened,
                    hparams=config_lib.flatten(config),
                ) as writer,
                metrics_lib.Progress(total, first, "updates", warm_up=1) as progress,
                contextlib.closing(profile),
            ):
                environment.save(workdir, first, write=first_host)
                trees = TreeFolder(workdir, config.log.tree_files, resume_step=resume_step, active=first_host)
                stopped = run_updates(trainer, store, workdir, writer, progress, trees, profile)
    if stopped:
        step, go_on = int(trainer.state.step), "run the same command to continue"
        print(f"{interruption.reason}: saved update {step} in {store.path}; {go_on}", flush=True)
    elif first_host:
        finish(config, workdir)


@contextlib.contextmanager
def services(config: Any, workdir: str, *, active: bool) -> Iterator[Sequence[sinks.Guarded]]:
    """`sinks.opened`; where one cannot be, every host ends."""
    with contextlib.ExitStack() as stack:
        with parallel.together():
            opened = stack.enter_context(sinks.opened(config, workdir, active=active))
        yield opened


def introduce(trainer: Trainer, workdir: str, resumed: bool) -> None:
    """Says what begins."""
    config, sampler = trainer.config, trainer.sampler
    print(
        f"{'Continuing' if resumed else 'Starting'} at update {int(trainer.state.step)} of {config.train.steps} in "
        f"{workdir}: {len(trainer.problems)} problems, {len(trainer.held_out)} held out, "
        f"{jax.device_count()} {jax.default_backend()} device(s)",
        flush=True,
    )
    if said := memory.describe_adapters(config, trainer.policy.model):
        print(said, flush=True)
    print(sizing.describe(sampler.options, sampler.capacity, config, trainer.policy.model), flush=True)


def resume(trainer: Trainer, store: checkpoints.Checkpoints, workdir: str) -> bool:
    """Continues from the newest checkpoint; False if there is none.

    Raises:
      ConfigError: there is none, although the run in `workdir` has some elsewhere.
    """
    resumed = trainer.restore(store)
    if not resumed and checkpoints.has_any(workdir):
        raise config_lib.ConfigError(
            f"checkpoint.dir={trainer.config.checkpoint.dir!r} has no checkpoint, and the run in {workdir} kept its "
            f"own in {checkpoints.find(workdir)}: give that one to continue it, or choose a new --workdir"
        )
    if not resumed:
        store.check_nothing_lost()
    return resumed


def owes_evaluation(trainer: Trainer, workdir: str) -> bool:
    """Whether the evaluation of the step that a run resumes from was given up, and has not been made up for since."""
    if not trainer.position.owes_evaluation:
        return False
    step, there = int(trainer.state.step), False
    if jax.process_index() == 0 and metrics_lib.exist(workdir):
        there = any(row["step"] == step and "eval/k" in row for row in metrics_lib.read(workdir))
    return not hosts.first_says(there)


def run_updates(
    trainer: Trainer,
    store: checkpoints.Checkpoints,
    workdir: str,
    writer: metrics_lib.MetricWriter,
    progress: metrics_lib.Progress,
    trees: TreeFolder,
    profile: Profile,
) -> bool:
    """The updates that are left, with their metrics, evaluations, trees and checkpoints. Whether it was asked to stop
    before the last one was done; then everything up to there is saved."""
    config, total = trainer.config, trainer.config.train.steps
    interruption = trainer.interruption
    clock = time.monotonic() - trainer.position.seconds

    def save() -> None:
        trainer.position.seconds = time.monotonic() - clock
        with interruption.save(), phase("save"):
            trainer.save(store)

    try:
        if trainer.position.owes_evaluation:
            step = int(trainer.state.step)
            with progress.paused():
                accuracy = evaluate(trainer, writer, trees, step)
            progress.print(f"baseline, update {step}: {accuracy}" if not step else f"update {step}: {accuracy}")
        for step in range(int(trainer.state.step) + 1, total + 1):
            if hosts.stop_between_updates(interruption, step):
                raise GivenUp
            with interruption.update(), profile.update(workdir, step):
                metrics = trainer.update(functools.partial(say_first, trainer, progress) if step == 1 else None)
            trainer.position.seconds = time.monotonic() - clock
            metrics["time/elapsed_s"] = trainer.position.seconds
            if step % config.log.every == 0 or step == total:
                writer.write(step, metrics)
            if config.log.trees_every and (step % config.log.trees_every == 0 or step == total):
                save_trees(trees, writer, config.log, functools.partial(trainer.shown_of_update, step))
            store.check()
            check_skipped(trainer, workdir, step)
            progress.update(step, brief(metrics))
            if trainer.held_out and (step % config.eval.every == 0 or step == total):
                progress.print(f"update {step}: {evaluate(trainer, writer, trees, step)}")
            if step % config.checkpoint.every == 0 or step == total:
                save()
    except GivenUp:
        save()
        store.wait()
        interruption.done = True
        return True
    store.wait()
    interruption.done = True
    return False


def say_first(
    trainer: Trainer, progress: metrics_lib.Progress, trees: list[Tree], problems: list[Problem]
) -> None:
    """Says what the first responses look like, and warns where training cannot work with them."""
    if jax.process_index():
        return
    found = first_responses.look(trees, problems, trainer.policy, trainer.config.reward.kind)
    progress.print(str(found))
    for line in first_responses.warnings(found, trainer.config):
        logging.warning("%s", line)


def evaluate(trainer: Trainer, writer: metrics_lib.MetricWriter, trees: TreeFolder, step: int) -> str:
    """The evaluation of a step, with its row and its trees; until the row is written, the run owes it. Returns the
    accuracy in words."""
    trainer.position.owes_evaluation = True
    with phase("evaluate"):
        evaluated = trainer.evaluate()
    save_trees(trees, writer, trainer.config.log, functools.partial(trainer.shown_of_evaluation, step))
    writer.write(step, evaluated)
    trainer.position.owes_evaluation = False
    return tables.accuracy_line(evaluated)


def brief(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """The few numbers of an update that the terminal shows; shares in percent, as accuracy everywhere."""
    shown: dict[str, float | str] = {}
    for short, name in (("train accuracy", "avg_rate_initial"), ("eff-rate", "eff_rate")):
        if f"train/{name}" in metrics:
            shown[short] = f"{100 * metrics[f'train/{name}']:.1f} %"
    if "train/entropy" in metrics:
        shown["entropy"] = metrics["train/entropy"]
    return shown


def save_trees(
    trees: TreeFolder, writer: metrics_lib.MetricWriter, log: Any, make: Callable[[], TreeFile | None]
) -> None:
    """Writes the trees that `make` gives, if it gives some, and shows them as texts; on the first host, and nothing is
    made on the others."""
    if not trees.active or (content := make()) is None:
        return
    trees.write(content)
    if samples.is_due(content.step, log.trees_every, log.tree_files):
        for name, text in samples.texts(content).items():
            writer.text(content.step, name, text)


def check_skipped(trainer: Trainer, workdir: str, step: int) -> None:
    """Ends the run, and leaves the batch of the last update in the workdir, after train.max_skipped updates in a row
    without a finite loss and gradient."""
    most, skipped = trainer.config.train.max_skipped, trainer.skipped
    if not 0 < most <= skipped.in_a_row:
        return
    path = pathlib.Path(workdir) / f"skipped_{step}.npz"
    skipped.save(path, write=jax.process_index() == 0)
    raise config_lib.ConfigError(
        f"the last {skipped.in_a_row} updates, up to step {step}, had no finite loss and gradient, and were skipped "
        f"(train.max_skipped={most}); the last one's batch is in {path}. Run again to continue from the newest "
        "checkpoint; if the policy had diverged, start anew in another --workdir with a lower optimizer.learning_rate "
        "or loss.kl."
    )


def finish(config, workdir: str) -> None:
    """The learning curve, the page and the summary tables of a run that is done."""
    curve = report.learning_curve(workdir, pathlib.Path(workdir) / "learning_curve.png")
    run = report.read_run(workdir)
    print("\n" + report.summary_table([report.summarize(workdir, config.method)]))
    if "train/tokens_per_question" in run:  # not where only an owed evaluation was left, of updates elsewhere
        print_costs(config, run)
    print(f"\nlearning curve: {curve}\nreport: {report.write_report([workdir])}")


def print_costs(config: Any, run: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """What a tree took of tokens, beside 8 and 12 independent responses."""
    tree, group_size = config.tree, config_lib.responses_per_question(config.tree)
    sampled = float(np.nanmean(run["train/tokens_per_question"][1]))
    length = float(np.nanmean(run["train/response_length_initial"][1]))
    shape = f"{tree.strategy} ({tree.initial},{tree.rounds},{tree.top_k},{tree.branch})"
    costs = [(f"{shape}: {group_size} responses", group_size, sampled)]
    costs += [(f"{n} independent responses", n, n * length) for n in (8, 12)]
    print("\nTokens generated per question, mean over the run (independent: from the unguided responses' length)")
    print(
        report.summary_table(
            [
                {"sampling": name, "tokens": round(tokens), "responses per 1,000 tokens": 1000 * count / tokens}
                for name, count, tokens in costs
            ]
        )
    )
