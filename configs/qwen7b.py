r"""Qwen2.5-7B on competition mathematics: the first run to make on a pod.

Command:   python -m ibtpo.train --config=configs/qwen7b.py --workdir=runs/qwen7b \
               --config.checkpoint.dir=gs://BUCKET/qwen7b
           on every worker of the pod at the same time (tpu_scripts/launch.sh does that; docs/tpu.md)
Model:     hf download Qwen/Qwen2.5-7B --local-dir models/Qwen2.5-7B
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  v5e:4x4 (16 chips); v5p:2x2x2 with --config.mesh.fsdp=2 --config.train.rows_per_step=2
Memory:    per chip, 90 % of the 15.75 GiB at the fullest on v5e:4x4, 40 % on v5p:2x2x2
           (python -m ibtpo.compile_check --config=configs/qwen7b.py --topology=v5e:4x4; docs/results.md)
Step:      at best 42 s of sampling and 15 s of update on v5e:4x4 (compile_check; v5p:2x2x2: about 19 s with 128 slots)
Expect:    not trained yet; the paper's nearest figure is Qwen3-8B-Base's (configs/qwen3_8b.py)
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, data and a mesh of 16 chips."""
    config = base.get_config()

    config.model.path = "models/Qwen2.5-7B"  # every worker needs it
    config.model.preset = "Qwen/Qwen2.5-7B"  # another model there is refused

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 256  # responses decoded side by side, 64 per shard of rows

    config.train.rows_per_step = 4  # one row per shard: the longest trees set the memory

    config.mesh.data = -1  # 1 on the pod above; a larger one adds replicas
    config.mesh.fsdp = 4  # parameters, optimizer state and rows
    config.mesh.tensor = 4  # divides the 28 heads and the 4 key-value heads
    return config
