"""Sizes of published models: their numbers of parameters, and what transformers makes of them."""

import subprocess
import sys

import jax
import pytest
import torch
import transformers

from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.presets import PRESETS

# Of the files on the hub, tied tables counted once.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
}


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters_is_the_published_one(name):
    config = PRESETS[name]
    params = jax.tree.leaves(hf.abstract(config)[1])
    assert config.num_params == sum(x.size for x in params) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-1.7B-Base", "meta-llama/Llama-3.1-8B"])
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
