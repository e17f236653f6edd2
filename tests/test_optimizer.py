"""Schedules, clipping and the decay mask of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.optimizer import decay_mask, make_optimizer


def config(**changes):
    defaults = dict(
        learning_rate=0.1, schedule="constant", warmup_steps=0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0,
        clip_norm=0.0, first_moment_dtype="float32",
    )  # fmt: skip
    return ConfigDict(defaults | changes)


def rates(total=10, **changes):
    schedule = make_optimizer(config(**changes), total)[1]
    return np.array([float(schedule(t)) for t in range(total + 1)])


def test_schedules():
    t = np.arange(11)
    np.testing.assert_allclose(rates(), 0.1)
    np.testing.assert_allclose(rates(schedule="linear"), 0.1 * (1 - t / 10), atol=1e-8)
    np.testing.assert_allclose(rates(schedule="cosine"), 0.05 * (1 + np.cos(np.pi * t / 10)), atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [1, 4])
def test_warm_up_moves_from_the_first_update_and_then_hands_over(schedule, warmup):
    found = rates(schedule=schedule, warmup_steps=warmup)
    np.testing.assert_allclose(found[:warmup], 0.1 * np.arange(1, warmup + 1) / warmup, rtol=1e-6)
    np.testing.assert_allclose(found[warmup:], rates(10 - warmup, schedule=schedule), atol=1e-8)


def test_weight_decay_spares_norms_biases_and_embeddings():
    model = ModelConfig(
        "qwen3", vocab_size=5, embed_dim=4, mlp_dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2,
        qk_norm=True, qkv_bias=True,
    )  # fmt: skip
    params = nnx.split(Decoder(model, rngs=nnx.Rngs(0)), nnx.Param)[1]
    mask = decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    decayed = {path[-1] for path, x in nnx.to_flat_state(mask) if x.get_value()}
    assert decayed == {"q", "k", "v", "o", "gate", "up", "down", "lm_head"}

    # With zero gradients, the decay is all there is.
    params = jax.tree.map(jnp.ones_like, params)
    transform, _ = make_optimizer(config(weight_decay=0.5), 10)
    update = jax.jit(lambda p: transform.update(jax.tree.map(jnp.zeros_like, p), transform.init(p), p)[0])
    updates = update(params)
    for path, found in nnx.to_flat_state(updates):
        np.testing.assert_allclose(found.get_value(), -0.1 * 0.5 * (path[-1] in decayed))


def adamw_steps(gradients, clip_norm):
    """AdamW by its definition, on one vector that starts at 1."""
    x, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):
        norm = np.linalg.norm(g)
        g = g * min(1, clip_norm / norm) if clip_norm else g
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        x = x - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.5 * x)
    return x


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates_are_adamw_with_clipped_gradients(clip_norm):
    gradients = [np.array([0.1, -0.2]), np.array([30.0, 4.0]), np.array([-1.0, 2.0])]
    transform, _ = make_optimizer(config(weight_decay=0.5, clip_norm=clip_norm), 10)
    params = {"w": jnp.ones(2)}
    state = transform.init(params)
    for g in gradients:
        updates, state = transform.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["w"], adamw_steps(gradients, clip_norm), rtol=1e-5)


def test_clipping_does_not_change_what_a_checkpoint_holds():
    params = {"w": jnp.ones(2)}
    states = [make_optimizer(config(clip_norm=c), 10)[0].init(params) for c in (0.0, 1.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.schedule='step' is none of constant, linear, cosine"):
        make_optimizer(config(schedule="step"), 10)
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps=11 .* 10 updates"):
        make_optimizer(config(warmup_steps=11), 10)


def test_a_bfloat16_first_moment_stays_one_and_moves_alike():
    params = {"w": jnp.linspace(-1.0, 1.0, 5)}

    def train(**changes):
        transform, _ = make_optimizer(config(**changes), 10)
        state, p = transform.init(params), params
        for t in range(3):
            updates, state = transform.update({"w": p["w"] + t}, state, p)
            p = jax.tree.map(jnp.add, p, updates)
        return {x.dtype for x in jax.tree.leaves(state) if x.ndim}, p["w"]

    exact_types, exact = train()
    types, found = train(first_moment_dtype="bfloat16")
    assert exact_types == {jnp.dtype("float32")} and types == {jnp.dtype("float32"), jnp.dtype("bfloat16")}
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert (np.asarray(found) != np.asarray(exact)).any()
