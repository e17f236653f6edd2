r"""Low-rank adapters (LoRA) of Qwen3-1.7B-Base on competition mathematics, on one chip.

Command:   python -m ibtpo.train --config=configs/qwen3_1p7b_lora.py --workdir=runs/qwen3_1p7b_lora
Model:     hf download Qwen/Qwen3-1.7B-Base --local-dir models/Qwen3-1.7B-Base
Data:      DAPO-Math-17K, through the hub at the first use (docs/data.md), without the problems of four benchmarks
Topology:  v5e:1x1 (1 chip)
State:     17.4 M numbers in adapters, 0.21 GB with their moments, beside 3.44 GB of frozen bfloat16 weights
Memory:    92 % of the 15.75 GiB at the fullest, while responses are decoded; an update 57 %
           (python -m ibtpo.compile_check --config=configs/qwen3_1p7b_lora.py --topology=v5e:1x1; docs/results.md)
Step:      at best 422 s of sampling and 66 s of update
Export:    python -m ibtpo.export --config=configs/qwen3_1p7b_lora.py --workdir=runs/qwen3_1p7b_lora --out=FOLDER
           the merged model; with --adapter the adapters alone, for the PEFT library
Expect:    not trained yet
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, adapters, data and sizes for one chip."""
    config = base.get_config()

    config.model.path = "models/Qwen3-1.7B-Base"  # this folder
    config.model.preset = "Qwen/Qwen3-1.7B-Base"  # another model there is refused
    config.model.lora_rank = 16  # adapters are trained, and the model itself is frozen
    config.model.lora_alpha = 32.0  # the adapters' product times 2
    config.model.remat = "full"  # rows of 25,600 tokens on one chip

    config.optimizer.learning_rate = 1e-5  # adapters take about ten times the rate of all parameters [ours]

    config.data.source = "tfds:dapo_math_17k"  # 17 thousand problems with whole numbers for answers
    config.data.train_split = "train[256:]"  # it has no test split,
    config.data.eval_split = "train[:256]"  # so its first problems are held out
    config.data.decontaminate = "math_500,aime_2024,aime_2025,amc_2023"  # left out of training

    config.tree.lag = 1  # half the wait for other responses; 0: the paper's order. docs/results.md has what it costs

    config.sampling.slots = 32  # responses decoded side by side; the pool takes what memory is left

    config.train.rows_per_step = 1  # the longest trees set the memory

    config.mesh.data = -1  # 1 on the chip above; more chips add replicas
    return config
