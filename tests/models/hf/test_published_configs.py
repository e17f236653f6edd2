"""Published forms of config.json, as copies with two small layers: transformers' logits, or a refusal by name."""

import inspect
import json
import pathlib
import re

import numpy as np
import pytest
import transformers
from transformers import cache_utils, masking_utils, modeling_rope_utils
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.config_json import COMPUTED, NO_EFFECT, REQUIRED
from tests.models.hf.folders import logits
from tests.models.hf.forms import LLAMA3, assert_same_logits, make_folder, make_model, small
from tests.models.reference import random_tokens, torch_logits

PUBLISHED = json.loads((pathlib.Path(__file__).parent / "published_configs.json").read_text())
REFUSED = {
    "Qwen2.5-7B+README yarn": "rope_scaling.rope_type = 'yarn'",
    "tf5 + README yarn in rope_scaling": "rope_scaling.rope_type = 'yarn'",
    "tf5 default + rope_scaling linear": "rope_scaling.rope_type = 'linear'",
    "Qwen3-8B-AWQ": "quantization_config = ",
    "Qwen3 README yarn": "rope_scaling.rope_type = 'yarn'",
    "Qwen3 head_dim null": "head_dim = None",
    "Qwen3 layer_types sliding": "sliding_window = 4",
    "Qwen3 layer_types in file, sliding": "layer_types = 'sliding_attention'",
    "Qwen2 use_sliding max_window_layers null": "max_window_layers = None",
    "Qwen2 rope_theta null": "rope_theta = None",
    "Qwen2 rms_norm_eps null": "rms_norm_eps = None",
    "Qwen2 tie null": "tie_word_embeddings = None",
    "Qwen2 is_causal false (gte-Qwen2-1.5B)": "is_causal = False",
    "Qwen3 use_bidirectional_attention": "use_bidirectional_attention = True",
    "Qwen2 partial_rotary in rope_parameters": "rope_parameters.partial_rotary_factor = 0.5",
    "deepseek-math-7b/coder linear rope": "rope_scaling.rope_type = 'linear'",
    "Phi-4": "model_type = 'phi3'",
    "Gemma-3-1b": "model_type = 'gemma3_text'",
    "Qwen2.5-Math-PRM": "architectures = 'Qwen2ForProcessRewardModel'",
    "Skywork-Reward-Llama": "architectures = 'LlamaForSequenceClassification'",
    "hidden_act gelu": "hidden_act = 'gelu'",
    "bitnet-style quant": "quantization_config = ",
    "rope mrope section": "rope_scaling.rope_type = 'mrope'",
    "rope_scaling dynamic": "rope_scaling.rope_type = 'dynamic'",
    "rope_scaling string": "rope_scaling = 'linear'",
    "rope_parameters nested, linear": "rope_parameters.full_attention = ",
    "llama attention_multiplier etc": "attention_multiplier = 0.01",
    "num_hidden_layers string": "num_hidden_layers = '2'",
}
COMPUTED_NAMES = [name for name in PUBLISHED if name not in REFUSED]


def shrink(config: dict) -> dict:
    """The same fields with two small layers. Lengths that scale the rotary wavelengths stay in proportion."""
    small = json.loads(json.dumps(config))
    layers = int(config["num_hidden_layers"])
    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    sizes |= dict(num_hidden_layers=2, head_dim=16, max_position_embeddings=64, initializer_range=0.3)
    for name, size in sizes.items():
        if small.get(name) is not None:
            small[name] = str(size) if isinstance(small[name], str) else size
    if config.get("num_key_value_heads") == config["num_attention_heads"]:
        small["num_key_value_heads"] = 4
    if config.get("max_window_layers") is not None:
        small["max_window_layers"] = config["max_window_layers"] * 2 // layers
    if config.get("layer_types"):
        small["layer_types"] = config["layer_types"][:2]
    for rope in (small, small.get("rope_scaling"), small.get("rope_parameters")):
        if isinstance(rope, dict) and "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] //= 256
    return small | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


@pytest.mark.parametrize("name", COMPUTED_NAMES)
def test_computed_as_transformers_does(name, tmp_path):
    assert_same_logits(shrink(PUBLISHED[name]), tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shrink(PUBLISHED[name])))
    with pytest.raises(UserError) as error:
        hf.read_config(tmp_path)
    assert REFUSED[name] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "family, changes",
    [
        # The rotary fields: which object is taken, and where what is not in it comes from.
        ("llama", dict(rope_scaling=LLAMA3, rope_parameters=dict(type="default", rope_theta=5e5), rope_theta=5e5)),
        ("qwen3", dict(rope_scaling=dict(rope_type="default"), rope_parameters=LLAMA3, rope_theta=1e3)),
        ("qwen2", dict(rope_scaling={}, rope_parameters=dict(rope_theta=1e3), rope_theta=1e6)),
        ("qwen3", dict(rope_parameters=dict(type="llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_type"}))),
        ("llama", dict(rope_scaling=LLAMA3 | dict(type="yarn"), rope_theta=1e3)),
        ("llama", dict(rope_parameters=LLAMA3, original_max_position_embeddings=8, rope_theta=1e3)),
        ("qwen2", dict(rope_scaling=LLAMA3, original_max_position_embeddings=8, rope_theta=1e3)),
        ("llama", dict(original_max_position_embeddings=8, rope_theta=1e3)),
        (
            "llama",
            dict(
                rope_scaling={k: v for k, v in LLAMA3.items() if not k.startswith("original")},
                rope_theta=1e3,
                max_position_embeddings=48,
            ),
        ),
        ("llama", dict(rope_theta=1e3, rope_scaling=LLAMA3 | dict(rope_theta=50.0))),
        # Windows: the kinds of the layers come first, and the last layers are those that have one.
        ("qwen3", dict(use_sliding_window=True, sliding_window=4, layer_types=["full_attention"] * 2)),
        ("qwen2", dict(use_sliding_window=True, sliding_window=4)),
        ("qwen3", dict(use_sliding_window=True, sliding_window=None, max_window_layers=0)),
        ("llama", dict(use_sliding_window=True, sliding_window=4, layer_types=["full_attention"] * 2)),
        # Heads.
        ("qwen2", dict(head_dim=12)),
        ("llama", dict(head_dim=None, num_key_value_heads=None)),
        ("qwen3", dict(num_key_value_heads=None)),
        ("qwen3", dict(hidden_act="swish", is_causal=True, partial_rotary_factor=None, per_layer_config=None)),
    ],
)
def test_forms_not_published_are_computed_as_transformers_does(family, changes, tmp_path):
    assert_same_logits(small(family) | changes, tmp_path)


def test_lengths_of_the_published_fields_matter(tmp_path):
    """What the comparisons above rest on: another theta or original length is another model."""
    config = small("llama") | dict(rope_scaling=LLAMA3, rope_theta=1e3)
    make_folder(config, tmp_path)
    tokens, base = random_tokens((2, 40)), None
    for changes in ({}, dict(original_max_position_embeddings=8), dict(rope_theta=1e4), dict(rope_scaling=None)):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        found = logits(hf.load(tmp_path), tokens)
        assert base is None or np.abs(found - base).max() > 1e-2 * np.abs(base).max()
        base = found if base is None else base


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_fields_said_to_have_no_effect_have_none(family):
    numbers = dict(attention_dropout=0.5, pretraining_tp=2, chunk_size_feed_forward=2, initializer_range=0.01)
    tokens = dict(bos_token_id=3, eos_token_id=[4, 5], pad_token_id=6, sep_token_id=7)
    flags = dict(use_cache=False, return_dict=True, output_hidden_states=True, tie_last_hidden_states=True)
    others = dict(torch_dtype="float32", num_labels=3, problem_type="regression", init_std=0.1, initializer_factor=2.0)
    changes = numbers | tokens | flags | others
    assert set(changes) < NO_EFFECT
    base, changed = make_model(small(family)), make_model(small(family) | changes)
    changed.load_state_dict(base.state_dict())
    np.testing.assert_array_equal(*(torch_logits(model, random_tokens((2, 40))) for model in (base, changed)))


# ---------------------------------------------------------------- the lists of fields against transformers' own code

_CLASSES = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
_MODULES = [modeling_llama, modeling_qwen2, modeling_qwen3, masking_utils, modeling_rope_utils]
# Attributes of a configuration object that are no fields of the file.
_METHODS = {
    "standardize_rope_params",
    "get_text_config",
    "_attn_implementation",
    "_rope_type_labels",
    "is_heterogeneous",
    "_name_or_path",
    "validate_rope",
    "default_theta",
    "ignore_keys_at_rope_validation",
}


def test_every_field_that_transformers_reads_is_in_one_list():
    lists = [COMPUTED, NO_EFFECT, set(REQUIRED)]
    assert len(COMPUTED | NO_EFFECT | set(REQUIRED)) == sum(map(len, lists)), "a field is in two lists"
    read = {name for make in _CLASSES.values() for name in make().to_dict()}
    for make in _CLASSES.values():
        read |= set(inspect.signature(make).parameters)
    initialiser = inspect.getsource(transformers.PreTrainedConfig.__post_init__)
    read |= set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', initialiser))
    read |= set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', inspect.getsource(modeling_rope_utils)))
    for place in [*_MODULES, cache_utils.DynamicCache, cache_utils.get_layer_types_and_kwargs]:
        read |= set(re.findall(r'\bconfig(?:\.(?!json)|, ")(\w+)', inspect.getsource(place)))
    read |= set(re.findall(r'hasattr\(self, "(\w+)"', inspect.getsource(modeling_rope_utils)))
    unknown = read - COMPUTED - NO_EFFECT - set(REQUIRED) - _METHODS
    assert not unknown
