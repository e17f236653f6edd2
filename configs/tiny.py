"""The whole method on a 0.8 M-parameter model and chained arithmetic, on a laptop's CPU.

Command:   python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny
Baseline:  the same with --config.method=grpo and another workdir
Hardware:  two CPU cores, under 4 GB of memory, 3 to 5 minutes; no accelerator
Result:    held-out avg@8 rises from 42 % to 73 % (seeds 0 to 2: 72.3, 73.1, 73.1); docs/results.md has the runs
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py with a model, task and sizes for a CPU."""
    config = base.get_config()

    config.model.path = "assets/qwen3-tiny"  # supervised start, made by configs/tiny_sft.py
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.remat = "none"  # memory is no concern at this size

    config.data.source = "tfds:chained_arithmetic"  # checkable, and each operation is one step
    config.data.prompt = "Question: {question}\nAnswer:\n"  # what the tiny model was trained on
    config.data.max_prompt_tokens = 64  # tokens; the longest question needs fewer

    config.tree.min_new_tokens = 8  # about one step of this task
    config.tree.segment_tokens = 24  # about three steps; methods with segments only

    config.sampling.temperature = 1.0  # no truncation below, so sampler and trainer agree exactly
    config.sampling.top_k = 0  # off
    config.sampling.top_p = 1.0  # off
    config.sampling.max_new_tokens = 72  # the longest solution needs 63
    config.sampling.slots = 32  # one branch per question in flight
    config.sampling.page_size = 16  # tokens; responses are short
    config.sampling.chunk = 16  # about two steps of this task
    config.sampling.questions_in_flight = 32  # a whole training step at once

    config.reward.workers = 2  # one per core

    config.optimizer.learning_rate = 3e-4  # a small model takes larger steps

    config.train.steps = 30  # updates
    config.train.questions_per_step = 32  # trees per update
    config.train.row_tokens = 1024  # holds the largest possible tree: one shape, compiled once
    config.train.rows_per_step = 2  # rows of a microbatch; a few trees are not padded to many rows

    config.eval.every = 10  # updates
    config.eval.questions = 256  # held-out questions
    config.eval.samples = 8  # k of avg@k
    config.eval.temperature = 1.0  # as in training
    config.eval.top_k = 0  # off
    config.eval.top_p = 1.0  # off

    config.checkpoint.every = 10  # updates

    config.log.trees_every = 5  # updates
    return config
