"""Supervised training of a base model on worked solutions.

    python -m ibtpo.sft --config=configs/tiny_sft.py --workdir=runs/tiny_sft

The tiny base model is trained from scratch on worked solutions that contain mistakes at a known rate, so that it knows
the task but is unsure of each step: something is left for reinforcement learning. The same trainer fits any model
directory to JSON lines with a question and a solution.

--profile=10:12 writes a trace of updates 10 to 12, both included, into the workdir's folder profile (docs/watching.md).
"""

from typing import Any

from absl import flags

from ibtpo import config as config_lib
from ibtpo.profiling import Profile


def main(config: Any, workdir: str, profile: str | None = None) -> None:
    """Trains for config.train.steps updates and writes the model directory config.output. profile: of --profile."""
    traced = Profile.parse(profile, config.train.steps)
    from ibtpo.metrics import sinks

    sinks.check_installed(config.log)
    from ibtpo import supervised  # JAX comes after the command line

    supervised.run(config, workdir, traced)


if __name__ == "__main__":
    # Here, as ibtpo.train has one of this name too, and a program may import both.
    flag = flags.DEFINE_string("profile", None, "updates to trace, e.g. 10:12, both included (docs/watching.md)")
    complete = config_lib.resolve_by(config_lib.SFT_RULES, "configs/tiny_sft.py")
    config_lib.run(lambda c, workdir: main(c, workdir, flag.value), resolve=complete, keys=config_lib.SFT)
