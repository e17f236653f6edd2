"""Truncation against transformers' own logit processors, draws against their distribution."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp

from ibtpo.sampling import logits
from ibtpo.sampling.logits import SamplingParams, sample, truncate


def params(*args, **kwargs):
    return SamplingParams(*args, **kwargs).traced()


jit_truncate, jit_sample = jax.jit(truncate), jax.jit(sample)


@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 3, 20, 500]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_truncation_keeps_the_tokens_transformers_keeps(seed, temperature, top_k, top_p, min_p):
    torch = pytest.importorskip("torch")
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = np.random.default_rng(seed).normal(0, 3, (4, 50)).astype(np.float32)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(None, torch.tensor(logits)).softmax(-1).numpy()
    ours = np.asarray(jit_truncate(jax.nn.softmax(logits / temperature), params(temperature, top_k, top_p, min_p)))
    np.testing.assert_allclose(ours / ours.sum(-1, keepdims=True), expected, atol=1e-5)


def test_ties_at_the_threshold_are_all_kept():
    probs = jnp.array([[0.3, 0.2, 0.2, 0.2, 0.1]])
    np.testing.assert_array_equal(jit_truncate(probs, params(top_k=2))[0] > 0, [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(jit_truncate(probs, params(top_p=0.4))[0] > 0, [1, 1, 1, 1, 0])


def test_draws_follow_the_truncated_distribution():
    """Chi-squared of 20,000 draws; log-probabilities stay those of the whole vocabulary."""
    from scipy.stats import chisquare

    logits = jnp.array([0.0, 1.0, 2.0, 3.0, -1.0, 2.5]) * 0.7
    count = 20_000
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(count))
    settings = params(temperature=0.8, top_k=4)
    tokens, log_probs = jit_sample(jnp.broadcast_to(logits, (count, 6)), keys, settings)
    full = np.asarray(jax.nn.log_softmax(logits / 0.8))
    np.testing.assert_allclose(log_probs, full[tokens], rtol=1e-5)
    kept = np.argsort(-full)[:4]
    observed = np.bincount(tokens, minlength=6)
    assert observed[np.setdiff1d(np.arange(6), kept)].sum() == 0
    expected = np.exp(full[kept], dtype=np.float64)
    expected *= count / expected.sum()
    assert chisquare(observed[kept], expected).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [100, 128, 1000, 1024])  # one block of the draw, part of one, several
def test_a_draw_inverts_the_distribution_function(vocab_size):
    """Against float64; most tokens, and whole blocks of them, have no mass."""
    rng = np.random.default_rng(vocab_size)
    probs = rng.exponential(size=(64, vocab_size)) * (rng.random((64, vocab_size)) < 0.3)
    probs[:, vocab_size // 4 : vocab_size // 4 * 3] = 0
    probs = (probs / probs.sum(-1, keepdims=True)).astype(np.float32)
    cumulative = np.cumsum(probs.astype(np.float64), axis=-1)
    draw = jax.jit(logits._draw)
    for uniform in (np.zeros(64), rng.random(64), rng.random(64), np.full(64, 1 - 2.0**-24)):
        tokens = np.asarray(draw(jnp.asarray(probs), jnp.asarray(uniform, jnp.float32)))
        row = np.arange(64)
        assert (probs[row, tokens] > 0).all()
        target = uniform.astype(np.float32) * cumulative[:, -1]
        assert (cumulative[row, tokens] > target - 1e-6).all()
        assert (cumulative[row, tokens] - probs[row, tokens] < target + 1e-6).all()


def test_what_has_no_mass_is_never_found():
    """A running sum that is added up in a tree may rise by a rounding between two entries of zero."""
    rng = np.random.default_rng(0)
    masses = np.zeros((200, 1187), np.float32)  # blocks of a vocabulary of 151,936
    for row in masses:
        row[rng.choice(len(row), 20, replace=False)] = rng.exponential(size=20) * 0.1
    cumulative = np.asarray(jax.jit(lambda x: jnp.cumsum(x, axis=-1))(masses))
    rises = (np.diff(cumulative, axis=-1) > 0) & (masses[:, 1:] == 0)
    assert rises.any()  # or there is nothing to be seen here
    find = jax.jit(logits._first_above)
    for row, entry in zip(*rises.nonzero()):
        # On both sides of the rise, and beyond the end of all mass.
        targets = np.array([*cumulative[row, entry : entry + 2], 2], np.float32)
        index, _ = find(jnp.broadcast_to(masses[row], (3, 1187)), targets)
        assert (masses[row, np.asarray(index)] > 0).all()


def test_a_row_depends_on_its_own_key_only():
    logits = jax.random.normal(jax.random.key(0), (8, 40))
    keys = jax.random.split(jax.random.key(1), 8)
    all_tokens, _ = jit_sample(logits, keys, params())
    one_by_one = [int(jit_sample(logits[i : i + 1], keys[i : i + 1], params())[0][0]) for i in range(8)]
    assert all_tokens.tolist() == one_by_one


def test_changing_sampling_parameters_does_not_recompile():
    function = jax.jit(lambda *args: sample(*args))  # a cache of its own
    logits, keys = jnp.zeros((2, 5)), jax.random.split(jax.random.key(0), 2)
    for settings in (params(), params(0.5, 3), params(2.0, 1, 0.3, 0.1)):
        function(logits, keys, settings)
    assert function._cache_size() == 1
