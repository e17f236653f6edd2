"""The base model of long chains: the tiny base model, taught chains of 8 to 12 operations with mistakes in them.

Command:   python -m ibtpo.sft --config=configs/arithmetic_long_sft.py --workdir=runs/arithmetic_long_sft
Hardware:  two CPU cores
"""

from ml_collections import config_dict

from configs import tiny_sft


def get_config() -> config_dict.ConfigDict:
    """tiny_sft.py with longer chains, from the weights that it made."""
    config = tiny_sft.get_config()
    config.output = "assets/qwen3-arithmetic-long"  # model directory to write, in Hugging Face layout
    config.model.path = "assets/qwen3-tiny"  # which knows chains of 3 to 5 operations

    config.data.difficulty = "long"  # 8 to 12 operations
    config.data.noise = 0.15  # share of steps that are made wrong: 20 % of the chains are right

    config.train.steps = 2_000  # updates
    config.train.row_tokens = 512  # tokens of a row, which holds several whole examples
    config.optimizer.learning_rate = 1e-3  # peak; the weights are not random
    return config
