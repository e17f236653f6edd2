"""IB-TPO training: sample trees, grade, score, update.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny

The workdir gets config.json, metrics.jsonl, TensorBoard event files, checkpoints and, at the end,
learning_curve.png. Running the same command again continues from the newest checkpoint, or says that
the run is finished. On several hosts every one runs this command (docs/tpu.md); checkpoint.dir must then be storage
that all of them see, and the first writes the other files to its own workdir.

--profile=10:12 writes a trace of updates 10 to 12, both included, into the workdir's folder profile (docs/watching.md).

SIGTERM and Ctrl-C finish the update under way, save and end with code 0; a second one ends at once.
"""

from typing import Any

from absl import flags

from ibtpo.interruption import Interruption
from ibtpo.profiling import Profile

_PROFILE = flags.DEFINE_string("profile", None, "updates to trace, e.g. 10:12, both included (docs/watching.md)")


def train(
    config: Any, workdir: str, interruption: Interruption | None = None, profile: Profile | None = None
) -> None:
    """Runs `config` in `workdir` to its last update, from the newest checkpoint if there is one."""
    from ibtpo.data.procedural import check_installed
    from ibtpo.metrics import sinks

    sinks.check_installed(config.log)
    check_installed(config.data.source)
    from ibtpo import training_run  # JAX comes after what is wrong

    training_run.run(config, workdir, interruption or Interruption(), profile)


def command(config: Any, workdir: str, interruption: Interruption) -> None:
    """The same with the flags of the command line."""
    train(config, workdir, interruption, Profile.parse(_PROFILE.value, config.train.steps))


def main() -> None:
    """The command."""
    with Interruption().listening(to_the_end=True) as interruption:
        from ibtpo import config as config_lib  # signals are heard while this and JAX load

        config_lib.run(lambda config, workdir: command(config, workdir, interruption))


if __name__ == "__main__":
    main()
