"""A whole run: where it begins, its updates with their metrics, evaluations and checkpoints, and its end."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ibtpo import checkpoints, environment, hosts, memory, parallel, report, sizing
from ibtpo import config as config_lib
from ibtpo import interruption as interruption_lib
from ibtpo import metrics as metrics_lib
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.interruption import GivenUp, Interruption
from ibtpo.precompiled import compile_all
from ibtpo.saved_trees import TreeFile, TreeFolder
from ibtpo.trainer import Trainer
from ibtpo.workdir_lock import locked


def run(config: Any, workdir: str, interruption: Interruption) -> None:
    """Runs `config` in `workdir` to its last update, or until it is asked to stop."""
    enable_compilation_cache(config)
    interruption.grace = config.checkpoint.grace_seconds
    with hosts.connected(config.train.host_timeout, interruption):
        with parallel.together():
            config_lib.save(config, workdir, write=False)  # refuses another run's workdir before anything is loaded
        checkpoints.check_writable(workdir, config.checkpoint.dir)
        with alone(config, workdir):
            run_alone(config, workdir, interruption)


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


def run_alone(config: Any, workdir: str, interruption: Interruption) -> None:
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
        owes = resumed and trainer.held_out and owes_evaluation(trainer, workdir)
        if first >= total and not owes:
            # A schedule that ends with the run fixes its length (`config.diff`).
            go_on = "Raise --config.train.steps to continue, or choose" * (config.optimizer.schedule == "constant")
            print(f"{workdir} is finished: {first} of {total} updates are done. {go_on or 'Choose'} another --workdir.")
            if first_host and metrics_lib.exist(workdir):  # not in the new workdir of an old checkpoint.dir
                finish(config, workdir)
            return
        print(
            f"{'Continuing' if resumed else 'Starting'} at update {first} of {total} in {workdir}: "
            f"{len(trainer.problems)} problems, {len(trainer.held_out)} held out, "
            f"{jax.device_count()} {jax.default_backend()} device(s)",
            flush=True,
        )
        sampler = trainer.sampler
        if said := memory.describe_adapters(config, trainer.policy.model):
            print(said, flush=True)
        print(sizing.describe(sampler.options, sampler.capacity, config, trainer.policy.model), flush=True)
        with memory.enough(config, "compiling", (*memory.SAMPLING, *memory.UPDATE)):
            print(compile_all(trainer.programs_ahead(updates=first < total)), flush=True)
        resume_step = first if resumed else -1
        with (
            metrics_lib.MetricWriter(
                workdir, config.log.tensorboard, resume_step=resume_step, active=first_host
            ) as writer,
            metrics_lib.Progress(total, first, "updates") as progress,
        ):
            environment.save(workdir, first, write=first_host)
            trees = TreeFolder(workdir, config.log.tree_files, resume_step=resume_step, active=first_host)
            trainer.position.owes_evaluation = bool(owes or (trainer.held_out and not resumed))
            stopped = run_updates(trainer, store, workdir, writer, progress, trees)
    if stopped:
        step, go_on = int(trainer.state.step), "run the same command to continue"
        print(f"{interruption.reason}: saved update {step} in {store.path}; {go_on}", flush=True)
    elif first_host:
        finish(config, workdir)


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
    trainer.position.owes_evaluation = not hosts.first_says(there)
    return trainer.position.owes_evaluation


def run_updates(
    trainer: Trainer,
    store: checkpoints.Checkpoints,
    workdir: str,
    writer: metrics_lib.MetricWriter,
    progress: metrics_lib.Progress,
    trees: TreeFolder,
) -> bool:
    """The updates that are left, with their metrics, evaluations, trees and checkpoints. Whether it was asked to stop
    before the last one was done; then everything up to there is saved."""
    config, total = trainer.config, trainer.config.train.steps
    interruption = trainer.interruption
    clock = time.monotonic() - trainer.position.seconds

    def save() -> None:
        trainer.position.seconds = time.monotonic() - clock
        with interruption.save():
            trainer.save(store)

    try:
        if trainer.position.owes_evaluation:
            evaluate(trainer, writer, trees, int(trainer.state.step))
        for step in range(int(trainer.state.step) + 1, total + 1):
            if hosts.stop_between_updates(interruption, step):
                raise GivenUp
            with interruption.update():
                metrics = trainer.update()
            trainer.position.seconds = time.monotonic() - clock
            metrics["time/elapsed_s"] = trainer.position.seconds
            if step % config.log.every == 0 or step == total:
                writer.write(step, metrics)
            if config.log.trees_every and (step % config.log.trees_every == 0 or step == total):
                save_trees(trees, functools.partial(trainer.shown_of_update, step))
            store.check()
            check_skipped(trainer, workdir, step)
            shown = {"reward": "avg_rate_initial", "eff-rate": "eff_rate", "entropy": "entropy"}
            progress.update(
                step,
                {short: metrics[f"train/{name}"] for short, name in shown.items() if f"train/{name}" in metrics},
            )
            if trainer.held_out and (step % config.eval.every == 0 or step == total):
                rate = evaluate(trainer, writer, trees, step)
                progress.print(f"update {step}: held-out avg@{config.eval.samples} = {100 * rate:.1f} %")
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


def evaluate(trainer: Trainer, writer: metrics_lib.MetricWriter, trees: TreeFolder, step: int) -> float:
    """The evaluation of a step, with its row and its trees; until the row is written, the run owes it. Returns
    avg@k."""
    trainer.position.owes_evaluation = True
    evaluated = trainer.evaluate()
    save_trees(trees, functools.partial(trainer.shown_of_evaluation, step))
    writer.write(step, evaluated)
    trainer.position.owes_evaluation = False
    return evaluated["eval/avg_at_k"]


def save_trees(trees: TreeFolder, make: Callable[[], TreeFile | None]) -> None:
    """Writes the trees that `make` gives, if it gives some; on the first host, and nothing is made on the others."""
    if trees.active and (content := make()) is not None:
        trees.write(content)


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
    tree, group_size = config.tree, config_lib.responses_per_question(config.tree)
    sampled = float(np.nanmean(run["train/tokens_per_question"][1]))
    length = float(np.nanmean(run["train/response_length_initial"][1]))
    shape = f"{tree.strategy} ({tree.initial},{tree.rounds},{tree.top_k},{tree.branch})"
    costs = [(f"{shape}: {group_size} responses", group_size, sampled)]
    costs += [(f"{n} independent responses", n, n * length) for n in (8, 12)]
    print("\n" + report.summary_table([report.summarize(workdir, config.method)]))
    print("\nTokens generated per question, mean over the run (independent: from the unguided responses' length)")
    print(
        report.summary_table(
            [
                {"sampling": name, "tokens": round(tokens), "responses per 1,000 tokens": 1000 * count / tokens}
                for name, count, tokens in costs
            ]
        )
    )
    print(f"\nlearning curve: {curve}\nreport: {report.write_report([workdir])}")
