"""Log-probabilities, entropy and the loss of worked examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ibtpo import losses
from ibtpo.losses import LossOptions, policy_loss, token_log_probs
from ibtpo.models.attention import tree_attend
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import TokenBatch
from tests.loss_cases import (
    ROW_TOKENS,
    TEMPERATURE,
    VOCAB,
    decoders,
    plain_log_probs,
    plain_rows,
    random_batch,
    small_batch,
)


def test_the_entropy_that_is_reported_is_of_all_counted_tokens():
    """Also of those that max_old_probability leaves out of the loss."""
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.uniform(0.2, 1, (2, 8))).astype(np.float32)
    weight = rng.uniform(0.5, 1, (2, 8)).astype(np.float32) * (rng.random((2, 8)) < 0.7)
    entropy = np.where(weight > 0, rng.random((2, 8)), np.nan).astype(np.float32)
    nothing = np.zeros((2, 8), np.int32)
    batch = TokenBatch(nothing, nothing, nothing, nothing, log_probs, weight, 0 * weight, weight)
    expected = (weight * np.nan_to_num(entropy)).sum() / weight.sum()
    losses = set()
    for most in (1.0, 0.5):
        loss, metrics = policy_loss(
            log_probs, batch, entropy=entropy, options=LossOptions(kl=0.0, max_old_probability=most)
        )
        total, count = metrics["entropy"]
        np.testing.assert_allclose(total / count, expected, rtol=1e-6)
        losses.add(float(loss))
    assert len(losses) == 2


def test_log_probs_and_entropy_equal_the_plain_softmax_for_any_block():
    questions, tree, values, mask = random_batch(3, "random", mask_some=False)
    rows = plain_rows(questions, tree, values, mask, "response_mean")
    batch = small_batch()
    model = nnx.merge(*decoders()[:2])
    results = [
        token_log_probs(model, batch, temperature=TEMPERATURE, token_block=block, remat=remat)
        for block, remat in ((7, "none"), (1000, "full"))
    ]
    (log_probs, entropy), again = results
    np.testing.assert_allclose(log_probs, again[0], atol=2e-6)
    np.testing.assert_allclose(entropy, again[1], atol=2e-6)
    # Each token has the value that its unpacked response gives it; compare as multisets over trained tokens.
    oracle = np.asarray(plain_log_probs(model, rows["tokens"]))
    found = np.unique(np.round(np.asarray(log_probs)[batch.weight > 0], 4))
    expected = np.unique(np.round(oracle[rows["weight"] > 0], 4))
    assert all(np.abs(expected - x).min() < 2e-4 for x in found)
    assert all(np.abs(found - x).min() < 2e-4 for x in expected)
    own = batch.parent_token == np.arange(ROW_TOKENS)
    assert own.any() and not np.asarray(log_probs)[own].any() and not np.asarray(entropy)[own].any()
    assert (np.asarray(entropy)[~own] > 0).all() and (np.asarray(entropy) <= np.log(VOCAB) + 1e-5).all()


def test_entropy_is_that_of_the_tempered_softmax_and_carries_no_gradient():
    graphdef, params, _ = decoders()
    batch = small_batch()
    model = nnx.merge(graphdef, params)
    hidden, _ = model(batch.tokens, batch.positions, tree_attend(batch.subtree_end))
    logits = np.asarray(model.logits(hidden), np.float64) / TEMPERATURE
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    expected = np.take_along_axis(-(p * np.log(p)).sum(-1), batch.parent_token, axis=1)
    _, entropy = token_log_probs(model, batch, temperature=TEMPERATURE)
    predicted = batch.parent_token != np.arange(ROW_TOKENS)
    np.testing.assert_allclose(np.asarray(entropy)[predicted], expected[predicted], atol=1e-5)
    total = jax.jit(jax.grad(lambda p: token_log_probs(nnx.merge(graphdef, p), batch)[1].sum()))
    gradient = total(params)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(gradient))


def test_logits_of_all_tokens_never_exist_forwards_or_backwards():
    vocab, rows, tokens, block = 1000, 2, 64, 8  # 1000 is larger than any other dimension
    config = ModelConfig("qwen3", vocab, 8, 8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4)
    graphdef, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param)
    index = np.broadcast_to(np.arange(tokens, dtype=np.int32), (rows, tokens))
    zeros = np.zeros((rows, tokens), np.float32)
    parent = np.maximum(index - 1, 0)
    batch = TokenBatch(index, index, np.full_like(index, tokens), parent, zeros, zeros, zeros, zeros)

    def total(params):
        return token_log_probs(nnx.merge(graphdef, params), batch, token_block=block)[0].sum()

    sizes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars if vocab in getattr(v.aval, "shape", ()))
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
    # Logits of a block, or the embedding table itself.
    assert max(sizes) == max(rows * block * vocab, vocab * config.embed_dim)
    assert max(sizes) < rows * tokens * vocab / 4


def flat_batch(log_probs, positive, negative, weight):
    """TokenBatch [1, n] of these float32 rows, whose tree fields policy_loss does not read."""
    float_rows = [np.asarray([x], np.float32) for x in (log_probs, positive, negative, weight)]
    index = np.zeros(float_rows[0].shape, np.int32)
    return TokenBatch(index, index, index, index, *float_rows)


def test_loss_and_metrics_of_a_worked_example():
    # Ratios 2, 0.5, 1, 1.1; token 2 is trained with advantage 0.
    ratio = np.array([2.0, 0.5, 1.0, 1.1])
    positive, negative = np.array([0.3, 0.0, 0.0, 0.1]), np.array([-0.1, -0.2, 0.0, -0.3])
    weight = np.array([0.4, 0.2, 0.1, 0.3])
    batch = flat_batch(np.full(4, -1.0), positive, negative, weight)
    log_probs = jnp.asarray([np.log(ratio) - 1.0], jnp.float32)
    ref = log_probs + jnp.asarray([[0.5, 0.0, -0.5, 0.0]])
    options = LossOptions(clip_low=0.2, clip_high=0.2, kl=0.5, dual_clip=1.5)
    batch = batch.replace(ref_log_probs=ref)
    loss, metrics = policy_loss(log_probs, batch, entropy=jnp.ones((1, 4)), options=options)
    kl = 0.4 * (np.exp(0.5) - 0.5 - 1) + 0.1 * (np.exp(-0.5) + 0.5 - 1)
    policy = -(0.3 * 1.2 - 0.1 * 1.5) - (-0.2 * 0.8) - (0.1 * 1.1 - 0.3 * 1.1)
    np.testing.assert_allclose(loss, policy + 0.5 * kl, rtol=1e-5)
    value = {name: float(total / count) for name, (total, count) in metrics.items()}
    expected = {
        "clip_fraction": 0.4 + 0.2,  # tokens 0 (both signs) and 1 in full
        "ratio": (weight * ratio).sum(),
        "ratio_max": 2.0,
        "sampler_gap": (weight * np.abs(np.log(ratio))).sum(),
        "entropy": 1.0,
        "kl": kl,
    }
    assert value == pytest.approx(expected, rel=1e-5)


def test_tokens_of_weight_zero_contribute_nothing_whatever_they_hold():
    options = LossOptions(kl=0.1, dual_clip=3.0)
    log_probs = np.array([[-1.0, -2.0, np.nan, np.inf, -np.inf, 300.0]], np.float32)
    ref = np.array([[-1.5, -2.0, 0.0, np.nan, np.inf, -300.0]], np.float32)
    padding = [0.0] * 4
    batch = flat_batch([-1.2, -1.0, 0, 0, np.nan, 0], [0.5, 0.0, *padding], [0.0, -0.3, *padding], [1.0, 1.0, *padding])
    batch = batch.replace(ref_log_probs=ref)
    short = jax.tree.map(lambda x: x[:, :2], batch)

    @jax.jit
    def run(lp, batch):
        return jax.value_and_grad(lambda x: policy_loss(x, batch, options=options)[0])(lp)

    loss, gradient = run(log_probs, batch)
    expected, expected_gradient = run(log_probs[:, :2], short)
    assert loss == expected and np.isfinite(loss)
    np.testing.assert_array_equal(gradient[:, :2], expected_gradient)
    np.testing.assert_array_equal(gradient[:, 2:], 0)
    _, metrics = policy_loss(log_probs, batch, entropy=ref, options=options)
    assert all(np.isfinite(x) for pair in metrics.values() for x in pair)


def test_an_empty_batch_is_worth_nothing():
    batch = flat_batch([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    loss, metrics = policy_loss(jnp.full((1, 2), -1.0), batch, options=LossOptions(kl=0.0))
    assert loss == 0 and metrics["ratio"] == (0, 0) and "kl" not in metrics


def test_enormous_ratios_stay_finite():
    batch = flat_batch([-1000.0, -1000.0], [1.0, 0.0], [0.0, -1.0], [1.0, 1.0])
    batch = batch.replace(ref_log_probs=jnp.full((1, 2), 1000.0))
    loss, _ = policy_loss(jnp.zeros((1, 2)), batch, options=LossOptions())
    assert np.isfinite(loss)


def test_impossible_options_are_refused():
    batch = flat_batch([0.0], [0.0], [0.0], [1.0])
    with pytest.raises(ValueError, match=r"loss\.kl=0\.1 needs batch\.ref_log_probs"):
        policy_loss(jnp.zeros((1, 1)), batch, options=LossOptions(kl=0.1))
    with pytest.raises(ValueError, match=r"loss\.dual_clip=0\.5"):
        LossOptions(dual_clip=0.5)
    with pytest.raises(ValueError, match=r"loss\.clip_low=1\.5"):
        LossOptions(clip_low=1.5)
    with pytest.raises(ValueError, match=r"loss\.kl=-1"):
        LossOptions(kl=-1.0)


def test_metrics_of_microbatches_add_up():
    one, two = {"kl": (1.0, 3.0), "ratio_max": (4.0, 1.0)}, {"kl": (2.0, 1.0), "ratio_max": (2.0, 1.0)}
    assert losses.add_metrics(one, two) == {"kl": (3.0, 4.0), "ratio_max": (4.0, 1.0)}


def test_importance_weights_are_to_the_trainers_own_log_probs():
    batch, rng = small_batch(), np.random.default_rng(0)
    new = batch.log_probs + rng.normal(scale=0.4, size=batch.log_probs.shape).astype(np.float32)
    old = batch.log_probs + rng.normal(scale=0.4, size=batch.log_probs.shape).astype(np.float32)
    options = LossOptions(clip_low=0.2, clip_high=0.3, kl=0.0, importance_cap=1.2)
    loss, metrics = policy_loss(new, batch.replace(old_log_probs=old), options=options)
    ratio, gap = np.exp(new - old), np.exp(old - batch.log_probs)
    objective = batch.positive * np.minimum(ratio, 1.3) + batch.negative * np.maximum(ratio, 0.8)
    np.testing.assert_allclose(loss, -(objective * np.minimum(gap, 1.2)).sum(), rtol=1e-5)
    mean = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    share = batch.weight / batch.weight.sum()
    np.testing.assert_allclose(mean["importance"], (share * np.minimum(gap, 1.2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(mean["importance_capped"], (share * (gap > 1.2)).sum(), rtol=1e-5)
    np.testing.assert_allclose(mean["ratio"], (share * ratio).sum(), rtol=1e-5)
    assert 0.1 < mean["importance_capped"] < 0.9
