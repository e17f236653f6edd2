"""Supervised training of a base model on worked solutions.

    python -m ibtpo.sft --config=configs/tiny_sft.py --workdir=runs/tiny_sft

The tiny base model is trained from scratch on worked solutions that contain mistakes at a known rate, so that it knows
the task but is unsure of each step: something is left for reinforcement learning. The same trainer fits any model
directory to JSON lines with a question and a solution.
"""

from typing import Any

from ibtpo import config as config_lib


def main(config: Any, workdir: str) -> None:
    """Trains for config.train.steps updates and writes the model directory config.output."""
    from ibtpo import supervised  # JAX comes after the command line

    supervised.run(config, workdir)


if __name__ == "__main__":
    complete = config_lib.resolve_by(config_lib.SFT_RULES, "configs/tiny_sft.py")
    config_lib.run(main, resolve=complete, keys=config_lib.SFT)
