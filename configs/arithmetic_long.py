"""The whole method on a 0.83 M-parameter model and chains of 8 to 12 operations, where one wrong step spoils the rest.

Command:   python -m ibtpo.train --config=configs/arithmetic_long.py --workdir=runs/arithmetic_long
Baseline:  the same with --config.method=grpo and another workdir
Hardware:  two CPU cores, under 4 GB of memory; no accelerator
"""

from ml_collections import config_dict

from configs import tiny


def get_config() -> config_dict.ConfigDict:
    """tiny.py with longer chains."""
    config = tiny.get_config()

    config.model.path = "assets/qwen3-arithmetic-long"  # supervised start, made by configs/arithmetic_long_sft.py

    config.data.difficulty = "long"  # 8 to 12 operations, each one step

    config.sampling.max_new_tokens = 144  # the longest solution needs 139

    config.train.row_tokens = 1792  # holds the largest possible tree: one shape, compiled once
    return config
