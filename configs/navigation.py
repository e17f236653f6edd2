"""The whole method on a 0.82 M-parameter model and navigation, where every probability can be computed.

Command:   python -m ibtpo.train --config=configs/navigation.py --workdir=runs/navigation
Baseline:  the same with --config.method=grpo and another workdir
Hardware:  two CPU cores, under 4 GB of memory; no accelerator
Exact:     python benchmarks/exact.py computes p(a*|s), J and the best fork of its trees
"""

from ml_collections import config_dict

from configs import tiny


def get_config() -> config_dict.ConfigDict:
    """tiny.py with another model and task."""
    config = tiny.get_config()

    config.model.path = "assets/qwen3-navigation"  # supervised start, made by configs/navigation_sft.py

    config.data.source = "tfds:navigation"  # 5 to 10 moves, each one step; graded by its own rules
    config.data.prompt = "R: next letter. D: next number.\n{question}\n"  # what the model was trained on
    config.data.max_prompt_tokens = 112  # tokens; the longest prompt needs 96

    config.tree.min_new_tokens = 6  # one step of this task
    config.tree.segment_tokens = 18  # three steps; methods with segments only

    config.sampling.max_new_tokens = 80  # the longest path has 71
    config.sampling.chunk = 16  # about three steps of this task

    config.reward.kind = "navigation"  # which the problems of this source have anyway

    config.optimizer.learning_rate = 1e-3  # the best of 1e-4 to 3e-3, for GRPO too (docs/study.md)

    config.train.steps = 40  # updates
    config.train.row_tokens = 1152  # holds the largest possible tree: one shape, compiled once
    return config
