r"""Llama-3.1-8B-Instruct on competition mathematics, prompted by its chat template.

Command:   python -m ibtpo.train --config=configs/llama3_8b.py --workdir=runs/llama3_8b \
               --config.checkpoint.dir=gs://BUCKET/llama3_8b
           on every worker of the pod at the same time (tpu_scripts/launch.sh does that; docs/tpu.md)
Model:     hf download meta-llama/Llama-3.1-8B-Instruct --local-dir models/Llama-3.1-8B-Instruct --exclude 'original/*'
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  v5e:4x4 (16 chips)
Memory:    per chip, 92 % of the 15.75 GiB at the fullest
           (python -m ibtpo.compile_check --config=configs/llama3_8b.py --topology=v5e:4x4; docs/results.md)
Step:      at best 66 s of sampling, 1.19 times the responses/s of 12 independent, and 18 s of an update
Expect:    not trained yet; docs/results.md has what compiles and fits
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, its chat template, data and a mesh of 16 chips."""
    config = base.get_config()

    config.model.path = "models/Llama-3.1-8B-Instruct"  # every worker needs it
    config.model.preset = "meta-llama/Llama-3.1-8B-Instruct"  # another model there is refused

    config.model.remat = "full"  # what fits v5e; with the memory of a v6e or v5p, "attention" is faster

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training
    config.data.chat_template = True  # an instruction model: the question is a user turn
    # The turn ends with the text, so no line break follows it.
    config.data.prompt = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 128  # responses decoded side by side, 32 per shard of rows

    config.train.rows_per_step = 4  # one row per shard: the longest trees set the memory

    config.mesh.data = -1  # 1 on the pod above; a larger one adds replicas
    config.mesh.fsdp = 4  # parameters, optimizer state and rows
    config.mesh.tensor = 4  # divides the 32 heads and the 8 key-value heads
    return config
