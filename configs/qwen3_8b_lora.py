r"""Low-rank adapters (LoRA) of Qwen3-8B-Base on DAPO-Math-17K, on one GPU.

Command:   XLA_PYTHON_CLIENT_MEM_FRACTION=.95 \
               python -m ibtpo.train --config=configs/qwen3_8b_lora.py --workdir=runs/qwen3_8b_lora
           (JAX takes three quarters of a GPU's memory by itself, which do as well, with a smaller pool)
Model:     hf download Qwen/Qwen3-8B-Base --local-dir models/Qwen3-8B-Base
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  1 GPU of 80 GB
State:     43.6 M numbers in adapters, 0.52 GB with their moments, beside 16.4 GB of frozen bfloat16 weights; while
           responses are sampled 16.4 GB of merged ones and 13.9 GB of these laid out layer by layer; the pool takes
           what is left, 2,685 pages at .95 of 85 GB, 1,063 at three quarters
Memory:    estimated by the check at the start (ibtpo.memory); an update of shorter rows (8,832 tokens) takes 22 GB by
           the GPU compiler (docs/results.md)
Export:    python -m ibtpo.export --config=configs/qwen3_8b_lora.py --workdir=runs/qwen3_8b_lora --out=FOLDER
           the merged model; with --adapter the adapters alone, for the PEFT library
Expect:    not trained yet
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, adapters, data and sizes for one GPU."""
    config = base.get_config()

    config.model.path = "models/Qwen3-8B-Base"  # this folder
    config.model.preset = "Qwen/Qwen3-8B-Base"  # another model there is refused
    config.model.lora_rank = 16  # adapters are trained, and the model itself is frozen
    config.model.lora_alpha = 32.0  # the adapters' product times 2
    config.model.remat = "full"  # rows of 25,600 tokens on one GPU

    config.optimizer.learning_rate = 1e-5  # adapters take about ten times the rate of all parameters [ours]

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 64  # responses decoded side by side; the pool takes what memory is left

    config.train.rows_per_step = 1  # the longest trees set the memory

    config.mesh.data = -1  # 1 on the GPU above; more GPUs add replicas
    return config
