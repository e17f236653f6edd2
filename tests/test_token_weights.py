"""Token weights against loops over responses."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.token_weights import response_weights, token_weights
from ibtpo.tree import tokens_of_response
from tests.packing_cases import MAX_NEW, random_trees

seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("aggregation", ["response_mean", "token_mean", "fixed_length"])
@given(seed=seeds)
def test_token_weights_are_sums_over_the_responses_through_a_token(aggregation, seed):
    rng, tree, advantages = random_trees(seed)
    mask = rng.random(len(tree.tokens)) < 0.7
    weights = token_weights(tree, advantages, aggregation=aggregation, max_new_tokens=MAX_NEW, mask=mask)
    expected = np.zeros((3, *tree.tokens.shape))
    finished = [(q, r) for q, r in np.argwhere(tree.response_node >= 0)]
    lengths = {(q, r): len(tokens_of_response(tree, r, q)) for q, r in finished}
    for q, r in finished:
        w = {
            "response_mean": 1 / (len(finished) * lengths[q, r]),
            "token_mean": 1 / sum(lengths.values()),
            "fixed_length": 1 / (len(finished) * MAX_NEW),
        }[aggregation] * mask[q]
        for t in tokens_of_response(tree, r, q):
            a = advantages[q, r, tree.step[q, t]]
            expected[:, q, t] += w * max(a, 0), w * min(a, 0), w
    for found, want in zip(weights, expected):
        per_token = np.where(tree.step >= 0, np.take_along_axis(found, np.maximum(tree.step, 0), axis=1), 0)
        np.testing.assert_allclose(per_token, want, rtol=1e-5, atol=1e-7)
    if mask.all() and aggregation != "fixed_length":  # a mean over everything generated
        np.testing.assert_allclose(per_token.sum(), 1, rtol=1e-5)


def test_token_weights_agree_between_numpy_and_jax():
    _, tree, advantages = random_trees(1)
    on_device = type(tree)(**{k: jnp.asarray(v) for k, v in vars(tree).items()})
    options = dict(aggregation="response_mean", max_new_tokens=MAX_NEW)
    for a, b in zip(
        token_weights(tree, advantages, **options), token_weights(on_device, jnp.asarray(advantages), **options)
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_unknown_aggregation_is_refused():
    _, tree, _ = random_trees(1)
    with pytest.raises(ValueError, match=r"loss\.aggregation='mean' is none of response_mean"):
        response_weights(tree, aggregation="mean", max_new_tokens=MAX_NEW)
