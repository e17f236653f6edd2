r"""Qwen3-0.6B-Base, all parameters, on grade-school mathematics, on one small chip.

Command:   python -m ibtpo.train --config=configs/qwen3_0p6b.py --workdir=runs/qwen3_0p6b
Model:     hf download Qwen/Qwen3-0.6B-Base --local-dir models/Qwen3-0.6B-Base
Data:      GSM8K, through the hub at the first use (docs/data.md)
Topology:  v5e:1x1 (1 chip)
State:     0.60 B parameters in float32 with their moments and a bfloat16 reference, 7.77 GiB
Memory:    92 % of the 15.75 GiB at the fullest, while responses are decoded; an update 89 %
           (python -m ibtpo.compile_check --config=configs/qwen3_0p6b.py --topology=v5e:1x1; docs/results.md)
Step:      at best 105 s of sampling and 8 s of update, as many responses/s as 12 independent (0.98)
Expect:    not trained yet
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, data and sizes for one chip of 16 GB."""
    config = base.get_config()

    config.model.path = "models/Qwen3-0.6B-Base"  # this folder
    config.model.preset = "Qwen/Qwen3-0.6B-Base"  # another model there is refused
    config.model.remat = "full"  # the longest trees on one chip

    config.data.source = "tfds:gsm8k"  # 7,473 problems in words, and 1,319 held out
    config.data.max_prompt_tokens = 512  # the longest question has 250 and the prompt's words

    config.eval.questions = 256  # of the held-out split, every 20 updates
    config.eval.samples = 8  # responses to each

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.max_new_tokens = 1024  # solutions of GSM8K have 100 to 300
    config.sampling.slots = 64  # responses decoded side by side; the pool takes what memory is left

    config.train.questions_per_step = 64  # trees of 12 responses
    config.train.steps = 230  # about two epochs
    config.train.rows_per_step = 1  # the longest trees set the memory

    config.mesh.data = -1  # 1 on the chip above; more chips add replicas
    return config
