"""The whole method on a 0.83 M-parameter model and countdown: make the target of four numbers.

Command:   python -m ibtpo.train --config=configs/countdown.py --workdir=runs/countdown
Baseline:  the same with --config.method=grpo and another workdir
Hardware:  two CPU cores, under 4 GB of memory; no accelerator
"""

from ml_collections import config_dict

from configs import tiny


def get_config() -> config_dict.ConfigDict:
    """tiny.py with another model and task."""
    config = tiny.get_config()

    config.model.path = "assets/qwen3-countdown"  # supervised start, made by configs/countdown_sft.py

    config.data.source = "tfds:countdown"  # three steps, of which the last shows whether the first was right
    config.data.prompt = "{question}\n"  # what the model was trained on
    config.data.max_prompt_tokens = 48  # tokens; the longest prompt needs 36

    config.tree.min_new_tokens = 16  # about one step of this task

    config.reward.kind = "countdown"  # which the problems of this source have anyway
    return config
