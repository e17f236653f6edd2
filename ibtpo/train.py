"""IB-TPO training: sample trees, grade, score, update.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny

The workdir gets config.json, metrics.jsonl, TensorBoard event files, checkpoints and, at the end,
learning_curve.png. Running the same command again continues from the newest checkpoint, or says that
the run is finished. On several hosts every one runs this command (docs/tpu.md); checkpoint.dir must then be storage
that all of them see, and the first writes the other files to its own workdir.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from ibtpo import checkpoints, parallel, report
from ibtpo import config as config_lib
from ibtpo import metrics as metrics_lib
from ibtpo.compilation_cache import enable_compilation_cache
from ibtpo.trainer import Trainer


def train(config: Any, workdir: str) -> None:
    """Runs `config` in `workdir` to its last update, from the newest checkpoint if there is one."""
    config_lib.save(config, workdir, write=False)  # refuses another run's workdir before anything is loaded
    enable_compilation_cache(config)
    parallel.initialize()
    checkpoints.check_writable(workdir, config.checkpoint.dir)
    trainer = Trainer(config)
    first_host, total = jax.process_index() == 0, config.train.steps
    with (
        trainer.grader,
        checkpoints.Checkpoints(workdir, folder=config.checkpoint.dir, keep=config.checkpoint.keep) as store,
    ):
        resumed = resume(trainer, store, workdir)
        config_lib.save(config, workdir, write=first_host)
        first = int(trainer.state.step)
        if first >= total:
            # A schedule that ends with the run fixes its length (`config.diff`).
            go_on = "Raise --config.train.steps to continue, or choose" * (config.optimizer.schedule == "constant")
            print(f"{workdir} is finished: {first} of {total} updates are done. {go_on or 'Choose'} another --workdir.")
            if first_host and metrics_lib.exist(workdir):  # not in the new workdir of an old checkpoint.dir
                finish(config, workdir)
            return
        print(
            f"{'Continuing' if resumed else 'Starting'} at update {first} of {total} in {workdir}: "
            f"{len(trainer.problems)} problems, {len(trainer.held_out)} held out, "
            f"{jax.device_count()} {jax.default_backend()} device(s)"
        )
        resume_step = first if resumed else -1
        with (
            metrics_lib.MetricWriter(
                workdir, config.log.tensorboard, resume_step=resume_step, active=first_host
            ) as writer,
            metrics_lib.Progress(total, first, "updates") as progress,
        ):
            if trainer.held_out and not resumed:
                writer.write(0, trainer.evaluate())
            run_updates(trainer, store, workdir, writer, progress)
    if first_host:
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


def run_updates(
    trainer: Trainer,
    store: checkpoints.Checkpoints,
    workdir: str,
    writer: metrics_lib.MetricWriter,
    progress: metrics_lib.Progress,
) -> None:
    """The updates that are left, with their metrics, evaluations and checkpoints."""
    config, total = trainer.config, trainer.config.train.steps
    clock = time.monotonic() - trainer.position.seconds
    for step in range(int(trainer.state.step) + 1, total + 1):
        metrics = trainer.update()
        trainer.position.seconds = time.monotonic() - clock
        metrics["time/elapsed_s"] = trainer.position.seconds
        if step % config.log.every == 0 or step == total:
            writer.write(step, metrics)
        store.check()
        check_skipped(trainer, workdir, step)
        shown = {"reward": "avg_rate_initial", "eff-rate": "eff_rate", "entropy": "entropy"}
        progress.update(
            step,
            {short: metrics[f"train/{name}"] for short, name in shown.items() if f"train/{name}" in metrics},
        )
        if trainer.held_out and (step % config.eval.every == 0 or step == total):
            evaluated = trainer.evaluate()
            writer.write(step, evaluated)
            progress.print(
                f"update {step}: held-out avg@{evaluated['eval/k']} = {100 * evaluated['eval/avg_at_k']:.1f} %"
            )
        if step % config.checkpoint.every == 0 or step == total:
            trainer.position.seconds = time.monotonic() - clock
            trainer.save(store)


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
    """The learning curve and the summary tables of a run that is done."""
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
    print(f"\nlearning curve: {curve}")


if __name__ == "__main__":
    config_lib.run(train)
