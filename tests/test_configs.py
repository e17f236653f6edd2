"""The configs of published models: complete, and split in a way that the model and the pod allow."""

import ast
import itertools
import math
import re

import pytest

from ibtpo import config as config_lib
from ibtpo.models.lora import LoraOptions
from ibtpo.models.presets import PRESETS

# Chips of the topology that each docstring names first.
CHIPS = {
    "qwen7b": 16, "qwen3_1p7b": 8, "qwen3_8b": 16, "qwen3_14b": 8, "llama3_8b": 16,
    "qwen3_1p7b_lora": 1, "qwen3_8b_lora": 1, "qwen3_0p6b": 1,
}  # fmt: skip


@pytest.fixture(params=CHIPS)
def name(request):
    return request.param


@pytest.fixture
def file(name, repo_root):
    return repo_root / "configs" / f"{name}.py"


@pytest.fixture
def config(file):
    return config_lib.resolve(config_lib.load(str(file)))


def test_the_mesh_splits_the_model_and_fills_the_pod(name, config):
    model, mesh = PRESETS[config.model.preset], config.mesh
    # What a mesh axis does not divide stays whole on every device of it, which these models do not fit.
    for size in (model.num_heads, model.num_kv_heads, model.mlp_dim, model.vocab_size):
        assert size % mesh.tensor == 0
    assert model.embed_dim % mesh.fsdp == 0
    assert mesh.data == -1 and CHIPS[name] % (mesh.fsdp * mesh.tensor) == 0
    shards = CHIPS[name] // mesh.tensor
    for count in (config.sampling.slots, config.sampling.questions_in_flight, config.train.rows_per_step):
        assert count % shards == 0
    assert config.data.max_prompt_tokens + config.sampling.max_new_tokens <= model.max_positions


def test_the_folder_is_that_of_the_preset_and_half_precision_is_for_activations(config):
    assert config.model.path == "models/" + config.model.preset.split("/")[1]
    assert (config.model.dtype, config.model.param_dtype) == ("bfloat16", "float32") and config.model.remat != "none"
    assert config.data.chat_template == config.model.preset.endswith("-Instruct")


def test_the_docstring_says_what_to_type_and_where(name, file, config):
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert f"python -m ibtpo.train --config=configs/{name}.py --workdir=runs/{name}" in text
    assert f"hf download {config.model.preset} --local-dir {config.model.path}" in text
    topology = re.search(r"Topology: +(?:v\d\w+:|(?=\d GPU))(\S+) ", text)[1]
    # JAX's names of the two-dimensional topologies give the chips, as those of the three-dimensional ones do.
    assert math.prod(map(int, topology.split("x"))) == CHIPS[name]


def test_every_value_is_commented(file):
    for above, line in itertools.pairwise(file.read_text().splitlines()):
        if re.match(r"    \w+(\.\w+)+ = ", line):
            assert "  # " in line or above.strip().startswith("#"), line


@pytest.mark.parametrize("name", ["qwen3_1p7b_lora", "qwen3_8b_lora"])
def test_the_docstring_has_the_numbers_of_the_adapters(name, repo_root):
    file = repo_root / "configs" / f"{name}.py"
    config = config_lib.resolve(config_lib.load(str(file)))
    model, adapters = PRESETS[config.model.preset], LoraOptions.from_config(config.model)
    adapters.check(model)
    number, text = adapters.num_params(model), ast.get_docstring(ast.parse(file.read_text()))
    # Themselves and two moments, in float32; the base in bfloat16.
    assert f"{number / 1e6:.1f} M numbers in adapters, {12 * number / 1e9:.2f} GB with their moments" in text
    assert f"{2 * model.num_params / 1e9:.3g} GB of frozen bfloat16 weights" in text


def test_the_papers_settings(repo_root):
    config = config_lib.resolve(config_lib.load(str(repo_root / "configs" / "qwen3_8b.py")))
    tree, sampling = config.tree, config.sampling
    assert (tree.initial, tree.rounds, tree.top_k, tree.branch, tree.beta) == (4, 9, 1, 1, 5.0)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.95, 20, 2048)
    assert (config.optimizer.learning_rate, config.loss.kl, config.loss.ib_weight) == (1e-6, 0.001, 0.1)


@pytest.mark.parametrize("method", config_lib.METHODS)
def test_a_method_is_the_same_whatever_the_config(file, method):
    flat = config_lib.flatten(config_lib.load(str(file))) | {"method": method}
    resolved = config_lib.flatten(config_lib.resolve(config_lib.unflatten(flat)))
    assert {key: resolved[key] for key in config_lib.METHODS[method]} == config_lib.METHODS[method]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("data.system_prompt", "Think.", "data.chat_template=True"),
        ("model.preset", "qwen/qwen3-8b-bas", "did you mean 'Qwen/Qwen3-8B-Base'"),
        ("sampling.stop_tokens", "<|im_end|>,", "separated by commas"),
    ],
)
def test_what_goes_with_no_model_is_refused_before_one_is_read(repo_root, key, value, hint):
    flat = config_lib.flatten(config_lib.load(str(repo_root / "configs" / "qwen7b.py"))) | {key: value}
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.resolve(config_lib.unflatten(flat))
    assert f"{key}={value!r}" in str(error.value) and hint in str(error.value)
