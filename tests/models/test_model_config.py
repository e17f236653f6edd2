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
_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
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
        # What transformers looks up by name wherever it finds it.
        (dict(is_causal=False), "is_causal = False"),
        (dict(is_causal=None), "is_causal = None"),
        (dict(per_layer_config={"0": {"skip": ["mlp"]}}), "per_layer_config"),
        (dict(text_config=dict(hidden_size=64)), "text_config"),
        (dict(transformers_weights="other.safetensors"), "transformers_weights = 'other.safetensors'"),
        (dict(attention_chunk_size=8), "attention_chunk_size = 8"),
        (dict(quantization={"bits": 4}), "quantization"),
        (dict(auto_map={"AutoModelForCausalLM": "modeling.Qwen3ForCausalLM"}), "auto_map"),
        (dict(embedding_multiplier=12.0), "embedding_multiplier = 12.0"),
        (dict(architectures="Qwen3ForCausalLM"), "architectures = 'Qwen3ForCausalLM'"),
        (dict(model_type=["qwen3"]), "model_type = ['qwen3']"),
        # Wrong types and null where transformers fails or takes it for another value.
        (dict(num_hidden_layers="2"), "num_hidden_layers = '2'"),
        (dict(num_hidden_layers=2.0), "num_hidden_layers = 2.0"),
        (dict(num_hidden_layers=True), "num_hidden_layers = True"),
        (dict(num_attention_heads=0), "num_attention_heads = 0"),
        (dict(num_key_value_heads=0), "num_key_value_heads = 0"),
        (dict(num_key_value_heads="2"), "num_key_value_heads = '2'"),
        (dict(vocab_size=None), "vocab_size = None"),
        (dict(hidden_size=[32]), "hidden_size = [32]"),
        (dict(intermediate_size=-1), "intermediate_size = -1"),
        (dict(max_position_embeddings=None), "max_position_embeddings = None"),
        (dict(max_position_embeddings=1e4), "max_position_embeddings = 10000.0"),
        (dict(rms_norm_eps=None), "rms_norm_eps = None"),
        (dict(rms_norm_eps="1e-6"), "rms_norm_eps = '1e-6'"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
        (dict(vocab_size=2**70), "vocab_size = 1180591620717411303424"),
        (dict(rope_theta=10**400), "rope_theta = 1000000"),
        (dict(head_dim=None), "head_dim = None"),
        (dict(head_dim=8.0), "head_dim = 8.0"),
        (dict(model_type="qwen2", head_dim=None), "head_dim = None"),
        (dict(model_type="llama", num_attention_heads=5, num_key_value_heads=5), "hidden_size = 32"),
        (dict(model_type="qwen2", num_attention_heads=5, num_key_value_heads=5), "hidden_size = 32"),
        (dict(tie_word_embeddings=None), "tie_word_embeddings = None"),
        (dict(tie_word_embeddings="true"), "tie_word_embeddings = 'true'"),
        (dict(hidden_act=None), "hidden_act = None"),
        (dict(attention_bias=None), "attention_bias = None"),
        # Rotary fields.
        (dict(rope_theta=None), "rope_theta = None"),
        (dict(rope_theta="1e6"), "rope_theta = '1e6'"),
        (dict(rope_theta=0), "rope_theta = 0"),
        (dict(rope_parameters={"rope_theta": None}), "rope_parameters.rope_theta = None"),
        (dict(rope_scaling="linear"), "rope_scaling = 'linear'"),
        (dict(rope_parameters=["llama3"]), "rope_parameters = ['llama3']"),
        (dict(rope_parameters={"full_attention": {"rope_theta": 1e6}}), "rope_parameters.full_attention"),
        (dict(rope_parameters={"rope_theta": 1e6, "factor": 4.0}), "rope_parameters.factor = 4.0"),
        (dict(rope_parameters={"partial_rotary_factor": 0.5}), "rope_parameters.partial_rotary_factor = 0.5"),
        (
            dict(rope_scaling={"type": "yarn", "factor": 4.0}, rope_parameters={"rope_type": "default"}),
            "rope_scaling.rope_type = 'yarn'",
        ),
        (dict(rope_scaling=_LLAMA3 | dict(factor=None)), "rope_scaling.factor = None"),
        (dict(rope_scaling=_LLAMA3 | dict(high_freq_factor=1.0)), "rope_scaling.low_freq_factor = 1.0"),
        (dict(rope_scaling=_LLAMA3 | dict(attention_factor=1.2)), "rope_scaling.attention_factor = 1.2"),
        (
            dict(rope_scaling=_LLAMA3 | dict(original_max_position_embeddings=None)),
            "rope_scaling.original_max_position_embeddings = None",
        ),
        (dict(rope_scaling=_LLAMA3, original_max_position_embeddings=None), "original_max_position_embeddings = None"),
        # Windows.
        (dict(layer_types=["full_attention"] * 3), "layer_types (3 entries)"),
        (dict(layer_types="full_attention"), "layer_types = 'full_attention'"),
        (dict(layer_types=[]), "layer_types (0 entries)"),
        (dict(layer_types=["linear_attention"] * 2), "layer_types = 'linear_attention'"),
        (dict(use_sliding_window=True, max_window_layers=0), "sliding_window = 4096"),
        (dict(use_sliding_window=True, max_window_layers=0, sliding_window=0), "sliding_window = 0"),
        (dict(use_sliding_window=True, max_window_layers=None), "max_window_layers = None"),
        (dict(use_sliding_window="false"), "use_sliding_window = 'false'"),
        (dict(model_type="llama", sliding_window=16), "sliding_window = 16"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, field):
    with pytest.raises(ValueError, match="not supported; supported: ") as error:
        ModelConfig.from_hf(_QWEN3 | change)
    assert field in str(error.value) and "\n" not in str(error.value)


def test_a_missing_field_is_named():
    config = dict(_QWEN3)
    del config["hidden_size"]
    with pytest.raises(ValueError, match=r"config.json has no field 'hidden_size'"):
        ModelConfig.from_hf(config)
    with pytest.raises(ValueError, match="rope_scaling has no field 'low_freq_factor'"):
        ModelConfig.from_hf(_QWEN3 | dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}))


def test_two_places_for_theta_must_agree():
    both = dict(rope_scaling=_LLAMA3, rope_parameters=dict(rope_type="default", rope_theta=5e5))
    assert ModelConfig.from_hf(_QWEN3 | both | dict(rope_theta=5e5)).rope_theta == 5e5
    # transformers would take its default, 10000, although the file names a theta.
    message = r"rope_theta is 10000\.0, but rope_parameters\.rope_theta = 500000\.0: write all"
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(_QWEN3 | both)


def test_qwen_must_name_its_kv_heads():
    """transformers' default of 32 is no size of a small file's model; null and Llama's default are the heads."""
    silent = {name: value for name, value in _QWEN3.items() if name != "num_key_value_heads"}
    with pytest.raises(ValueError, match="no field 'num_key_value_heads'"):
        ModelConfig.from_hf(silent)
    assert ModelConfig.from_hf(silent | dict(num_key_value_heads=None)).num_kv_heads == 4
    assert ModelConfig.from_hf(silent | dict(model_type="llama")).num_kv_heads == 4


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="num_attention_heads 4 is not a multiple of num_key_value_heads 3"):
        ModelConfig.from_hf(_QWEN3 | dict(num_key_value_heads=3))
    with pytest.raises(ValueError, match="head_dim 7 is odd"):
        ModelConfig.from_hf(_QWEN3 | dict(head_dim=7))


def test_a_window_that_covers_no_layer_is_no_window():
    ModelConfig.from_hf(_QWEN3 | dict(use_sliding_window=False, sliding_window=16))
    ModelConfig.from_hf(_QWEN3 | dict(use_sliding_window=True, sliding_window=16, max_window_layers=2))


def test_both_layouts_of_the_rotary_fields_are_read():
    old = ModelConfig.from_hf(_QWEN3 | dict(rope_theta=5e5, rope_scaling=_LLAMA3))
    new = ModelConfig.from_hf(_QWEN3 | dict(rope_parameters=_LLAMA3 | dict(rope_theta=5e5)))
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
