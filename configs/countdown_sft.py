"""The base model of countdown: 0.83 M parameters, from scratch, on solutions of a teacher with little foresight.

Command:   python -m ibtpo.sft --config=configs/countdown_sft.py --workdir=runs/countdown_sft
Hardware:  two CPU cores
"""

from ml_collections import config_dict

from configs import tiny_sft


def get_config() -> config_dict.ConfigDict:
    """tiny_sft.py with another task: the same architecture, tokenizer and optimizer."""
    config = tiny_sft.get_config()
    config.output = "assets/qwen3-countdown"  # model directory to write, in Hugging Face layout

    config.data.source = "countdown"  # drawn as needed
    config.data.noise = 0.05  # share of steps that are mistakes
    config.data.prompt = "{question}\n"  # as in countdown.py
    config.data.max_prompt_tokens = 48  # tokens; the longest prompt needs 36

    config.train.steps = 4_000  # updates
    config.train.row_tokens = 384  # tokens of a row, which holds four examples or so
    return config
