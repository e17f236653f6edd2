r"""Qwen3-14B-Base on competition mathematics.

Command:   python -m ibtpo.train --config=configs/qwen3_14b.py --workdir=runs/qwen3_14b \
               --config.checkpoint.dir=gs://BUCKET/qwen3_14b
           on every worker of the pod at the same time (tpu_scripts/launch.sh does that; docs/tpu.md)
Model:     hf download Qwen/Qwen3-14B-Base --local-dir models/Qwen3-14B-Base
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  v5p:2x2x2 (8 chips); v6e:4x4 with --config.mesh.fsdp=4 --config.train.rows_per_step=4
Memory:    per chip, 91 % of the 95.7 GiB at the fullest: the pool takes what is left
           (python -m ibtpo.compile_check --config=configs/qwen3_14b.py --topology=v5p:2x2x2; docs/results.md)
Step:      at best 32 s of sampling and 27 s of update, 0.99 times the responses/s of 12 independent
Expect:    not trained yet; docs/results.md has what compiles and fits
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, data and a mesh of 8 chips."""
    config = base.get_config()

    config.model.path = "models/Qwen3-14B-Base"  # every worker needs it
    config.model.preset = "Qwen/Qwen3-14B-Base"  # another model there is refused

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 256  # responses decoded side by side, 128 per shard of rows

    config.train.rows_per_step = 2  # one row per shard: the longest trees set the memory

    config.mesh.data = -1  # 1 on the pod above; a larger one adds replicas
    config.mesh.fsdp = 2  # parameters, optimizer state and rows
    config.mesh.tensor = 4  # divides the 40 heads and the 8 key-value heads
    return config
