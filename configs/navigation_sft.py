"""The base model of navigation: 0.82 M parameters, from scratch, on paths of a teacher who sees the next place only.

Command:   python -m ibtpo.sft --config=configs/navigation_sft.py --workdir=runs/navigation_sft
Tokenizer: python assets/make_tokenizer.py --output assets/qwen3-navigation --bytes (before the first run)
Hardware:  two CPU cores, 20 minutes
Result:    sft/loss 0.11; 5.7 % of the responses to held-out problems are right at temperature 1, 18 % greedily; 55 %
           and 18 % fail by execution, 39 % and 63 % for want of coverage (python benchmarks/exact.py --parts=outcomes).
           The teacher without a model behind it is right in 18 of 100 paths (25 without mistakes).
"""

from ml_collections import config_dict

from configs import tiny_sft


def get_config() -> config_dict.ConfigDict:
    """tiny_sft.py with another task: the same architecture and optimizer."""
    config = tiny_sft.get_config()
    config.tokenizer = "assets/qwen3-navigation"  # a token for each byte: a text has one sequence of tokens
    config.output = "assets/qwen3-navigation"  # model directory to write, in Hugging Face layout

    config.data.source = "navigation"  # drawn as needed
    config.data.noise = 0.05  # share of steps that are mistakes
    config.data.prompt = "R: next letter. D: next number.\n{question}\n"  # as in navigation.py
    config.data.max_prompt_tokens = 112  # tokens; the longest prompt needs 96

    config.train.steps = 6_000  # updates
    config.train.row_tokens = 384  # tokens of a row, which holds three examples or so
    return config
