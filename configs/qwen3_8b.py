r"""Qwen3-8B-Base on DAPO-Math-17K with the paper's settings (arXiv 2605.28109).

Command:   python -m ibtpo.train --config=configs/qwen3_8b.py --workdir=runs/qwen3_8b \
               --config.checkpoint.dir=gs://BUCKET/qwen3_8b
           on every worker of the pod at the same time (tpu_scripts/launch.sh does that; docs/tpu.md)
Model:     hf download Qwen/Qwen3-8B-Base --local-dir models/Qwen3-8B-Base
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  v5e:4x4 or v6e:4x4 (16 chips)
Memory:    per chip, 92 % of the HBM at the fullest on v5e:4x4, 91 % on v6e:4x4: the pool takes what is left
           (python -m ibtpo.compile_check --config=configs/qwen3_8b.py --topology=v5e:4x4; docs/results.md)
Step:      at best 72 s of sampling and 17 s of update on v5e:4x4, 1.12 times the responses/s of 12 independent
Expect:    not trained yet; the paper reports avg@32 of 83.3 on MATH-500 and 15.3 on AIME 25 (GRPO: 81.5 and 13.6)
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, data and a mesh of 16 chips."""
    config = base.get_config()

    config.model.path = "models/Qwen3-8B-Base"  # every worker needs it
    config.model.preset = "Qwen/Qwen3-8B-Base"  # another model there is refused

    config.model.remat = "full"  # what fits v5e; with the memory of a v6e or v5p, "attention" is faster

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training

    # [paper], all of this block; base.py agrees, and these stay if it should change. What a method decides (the tree,
    # loss.kl) is left to config.method: a value set here would hold for every method.
    config.tree.beta = 5.0  # weight of the information term
    config.sampling.temperature = 0.7  # no other value is tried
    config.sampling.top_p = 0.95  # nucleus
    config.sampling.top_k = 20  # tokens
    config.sampling.max_new_tokens = 2048  # per response
    config.loss.ib_weight = 0.1  # lambda
    config.optimizer.learning_rate = 1e-6  # constant

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 128  # responses decoded side by side, 32 per shard of rows

    config.train.rows_per_step = 4  # one row per shard: the longest trees set the memory

    config.mesh.data = -1  # 1 on the pod above; a larger one adds replicas
    config.mesh.fsdp = 4  # parameters, optimizer state and rows
    config.mesh.tensor = 4  # divides the 32 heads and the 8 key-value heads
    return config
