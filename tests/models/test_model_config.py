"""Which config.json are read, and how the others are refused."""

import json

import pytest

from ibtpo.models.config import ModelConfig, RopeScaling
from tests.models.reference import CASES, make_reference

_QWEN3 = dict(
    model_type="qwen3",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (dict(model_type="gemma3_text"), "model_type = 'gemma3_text'"),
        (dict(model_type="qwen3_moe"), "model_type = 'qwen3_moe'"),
        (dict(model_type="mixtral"), "model_type = 'mixtral'"),
        (dict(model_type="gemma"), "model_type = 'gemma'"),
        (dict(model_type="mistral"), "model_type = 'mistral'"),
        (dict(architectures=["Qwen3ForSequenceClassification"]), "architectures = 'Qwen3ForSequenceClassification'"),
        (dict(model_type="qwen2", architectures=["Qwen2ForRewardModel"]), "architectures = 'Qwen2ForRewardModel'"),
        (dict(compression_config={"bits": 4}), "compression_config"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
        (dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
        (dict(is_encoder_decoder=True), "is_encoder_decoder = True"),
        (dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (dict(attention_bias=True), "attention_bias = True"),
        (dict(model_type="llama", mlp_bias=True), "mlp_bias = True"),
        (dict(num_experts=8), "num_experts = 8"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(use_sliding_window=True, sliding_window=16, max_window_layers=1), "sliding_window = 16"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types = 'sliding_attention'"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling.rope_type = 'yarn'"),
        (dict(rope_scaling={"type": "linear", "factor": 4.0}), "rope_scaling.rope_type = 'linear'"),
        (dict(rope_parameters={"rope_type": "dynamic"}), "rope_parameters.rope_type = 'dynamic'"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, field):
    with pytest.raises(ValueError, match="not supported; supported: ") as error:
        ModelConfig.from_hf(_QWEN3 | change)
    assert field in str(error.value)


def test_a_missing_field_is_named():
    config = dict(_QWEN3)
    del config["hidden_size"]
    with pytest.raises(ValueError, match=r"config.json has no field 'hidden_size'"):
        ModelConfig.from_hf(config)
    with pytest.raises(ValueError, match="rope_scaling has no field 'low_freq_factor'"):
        ModelConfig.from_hf(_QWEN3 | dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}))


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of num_key_value_heads 3"):
        ModelConfig.from_hf(_QWEN3 | dict(num_key_value_heads=3))
    with pytest.raises(ValueError, match="head_dim 7 is odd"):
        ModelConfig.from_hf(_QWEN3 | dict(head_dim=7))


def test_a_window_that_covers_no_layer_is_no_window():
    ModelConfig.from_hf(_QWEN3 | dict(use_sliding_window=False, sliding_window=16))
    ModelConfig.from_hf(_QWEN3 | dict(use_sliding_window=True, sliding_window=16, max_window_layers=2))


def test_both_layouts_of_the_rotary_fields_are_read():
    llama3 = dict(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    old = ModelConfig.from_hf(_QWEN3 | dict(rope_theta=5e5, rope_scaling=llama3))
    new = ModelConfig.from_hf(_QWEN3 | dict(rope_parameters=llama3 | dict(rope_theta=5e5)))
    assert old == new
    assert old.rope_theta == 5e5 and old.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_head_dim_where_the_file_is_silent():
    assert ModelConfig.from_hf(_QWEN3).head_dim == 128
    assert ModelConfig.from_hf(_QWEN3 | dict(model_type="llama")).head_dim == 8


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_config_survives_the_round_trip(family, tied):
    config = ModelConfig.from_hf(make_reference(family, tied).config.to_dict())
    assert config.tie_embeddings == tied and config.family == family
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
