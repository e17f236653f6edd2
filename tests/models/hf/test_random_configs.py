"""Random combinations of the fields of config.json: what is not refused in one line has transformers' logits."""

import copy
import random

import pytest

from ibtpo.errors import UserError
from ibtpo.models.config import ModelConfig
from tests.models.hf.forms import LLAMA3, assert_same_logits, small

_VALUES = dict(
    rope_theta=[1e3, 50, None],
    original_max_position_embeddings=[8, 16, None],
    partial_rotary_factor=[1.0, 0.5, None],
    head_dim=[8, 16, 12, None],
    num_attention_heads=[2, 4, 8],
    num_key_value_heads=[1, 2, 4, None],
    layer_types=[["full_attention"] * 2, ["full_attention"] * 3, ["sliding_attention"] * 2, None, []],
    use_sliding_window=[True, False, None],
    sliding_window=[4, 0, 64, None],
    max_window_layers=[0, 1, 2, 28, None],
    is_causal=[True, False, None],
    hidden_act=["silu", "swish", "gelu", None],
    attention_bias=[True, False, None],
    mlp_bias=[True, False],
    tie_word_embeddings=[True, False, None],
    rms_norm_eps=[1e-2, 1e-6, None],
    max_position_embeddings=[16, 64, None],
    per_layer_config=[None, {}],
)


def random_rope(draw: random.Random):
    """An object of rotary fields, whole or not, or something else."""
    rope = {}
    if draw.random() < 0.6:
        rope[draw.choice(["rope_type", "type"])] = draw.choice(["default", "llama3", "llama3", "linear", "yarn", None])
    if draw.random() < 0.3:
        rope["type"] = draw.choice(["default", "llama3"])
    if draw.random() < 0.5:
        rope |= {name: value for name, value in LLAMA3.items() if name != "rope_type" and draw.random() < 0.95}
    if draw.random() < 0.4:
        rope["rope_theta"] = draw.choice([1e3, 50.0, 1e3, None, "5"])
    if draw.random() < 0.1:
        rope["partial_rotary_factor"] = draw.choice([1.0, 0.5, None])
    return draw.choice([rope, rope, rope, rope, {"full_attention": rope}, {}, None, [], "linear"])


def random_form(seed: int) -> dict:
    draw = random.Random(seed)
    config = small(draw.choice(["llama", "qwen2", "qwen3"]))
    for name in draw.sample(sorted(_VALUES), draw.randint(0, 3)):
        config[name] = draw.choice(_VALUES[name])
    for name in ("rope_scaling", "rope_parameters"):
        if draw.random() < 0.5:
            config[name] = random_rope(draw)
    return config


def accepted(seed: int) -> bool:
    try:
        ModelConfig.from_hf(copy.deepcopy(random_form(seed)))
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return True


ACCEPTED = [seed for seed in range(120) if accepted(seed)]


def test_some_are_refused_and_some_are_not():
    assert 20 < len(ACCEPTED) < 100


@pytest.mark.parametrize("seed", ACCEPTED)
def test_what_is_accepted_is_computed_as_transformers_does(seed, tmp_path):
    assert_same_logits(random_form(seed), tmp_path)
