"""Low-rank adapters against PyTorch with PEFT: forward, gradients, export; and what an update of them leaves alone."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from ibtpo.choices import LORA_TARGETS
from ibtpo.config import ConfigError, resolve
from ibtpo.errors import UserError
from ibtpo.losses import LossOptions
from ibtpo.models import hf, lora
from ibtpo.models.attention import tree_attend
from ibtpo.models.decoder import REMAT
from ibtpo.models.presets import PRESETS
from ibtpo.optimizer import decay_mask, make_optimizer
from ibtpo.parallel import serving
from ibtpo.state import create_state, make_log_probs, make_update
from tests.config_cases import runnable
from tests.models.reference import make_reference, random_tokens, torch_logits
from tests.test_state import CONFIG, make_decoder, random_batch

SLOW_REMATS = ("none", *(remat for remat in REMAT if remat != "elementwise"))
OPTIONS = lora.LoraOptions(rank=4, alpha=6.0)
LENGTH = 19


def random_adapters(base, options=OPTIONS, seed=1):
    """With a B that is not 0, as after some updates."""
    adapters = lora.create(base, options, jax.random.key(seed), jnp.float32)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), adapters)


def logits_of(graphdef, params, tokens, remat="none"):
    decoder = lora.decoder_of(graphdef, params)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    attend = tree_attend(jnp.full(tokens.shape, tokens.shape[1], jnp.int32))
    return decoder.logits(decoder(tokens, positions, attend, remat=remat)[0])


@pytest.fixture(scope="module")
def base(request, tmp_path_factory):
    """(folder of a random model, its graphdef and parameters)."""
    folder = tmp_path_factory.mktemp("base")
    make_reference(request.param, request.param == "qwen3").save_pretrained(folder)
    return folder, *nnx.split(hf.load(folder), nnx.Param)


def with_peft(folder, adapters, options=OPTIONS):
    """PEFT's model with our adapters in it, put there one by one."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    names = dict(q="q_proj", k="k_proj", v="v_proj", o="o_proj", gate="gate_proj", up="up_proj", down="down_proj")
    modules = [names[name] for name in options.matrices]
    config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=modules, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    found = {}
    for name, pair in adapters.layers.items():
        for layer, (a, b) in enumerate(zip(np.asarray(pair["a"]), np.asarray(pair["b"]))):
            block = model.base_model.model.model.layers[layer]
            module = getattr(block.self_attn if name in "qkvo" else block.mlp, names[name])
            module.lora_A.default.weight.data = torch.tensor(a.reshape(-1, options.rank).T.copy())
            module.lora_B.default.weight.data = torch.tensor(b.reshape(options.rank, -1).T.copy())
            found[name, layer] = module
    return model, found


# Every family and every choice of matrices; the other pairs are slow tests.
QUICK = {("qwen3", "all"), ("qwen2", "attention"), ("llama", "mlp")}
PAIRS = [
    pytest.param(family, targets, marks=() if (family, targets) in QUICK else pytest.mark.slow)
    for family in ("qwen3", "qwen2", "llama")
    for targets in LORA_TARGETS
]


@pytest.mark.parametrize(("base", "targets"), PAIRS, indirect=["base"])
def test_forward_gradients_and_exports_are_those_of_peft(base, targets, tmp_path):
    folder, graphdef, params = base
    options = lora.LoraOptions(4, 6.0, targets)
    adapters, tokens = random_adapters(params, options), random_tokens((2, LENGTH))
    weights = np.random.default_rng(2).normal(size=(2, LENGTH, params["embedding"].shape[0])).astype(np.float32)

    def loss(adapters):
        logits = logits_of(graphdef, lora.Adapted(params, adapters), tokens)
        return (weights * logits).sum(), logits

    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
    model, modules = with_peft(folder, adapters, options)
    expected = model(torch.from_numpy(tokens).long()).logits
    plain = logits_of(graphdef, params, tokens)
    scale = float(jnp.abs(plain).max())
    assert scale > 1 and float(jnp.abs(found - plain).max()) > 0.05 * scale  # the adapters do something
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5 * scale, rtol=0)
    (torch.from_numpy(weights) * expected).sum().backward()
    for (name, layer), module in modules.items():
        for ours, theirs in (("a", module.lora_A), ("b", module.lora_B)):
            wanted = theirs.default.weight.grad.numpy()
            value = np.asarray(gradient.layers[name][ours])[layer]
            value = value.reshape(wanted.shape[::-1]).T
            np.testing.assert_allclose(value, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=f"{name} {layer}")

    hf.save_adapter(adapters, options, tmp_path / "adapter", base=str(folder))
    fresh = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    read = torch_logits(peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter"), tokens)
    np.testing.assert_allclose(read, expected.detach().numpy(), atol=1e-6 * scale, rtol=0)
    merged = jax.jit(lambda p: lora.merged(p, jnp.float32))(lora.Adapted(params, adapters))
    hf.save(nnx.merge(graphdef, merged), tmp_path / "merged", tokenizer_from=None)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    np.testing.assert_allclose(torch_logits(whole, tokens), found, atol=2e-5 * scale, rtol=0)


@functools.cache
def small(dtype=jnp.float32):
    graphdef, params = make_decoder(dtype)
    return graphdef, params, random_adapters(params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_serving_copy_computes_what_is_trained_bit_for_bit(dtype):
    graphdef, params, adapters = small(dtype)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 7)).astype(np.int32)
    both = lora.Adapted(params, adapters)
    copy = jax.jit(lambda p: serving(lora.merged(p, dtype), dtype))(both)
    assert jax.tree.structure(copy) == jax.tree.structure(params)
    assert {x.dtype for x in jax.tree.leaves(copy)} == {jnp.dtype(dtype)}
    forward = jax.jit(logits_of, static_argnums=0)
    trained = forward(graphdef, both, tokens)
    np.testing.assert_array_equal(trained, forward(graphdef, copy, tokens))
    assert (np.asarray(trained) != np.asarray(forward(graphdef, params, tokens))).any()


def test_adapters_begin_as_peft_draws_them_and_change_nothing_yet():
    graphdef, params, _ = small()
    adapters = lora.create(params, OPTIONS, jax.random.key(3), jnp.float32)
    for name, pair in adapters.layers.items():
        ins = np.prod(params["layers"][name].shape[1 : 3 if name == "o" else 2])
        a = np.asarray(pair["a"])
        bound = np.sqrt(6 / ((1 + 5) * ins))  # Kaiming's of a uniform distribution, a = sqrt(5)
        assert 0.7 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 0.2 * bound
        assert not np.asarray(pair["b"]).any()
    batch = random_batch()
    log_probs = make_log_probs(graphdef, temperature=0.7, rows_per_step=2)
    np.testing.assert_array_equal(log_probs(params, batch), log_probs(lora.Adapted(params, adapters), batch))
    # An A does not depend on which other matrices have adapters; another key draws others.
    few = lora.create(params, lora.LoraOptions(4, 6.0, "mlp"), jax.random.key(3), jnp.float32)
    assert set(few.layers) == {"gate", "up", "down"}
    for name, pair in few.layers.items():
        np.testing.assert_array_equal(pair["a"][...], adapters.layers[name]["a"][...])
    other = lora.create(params, OPTIONS, jax.random.key(4), jnp.float32)
    assert (other.layers["q"]["a"][...] != adapters.layers["q"]["a"][...]).all()


def optimizer(**changes):
    defaults = dict(
        learning_rate=0.1, schedule="constant", warmup_steps=0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
        clip_norm=1.0, first_moment_dtype="float32",
    )  # fmt: skip
    return make_optimizer(ConfigDict(defaults | changes), 10)[0]


def make_state(dtype=jnp.float32, transform=None):
    _, params, adapters = small(dtype)
    copies = jax.tree.map(jnp.copy, (params, adapters))
    transform = transform or optimizer()
    return create_state(copies[0], transform, jax.random.key(1), keep_reference=True, adapters=copies[1])


@pytest.mark.parametrize("remat", ["elementwise", *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW_REMATS)])
def test_an_update_is_that_of_the_whole_gradient_and_moves_adapters_alone(remat):
    """In microbatches, against the gradient of the merged parameters by the chain rule."""
    graphdef, params, adapters = small()
    batch = random_batch().replace(ref_log_probs=np.full((4, 6), -2.4, np.float32))
    state = make_state(transform=optax.sgd(1.0))
    loss = LossOptions(kl=0.1)
    make = functools.partial(make_update, graphdef, temperature=0.7, rows_per_step=2)
    after, metrics = make(optax.sgd(1.0), loss, remat=remat)(state, batch)
    merged = jax.jit(lambda p: lora.merged(p, jnp.float32))(lora.Adapted(params, adapters))
    full = create_state(merged, optax.sgd(1.0), jax.random.key(1), keep_reference=False)
    expected, _ = make(optax.sgd(1.0), loss, donate=False)(full, batch)
    assert metrics["skipped_updates"] == (0, 1) and after.policy_version == 1
    jax.tree.map(np.testing.assert_array_equal, after.ref_params, params)
    for name, pair in adapters.layers.items():
        a, b = np.asarray(pair["a"], np.float64)[0], np.asarray(pair["b"], np.float64)[0]
        gradient = np.asarray(merged["layers"][name])[0] - np.asarray(expected.params["layers"][name])[0]
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)
        gradient = gradient.reshape(len(a), -1)
        moved = {part: np.asarray(after.params.layers[name][part])[0] - np.asarray(pair[part])[0] for part in "ab"}
        for part, wanted in (("a", gradient @ b.T), ("b", a.T @ gradient)):
            found = -moved[part].reshape(wanted.shape) / OPTIONS.scale
            np.testing.assert_allclose(found, wanted, atol=2e-6, err_msg=f"{name} {part}")
            assert np.abs(wanted).max() > 1e-5


def test_the_optimizers_state_is_of_the_adapters_alone_and_keeps_its_types():
    graphdef, params, adapters = small(jnp.bfloat16)
    state = make_state(jnp.bfloat16)
    shapes = sorted(x.shape for x in jax.tree.leaves(adapters))
    moments = sorted(x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == sorted(2 * shapes)
    mask = jax.tree.leaves(decay_mask(state.params))
    assert mask == [True] * len(shapes)
    types = jax.tree.map(lambda x: x.dtype, state)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    update = make_update(graphdef, optimizer(), LossOptions(kl=0.0), temperature=1.0, rows_per_step=2)
    batch = random_batch()
    for _ in range(2):
        state, metrics = update(state, batch)
    assert jax.tree.map(lambda x: x.dtype, state) == types and update._cache_size() == 1
    assert metrics["skipped_updates"] == (0, 1) and metrics["empty_updates"] == (0, 1)
    jax.tree.map(np.testing.assert_array_equal, state.ref_params, params)


@pytest.mark.parametrize("remat", ["elementwise", pytest.param("full", marks=pytest.mark.slow)])
def test_no_array_of_the_update_holds_the_sums_of_all_layers(remat):
    """Of a model with layers of many numbers: neither they nor their gradients are kept for the backward pass."""
    model = lora_model(num_layers=32)
    graphdef, params = hf.abstract(model)
    transform = optimizer()
    state = jax.eval_shape(lambda p: of_adapters(p, transform), params)
    update = make_update(graphdef, transform, LossOptions(kl=0.0), temperature=1.0, rows_per_step=2, remat=remat)
    compiled = update.lower(state, random_batch()).compile()
    one = 4 * model.num_layers * model.embed_dim * model.mlp_dim  # of one matrix of all layers
    assert compiled.memory_analysis().temp_size_in_bytes < one


def lora_model(**sizes):
    return dataclasses.replace(CONFIG, embed_dim=96, mlp_dim=512, **sizes)


def of_adapters(params, transform):
    adapters = lora.create(params, OPTIONS, jax.random.key(0), jnp.float32)
    return create_state(params, transform, jax.random.key(0), keep_reference=False, adapters=adapters)


def test_the_number_of_parameters_is_that_of_the_arrays():
    for model, rank in ((CONFIG, 3), (PRESETS["Qwen/Qwen3-1.7B"], 16)):
        params = hf.abstract(model)[1]
        for targets in LORA_TARGETS:
            options = lora.LoraOptions(rank, 32.0, targets)
            create = functools.partial(lora.create, options=options, key=jax.random.key(0), dtype=jnp.float32)
            made = jax.eval_shape(create, params)
            assert sum(x.size for x in jax.tree.leaves(made)) == options.num_params(model)
    # r (inputs + outputs) of the seven matrices of 28 layers
    assert lora.LoraOptions(16, 32.0).num_params(PRESETS["Qwen/Qwen3-1.7B"]) == 17_432_576


def test_a_rank_that_a_matrix_cannot_have_is_refused():
    lora.LoraOptions(4, 1.0).check(CONFIG)
    with pytest.raises(UserError, match=r"^model\.lora_rank=5 is more .* k of 8 x 4 .* set it to 4 or less, or to 0"):
        lora.LoraOptions(5, 1.0).check(CONFIG)
    lora.LoraOptions(8, 1.0, "mlp").check(CONFIG)
    with pytest.raises(UserError, match=r"^model\.lora_rank=9 is more .* gate of 8 x 8 "):
        lora.LoraOptions(9, 1.0, "mlp").check(CONFIG)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rank", -1, "a whole number of at least 0"),
        ("rank", 8.0, "a whole number"),
        ("rank", True, "a whole number"),
        ("alpha", 0.0, "a number above 0"),
        ("alpha", float("nan"), "a number above 0"),
        ("alpha", -16.0, "a number above 0"),
        ("targets", "atention", "did you mean 'attention'"),
        ("targets", "", "one of all, attention, mlp"),
    ],
)
def test_wrong_values_are_refused_by_name(key, value, words):
    with pytest.raises(ConfigError, match=rf"^model\.lora_{key}={value!r} must be .*") as error:
        resolve(runnable(**{f"model__lora_{key}": value}))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_adapters_folder_is_whole_and_never_beside_a_model(tmp_path):
    _, _, adapters = small()
    write = functools.partial(hf.save_adapter, adapters, base="Qwen/Qwen3-8B", facts={"Method": "ibtpo"})
    write(lora.LoraOptions(4, 6.5), tmp_path / "out")
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (4, 6.5, "Qwen/Qwen3-8B")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: Qwen/Qwen3-8B\n" in card and "| Method | ibtpo |" in card
    write(OPTIONS, tmp_path / "out")  # over the earlier one
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 6
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 14 and tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"].shape == (4, 8)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model holds a model \(config\.json\).*name another folder"):
        write(OPTIONS, tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: name a folder"):
        write(OPTIONS, tmp_path / "file")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"config.json"}
