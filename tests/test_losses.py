"""The packed loss against the obvious one: every response in a row of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.base import get_config
from ibtpo import advantages, choices
from ibtpo.config import METHODS, flatten, unflatten
from ibtpo.losses import LossOptions, policy_loss, token_log_probs
from ibtpo.packing import fill, plan, unpack
from ibtpo.token_weights import sequence_weights, whiten
from tests.loss_cases import (
    MAX_NEW,
    NUM_QUESTIONS,
    NUM_RESPONSES,
    PLAIN_TOKENS,
    ROW_TOKENS,
    TEMPERATURE,
    VOCAB,
    decoders,
    packed_batch,
    packed_loss,
    plain_log_probs,
    plain_loss,
    plain_rows,
    random_batch,
    relative_error,
)

OPTIONS = {
    "plain": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1),
    "dual clip": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, dual_clip=1.2),
    "cispo": LossOptions("cispo", clip_high=0.3, kl=0.1),
    "sapo": LossOptions("sapo", kl=0.1),
    "entropy": LossOptions(kl=0.1, entropy_bonus=0.05, entropy_advantage=0.1),
    "importance": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, importance_cap=1.1),
    "rare tokens": LossOptions(clip_low=0.2, clip_high=0.3, kl=0.1, max_old_probability=1.1 / VOCAB),
}


@functools.cache
def gradients(kind, loss):
    graphdef, _, reference = decoders()

    def of_params(params, data):
        return loss(nnx.merge(graphdef, params), nnx.merge(graphdef, reference), data, OPTIONS[kind])

    return jax.jit(jax.value_and_grad(of_params))


aggregations = st.sampled_from(["response_mean", "token_mean", "fixed_length", "unique_mean"])
kinds_of_advantage = st.sampled_from(["ibtpo", "grpo", "random"])
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60)
@given(seed=seeds, advantage=kinds_of_advantage, aggregation=aggregations)
def test_packed_gradient_is_the_sum_over_responses_float32(advantage, aggregation, seed):
    kind = "dual clip"  # the real decoder is slow to compile; the other is left to float64
    questions, tree, values, mask = random_batch(seed, advantage)
    rows = plain_rows(questions, tree, values, mask, aggregation)
    rows = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in rows.items()}
    params = decoders()[1]
    loss, gradient = gradients(kind, packed_loss)(params, packed_batch(tree, values, mask, aggregation))
    oracle, oracle_gradient = gradients(kind, plain_loss)(params, rows)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)
    assert relative_error(gradient, oracle_gradient) <= 1e-5


def sequence_plain_loss(params, rows, options):
    """GSPO-token: every response by itself, its ratio held constant but for the token's own factor."""
    visible = jnp.tril(jnp.ones((PLAIN_TOKENS, PLAIN_TOKENS), bool))
    lp, A = plain_log_probs(Float64Model(params, visible), rows["tokens"]), rows["A"]
    own = rows["old"] != 0  # a generated token, of a masked group too
    constant = jax.lax.stop_gradient(lp)
    mean = jnp.where(own, constant - rows["old"], 0).sum(1) / jnp.maximum(own.sum(1), 1)
    s = jnp.exp(mean)[:, None] * jnp.exp(lp - constant)
    loss = -jnp.minimum(s * A, jnp.clip(s, 1 - options.clip_low, 1 + options.clip_high) * A)
    return jnp.where(rows["weight"] > 0, rows["weight"] * loss, 0).sum()


def visible_tokens(batch):
    index = jnp.arange(batch.tokens.shape[1])
    return (index <= index[:, None]) & (index[:, None] < jnp.asarray(batch.subtree_end)[:, None, :])


def float64_log_probs(params, batch):
    model = Float64Model(params, visible_tokens(batch))
    return token_log_probs(model, batch, temperature=TEMPERATURE, token_block=16)[0]


@functools.cache
def sequence_programs(options):
    """(log-probabilities, (loss, gradient) of packed rows, (loss, gradient) of responses), jitted."""

    def packed(params, batch):
        return policy_loss(float64_log_probs(params, batch), batch, options=options)[0]

    plain = functools.partial(sequence_plain_loss, options=options)
    return jax.jit(float64_log_probs), jax.jit(jax.value_and_grad(packed)), jax.jit(jax.value_and_grad(plain))


def sequence_packed(params, tree, values, mask, aggregation, row_tokens, options):
    """(loss, gradient) of packed trees, whose weights need the current log-probabilities first."""
    log_probs, loss, _ = sequence_programs(options)
    layout = plan(tree, row_tokens=row_tokens, rows_per_step=NUM_QUESTIONS * NUM_RESPONSES)
    now = unpack(log_probs(params, fill(layout, tree)), layout)
    clip = dict(clip_low=options.clip_low, clip_high=options.clip_high)
    weighting = dict(aggregation=aggregation, max_new_tokens=MAX_NEW, mask=mask)
    return loss(params, fill(layout, tree, sequence_weights(tree, values, now, **clip, **weighting)))


@pytest.mark.parametrize("row_tokens", [ROW_TOKENS, PLAIN_TOKENS], ids=["whole", "pieces"])
@settings(max_examples=60)
@given(seed=seeds, advantage=kinds_of_advantage, aggregation=aggregations)
def test_sequence_ratios_are_those_of_whole_responses_float64(advantage, row_tokens, seed, aggregation):
    options = LossOptions("gspo", clip_low=0.05, clip_high=0.1, kl=0.0)
    check_float64(*random_batch(seed, advantage), aggregation, options, row_tokens)


def in_float64(tree, values):
    tree = tree.replace(rewards=tree.rewards.astype(np.float64), log_probs=tree.log_probs.astype(np.float64))
    return tree, values.astype(np.float64)


class Float64Model:
    """Embedding, one attention layer, one mlp, all in the parameters' type. Its attention ignores the package's, whose
    softmax is float32, and builds the mask it is given."""

    def __init__(self, params, visible):
        self.p, self.visible = params, visible

    def __call__(self, tokens, positions, attend, cache=None, *, remat="none"):
        p = self.p
        x = p["tokens"][tokens] + p["positions"][positions]
        scores = jnp.einsum("bid,bjd->bij", x @ p["q"], x @ p["k"])
        x = x + jax.nn.softmax(jnp.where(self.visible, scores, -1e30), axis=-1) @ (x @ p["v"])
        return x + jnp.tanh(x @ p["up"]) @ p["down"], cache

    def logits(self, hidden):
        return hidden @ self.p["tokens"].T


def float64_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"tokens": (VOCAB, 5), "positions": (PLAIN_TOKENS, 5)} | {k: (5, 5) for k in ("q", "k", "v", "up", "down")}
    return {k: jnp.asarray(0.5 * rng.standard_normal(s)) for k, s in shapes.items()}


def float64_packed(params, reference, batch, options):
    visible = visible_tokens(batch)
    return packed_loss(Float64Model(params, visible), Float64Model(reference, visible), batch, options)


def float64_plain(params, reference, rows, options):
    visible = jnp.tril(jnp.ones((PLAIN_TOKENS, PLAIN_TOKENS), bool))
    return plain_loss(Float64Model(params, visible), Float64Model(reference, visible), rows, options)


@functools.cache
def float64_gradient(options, loss):
    return jax.jit(jax.value_and_grad(functools.partial(loss, options=options)))


@pytest.mark.parametrize("row_tokens", [ROW_TOKENS, PLAIN_TOKENS], ids=["whole", "pieces"])
@pytest.mark.parametrize("kind", OPTIONS)
@settings(max_examples=60)
@given(seed=seeds, advantage=kinds_of_advantage, aggregation=aggregations)
def test_packed_gradient_is_the_sum_over_responses_float64(advantage, aggregation, kind, row_tokens, seed):
    check_float64(*random_batch(seed, advantage), aggregation, OPTIONS[kind], row_tokens)


def check_float64(questions, tree, values, mask, aggregation, options, row_tokens=ROW_TOKENS, **weighting):
    tree, values = in_float64(tree, values)
    rows = plain_rows(questions, tree, values, mask, aggregation, **weighting)
    with jax.enable_x64(True):
        params, reference = float64_params(0), float64_params(1)
        if options.objective == "gspo":
            loss, gradient = sequence_packed(params, tree, values, mask, aggregation, row_tokens, options)
            oracle, oracle_gradient = sequence_programs(options)[2](params, rows)
        else:
            batch = packed_batch(tree, values, mask, aggregation, row_tokens, **weighting)
            loss, gradient = float64_gradient(options, float64_packed)(params, reference, batch)
            oracle, oracle_gradient = float64_gradient(options, float64_plain)(params, reference, rows)
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, oracle, rtol=1e-11, atol=1e-12)
        assert relative_error(gradient, oracle_gradient) <= 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_config_is_exact_on_packed_trees_float64(method):
    """As a run puts them together: the options, advantages, weights and mask that the method fills in."""
    config = unflatten(flatten(get_config()) | METHODS[method])
    loss, trained = config.loss, 0
    options = advantages.AdvantageOptions.from_config(config)
    by_token = loss.advantage in choices.TOKEN_ADVANTAGES or loss.shared_tokens == "once"
    for seed in range(4):
        questions, tree, values, _ = random_batch(seed, loss.advantage, by_token=by_token, options=options)
        mask = np.asarray(tree.response_node >= 0) & ~np.asarray(advantages.group_is_uniform(tree))[:, None]
        if loss.skip_zero_advantages:
            mask = mask[:, :, None] & (values != 0)
        if loss.whiten_advantages:
            unique = loss.aggregation == "unique_mean"
            values = whiten(tree, values, mask, unique=unique, max_old_probability=loss.max_old_probability)
        weighting = dict(shared_tokens=loss.shared_tokens, max_old_probability=loss.max_old_probability)
        check_float64(questions, tree, values, mask, loss.aggregation, LossOptions.from_config(loss), **weighting)
        trained += mask.sum()
    assert trained > 10


def test_the_random_trees_exercise_both_clips_and_the_dual_clip():
    upper = lower = dual = shared = 0
    for seed in range(5):
        _, tree, values, mask = random_batch(seed, "random", mask_some=False)
        batch = packed_batch(tree, values, mask, "token_mean")
        lp = np.asarray(token_log_probs(nnx.merge(*decoders()[:2]), batch, temperature=TEMPERATURE)[0])
        ratio = np.exp(lp - batch.log_probs)
        upper += np.sum((batch.positive > 0) & (ratio > 1.3))
        lower += np.sum((batch.negative < 0) & (ratio < 0.8))
        dual += np.sum((batch.negative < 0) & (ratio > 1.2))
        shared += np.sum((batch.negative < 0) & (batch.positive > 0))
    assert min(upper, lower, dual, shared) > 10
