"""The vocabulary's softmax against JAX's own gradient of the plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibtpo.vocabulary import log_prob_and_entropy, project


def plain(logits, tokens):
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return own, -(jnp.exp(log_p) * log_p).sum(-1)


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("scale", [1.0, 300.0])  # the latter: all but one probability is 0
def test_values_and_gradients_are_those_of_the_plain_softmax(scale, entropy_gradient):
    rng = np.random.default_rng(0)
    tokens, g, h = rng.integers(0, 7, (2, 3)), *rng.normal(size=(2, 2, 3))
    with jax.enable_x64(True):
        logits = jnp.asarray(scale * rng.normal(size=(2, 3, 7)))
        got, vjp = jax.vjp(lambda x: log_prob_and_entropy(x, tokens, entropy_gradient), logits)
        expected, plain_vjp = jax.vjp(lambda x: plain(x, tokens), logits)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        [a], [b] = vjp((g, h)), plain_vjp((g, h if entropy_gradient else 0 * h))
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_logit_that_is_not_finite_shows():
    logits = jnp.zeros((1, 5)).at[0, 2].set(jnp.nan)
    log_prob, entropy = log_prob_and_entropy(logits, jnp.asarray([1]))
    assert np.isnan(log_prob).all() and np.isnan(entropy).all()


def test_the_gradient_of_the_products_is_rounded_to_their_type():
    rng = np.random.default_rng(0)
    hidden, table = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, 3, 8), (11, 8)))
    g = jnp.asarray(rng.normal(size=(2, 3, 11)), jnp.float32)
    logits, vjp = jax.vjp(project, hidden, table)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, np.asarray(hidden, np.float32) @ np.asarray(table, np.float32).T, rtol=1e-5)
    rounded = np.asarray(g.astype(jnp.bfloat16), np.float32)
    of_hidden, of_table = rounded @ np.asarray(table, np.float32), np.einsum(
        "btv,btd->vd", rounded, np.asarray(hidden, np.float32)
    )
    for a, b in zip(vjp(g), (of_hidden, of_table), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=1e-2, atol=1e-2)
