"""Sizes of published models: their numbers of parameters, and what transformers makes of them."""

import dataclasses
import subprocess
import sys

import jax
import pytest
import torch
import transformers

from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.presets import PRESETS
from tests.models.hf.forms import assert_same_logits

# Of the files on the hub, tied tables counted once.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
}


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters_is_the_published_one(name):
    config = PRESETS[name]
    params = jax.tree.leaves(hf.abstract(config)[1])
    assert config.num_params == sum(x.size for x in params) == PUBLISHED[name]


# One of each set of sizes.
DIFFERENT = {dataclasses.replace(config, max_positions=0): name for name, config in reversed(PRESETS.items())}.values()


# Groups of 3, 4 and 2 heads; heads that are wider together than the model; stretched wavelengths.
QUICK = {"HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B"}
SMALL_COPIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(DIFFERENT)]


@pytest.mark.parametrize("name", SMALL_COPIES)
def test_transformers_computes_the_same_on_a_small_copy(name, tmp_path):
    """Two layers with the model's own heads, groups and rotary wavelengths, each head an eighth of its size or less."""
    config = PRESETS[name]
    smaller = config.head_dim // 8
    scaling = config.rope_scaling
    small = dataclasses.replace(
        config,
        vocab_size=61,
        embed_dim=config.embed_dim // smaller,
        mlp_dim=48,
        num_layers=2,
        head_dim=8,
        rope_scaling=scaling and dataclasses.replace(scaling, original_max_positions=24),
        rope_theta=1e3,
        max_positions=64,
    )
    assert small.num_heads * 8 * smaller == config.num_heads * config.head_dim
    assert_same_logits(small.to_hf() | {"initializer_range": 0.3}, tmp_path)


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_transformers_makes_the_same_tensors(name):
    config = PRESETS[name]
    assert ModelConfig.from_hf(config.to_hf()) == config
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config.to_hf()), dtype=torch.bfloat16
        )
    theirs = {key: tuple(x.shape) for key, x in model.named_parameters()}
    assert theirs == hf.tensor_shapes(hf.abstract(config)[1])


def test_names_of_models_cost_no_jax(repo_root):
    """The command line reads them before anything heavy is imported."""
    code = "import sys; import ibtpo.models.presets; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo_root).returncode == 0
