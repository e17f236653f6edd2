"""IB-TPO training: sample trees, grade, score, update.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny

The workdir gets config.json, metrics.jsonl, TensorBoard event files, checkpoints and, at the end,
learning_curve.png. Running the same command again continues from the newest checkpoint, or says that
the run is finished. On several hosts every one runs this command (docs/tpu.md); checkpoint.dir must then be storage
that all of them see, and the first writes the other files to its own workdir.

SIGTERM and Ctrl-C finish the update under way, save and end with code 0; a second one ends at once.
"""

from typing import Any

from ibtpo.interruption import Interruption


def train(config: Any, workdir: str, interruption: Interruption | None = None) -> None:
    """Runs `config` in `workdir` to its last update, from the newest checkpoint if there is one."""
    from ibtpo import training_run

    training_run.run(config, workdir, interruption or Interruption())


def main() -> None:
    """The command."""
    with Interruption().listening(to_the_end=True) as interruption:
        from ibtpo import config as config_lib  # signals are heard while this and JAX load

        config_lib.run(lambda config, workdir: train(config, workdir, interruption))


if __name__ == "__main__":
    main()
