"""The decoder against transformers/PyTorch: full forward, and prefill + decode through a dense cache."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.models import hf, rope
from ibtpo.models.attention import tree_attend
from ibtpo.models.config import ModelConfig, RopeScaling
from ibtpo.models.decoder import Decoder
from tests.models.reference import make_reference, random_tokens, torch_gradients, torch_greedy, torch_logits

# Every family, and tied and untied embeddings, which no family treats in a way of its own.
CASES = [("qwen3", False), ("qwen3", True), ("qwen2", True), ("llama", False)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def pair(request, tmp_path_factory):
    """(PyTorch model, our decoder) with the same weights."""
    model = make_reference(*request.param)
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    return model, hf.load(path)


def test_full_forward_matches_transformers(pair):
    model, decoder = pair
    tokens = random_tokens((2, 41))
    positions = np.tile(np.arange(41, dtype=np.int32), (2, 1))
    ends = np.full_like(tokens, 41)

    def attend(q, k, v, layer, cache):
        return tree_attention(q, k, v, ends, block=16), cache

    @jax.jit
    def forward(tokens):
        return decoder.logits(decoder(tokens, positions, attend)[0])

    expected = torch_logits(model, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(forward(tokens), expected, atol=1e-4, rtol=0)


def _dense_cache_attend(length):
    """attend through a cache (k, v) of [L, B, S, K, Dh]; `length` tokens are there already."""

    def attend(q, k, v, layer, cache):
        def write(stored, new):
            return jax.lax.dynamic_update_slice(stored, new[None], (layer, 0, length, 0, 0))

        cache = (write(cache[0], k), write(cache[1], v))
        keys, values = (jnp.repeat(c[layer], q.shape[2] // k.shape[2], axis=2) for c in cache)
        scores = jnp.einsum("bihx,bjhx->bhij", q, keys, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
        visible = jnp.arange(keys.shape[1]) <= length + jnp.arange(q.shape[1])[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhij,bjhx->bihx", weights.astype(q.dtype), values), cache

    return attend


def test_prefill_and_decode_match_transformers(pair):
    model, decoder = pair
    config = decoder.config
    B, S, prompt = 2, 33, 20  # past Llama's original 24 positions
    tokens = random_tokens((B, S), seed=1)
    expected = torch_logits(model, tokens)
    cache = (jnp.zeros((config.num_layers, B, S, config.num_kv_heads, config.head_dim)),) * 2

    @jax.jit
    def forward(tokens, length, cache):
        positions = length + jnp.tile(jnp.arange(tokens.shape[1]), (B, 1))
        hidden, cache = decoder(tokens, positions, _dense_cache_attend(length), cache)
        return decoder.logits(hidden), cache

    logits, cache = forward(tokens[:, :prompt], 0, cache)
    got = [logits]
    for i in range(prompt, S):
        logits, cache = forward(tokens[:, i : i + 1], i, cache)
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, axis=1), expected, atol=1e-4, rtol=0)


def _dense_attend(q, k, v, layer, cache):
    """Causal attention over the tokens of the call itself, no cache."""
    empty = jnp.zeros((1, *k.shape), k.dtype)
    return _dense_cache_attend(0)(q, k, v, 0, (empty, empty))[0], cache


def _greedy(decoder, prompts, count):
    """Most probable continuations [B, count] of prompts [B, T] by prefill and cached decoding, and the smallest
    distance [B] between the best logit and the next on the way."""
    config = decoder.config
    B, T = prompts.shape
    cache = (jnp.zeros((config.num_layers, B, T + count, config.num_kv_heads, config.head_dim), decoder.dtype),) * 2

    def step(tokens, length, cache):
        positions = length + jnp.tile(jnp.arange(tokens.shape[1]), (B, 1))
        hidden, cache = decoder(tokens, positions, _dense_cache_attend(length), cache)
        best, token = jax.lax.top_k(decoder.logits(hidden[:, -1]), 2)
        return token[:, 0], best[:, 0] - best[:, 1], cache

    def body(carry, length):
        token, cache = carry
        new, margin, cache = step(token[:, None], length, cache)
        return (new, cache), (new, margin)

    @jax.jit
    def generate(prompts, cache):
        first, margin, cache = step(prompts, 0, cache)
        _, (tokens, margins) = jax.lax.scan(body, (first, cache), T + jnp.arange(count - 1))
        return jnp.c_[first, tokens.T], jnp.minimum(margin, margins.min(0))

    return jax.tree.map(np.asarray, generate(prompts, cache))


def test_greedy_continuations_are_those_of_transformers(pair):
    model, decoder = pair
    prompts = random_tokens((12, 9), seed=2)
    tokens, margins = _greedy(decoder, prompts, 64)
    # Two logits closer than rounding may swap; such prompts decide nothing.
    clear = margins > 1e-3
    assert clear.sum() >= 6
    assert len({tuple(row) for row in tokens[clear]}) == clear.sum()
    assert np.mean([len(set(row)) for row in tokens[clear].tolist()]) > 4  # not one token for ever
    expected = torch_greedy(model, prompts, 64)
    np.testing.assert_array_equal(tokens[clear], expected[clear])


def test_bfloat16_is_as_close_to_float32_as_pytorchs(pair):
    """In bfloat16 (8 bits of mantissa) both err; the root mean square of our error stays below 1.25 times PyTorch's
    own and below 5 % of that of the logits."""
    model, decoder = pair
    tokens = random_tokens((4, 41), seed=3)
    exact = torch_logits(model, tokens)
    theirs = torch_logits(copy.deepcopy(model).to(torch.bfloat16), tokens)
    _, params = nnx.split(decoder, nnx.Param)
    half = Decoder(decoder.config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.float32)
    half = nnx.merge(nnx.split(half, nnx.Param)[0], params)
    positions = np.tile(np.arange(41, dtype=np.int32), (4, 1))
    ours = jax.jit(lambda tokens: half.logits(half(tokens, positions, _dense_attend)[0]))(tokens)

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    assert 0 < rms(ours - exact) < 1.25 * rms(theirs - exact)
    assert rms(ours - exact) < 0.05 * rms(exact)


def test_gradients_of_the_log_probability_match_pytorch(pair):
    """d/d(parameter) of the mean log-probability of given tokens: within 1e-3 (relative L2) for every tensor."""
    model, decoder = pair
    tokens = random_tokens((3, 33), seed=4)
    expected = torch_gradients(model, tokens)
    graphdef, params = nnx.split(decoder, nnx.Param)
    positions = np.tile(np.arange(32, dtype=np.int32), (3, 1))

    @jax.jit
    @jax.grad
    def gradient(params):
        decoder = nnx.merge(graphdef, params)
        logits = decoder.logits(decoder(tokens[:, :-1], positions, _dense_attend)[0])
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).mean()

    found = dict(hf.tensors(gradient(params)))
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        size = np.linalg.norm(theirs)
        assert size > 0, name
        assert np.linalg.norm(found[name] - theirs) <= 1e-3 * size, name


def _tiny(**changes) -> ModelConfig:
    sizes = dict(vocab_size=11, embed_dim=8, mlp_dim=12, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4)
    return ModelConfig(family="qwen3", qk_norm=True, **sizes | changes)


@pytest.mark.parametrize("remat", ["elementwise", "attention", "full"])
def test_remat_changes_no_gradient(remat):
    graphdef, params = nnx.split(Decoder(_tiny(), rngs=nnx.Rngs(0)), nnx.Param)
    tokens = np.arange(10, dtype=np.int32)[None] % 11
    ends = np.full_like(tokens, 10)

    def loss(params, remat):
        decoder = nnx.merge(graphdef, params)
        attend = lambda q, k, v, layer, cache: (tree_attention(q, k, v, ends), cache)  # noqa: E731
        hidden, _ = decoder(tokens, np.arange(10)[None], attend, remat=remat)
        return (decoder.logits(hidden) ** 2).sum()

    plain, rematted = (jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", remat))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rematted), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_compute_and_parameter_dtypes_are_kept_apart():
    decoder = Decoder(_tiny(), rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(decoder))} == {jnp.dtype("float32")}
    seen = []

    def attend(q, k, v, layer, cache):
        seen.extend([q.dtype, k.dtype, v.dtype])
        return q, cache

    hidden, cache = decoder(np.zeros((1, 3), np.int32), np.arange(3)[None], attend)
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert hidden.dtype == jnp.bfloat16 and cache is None
    assert decoder.logits(hidden).dtype == jnp.float32


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_names_its_axes(tied):
    decoder = Decoder(_tiny(tie_embeddings=tied, qkv_bias=True), rngs=nnx.Rngs(0))
    _, params = nnx.split(decoder, nnx.Param)
    known = {"layers", "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp"}
    variables = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(variables) == (16 if tied else 17)
    sizes = {}
    for variable in variables:
        names = variable.get_metadata()["axes"]
        assert set(names) <= known
        for name, size in zip(names, variable.get_value().shape, strict=True):
            assert sizes.setdefault(name, size) == size  # one name, one size


def test_rotation_depends_on_relative_position_only():
    config = _tiny(head_dim=8, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))
    freqs = rope.frequencies(config)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(i: int, j: int) -> jax.Array:
        at = lambda x, p: rope.rotate(x, *rope.cos_sin(jnp.array([[p]]), freqs))  # noqa: E731
        return (at(q, i) * at(k, j)).sum()

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_unstacked_layers_give_the_same(pair):
    _, decoder = pair
    tokens = random_tokens((2, 12))
    positions = np.tile(np.arange(12, dtype=np.int32), (2, 1))

    @jax.jit
    def forward(layers):
        return decoder(tokens, positions, tree_attend(jnp.full((2, 12), 12)), layers=layers)[0]

    layers = jax.jit(decoder.unstack)()
    assert len(layers) == decoder.config.num_layers and "qkv" in layers[0]  # packed
    np.testing.assert_allclose(forward(layers), forward(None), atol=1e-5)
