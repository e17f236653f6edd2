"""A configuration and a model whose programs compile in seconds."""

from configs import tiny
from ibtpo.config import resolve
from ibtpo.models.config import ModelConfig

MODEL = ModelConfig("qwen3", 256, 64, 128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, qk_norm=True)


def small(**changes):
    """tiny.py with sizes that compile in seconds."""
    config = tiny.get_config()
    config.data.max_prompt_tokens = 16
    config.sampling.max_new_tokens = 16
    config.sampling.slots, config.sampling.page_size, config.sampling.chunk = 4, 16, 4
    config.sampling.questions_in_flight = 2
    config.train.row_tokens = 0
    config.train.questions_per_step, config.train.rows_per_step = 4, 2
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return resolve(config)
