"""Flat groups as packed rows: the same loss and the same gradient as of one padded row for each response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.losses import LossOptions, policy_loss
from ibtpo.packing import gather_responses, pack_groups

VOCAB, WIDTH, HEADS = 11, 8, 2


def random_groups(rng):
    """(prompts, responses): responses of a prompt share prefixes, some are equal, one may begin with another."""
    prompts = [rng.integers(0, VOCAB, rng.integers(1, 4)).tolist() for _ in range(rng.integers(1, 4))]
    responses = []
    for _ in prompts:
        group = [rng.integers(0, VOCAB, rng.integers(1, 9)).tolist()]
        for _ in range(rng.integers(0, 5)):
            old = group[rng.integers(len(group))]
            new = rng.integers(0, VOCAB, rng.integers(0, 5)).tolist()
            group.append((old[: rng.integers(len(old) + 1)] + new) or old)
        responses.append(group)
    return prompts, responses


def make_model(rng):
    shapes = dict(table=(VOCAB, WIDTH), place=(32, WIDTH), mix=(2, WIDTH, 3 * WIDTH), out=(2, WIDTH, WIDTH))
    return {name: jnp.asarray(rng.normal(size=shape) / 2) for name, shape in shapes.items()}


def log_probs_of(model, tokens, positions, ends, parent):
    """Two layers of attention; the log-probability of each token given the hidden state of its parent, [B, T]."""
    x = model["table"][tokens] + model["place"][positions]
    for mix, out in zip(model["mix"], model["out"]):
        heads = (x @ mix).reshape(*tokens.shape, 3 * HEADS, WIDTH // HEADS)
        found = tree_attention(*jnp.split(heads, 3, axis=2), ends, backend="xla")
        x = x + jnp.tanh(found.reshape(x.shape)) @ out
    before = jnp.take_along_axis(x, parent[..., None], axis=1)
    log_pi = jax.nn.log_softmax(before @ model["table"].T)
    found = jnp.take_along_axis(log_pi, tokens[..., None], axis=2)[..., 0]
    return jnp.where(parent == jnp.arange(tokens.shape[1]), 0, found)


def padded(prompts, responses):
    """A row for each response behind its prompt: (tokens, positions, ends, parent, index of each token, mask)."""
    rows = [(p, r) for p, group in zip(prompts, responses) for r in group]
    N, T = len(rows), max(len(p) + len(r) for p, r in rows)
    L = max(len(r) for _, r in rows)
    tokens, index, mask = np.zeros((N, T), np.int32), np.zeros((N, L), np.int32), np.zeros((N, L), bool)
    own = np.broadcast_to(np.arange(T, dtype=np.int32), (N, T))
    ends, parent = own + 1, own.copy()
    for n, (p, r) in enumerate(rows):
        end = len(p) + len(r)
        tokens[n, :end], ends[n, :end] = [*p, *r], end
        parent[n, 1:end] = np.arange(end - 1)
        index[n, : len(r)], mask[n, : len(r)] = n * T + len(p) + np.arange(len(r)), True
    return jnp.asarray(tokens), own, ends, parent, index, mask


def values_for(rng, responses, draw):
    return [[draw(rng, len(tokens)) for tokens in group] for group in responses]


def flatten(values, responses, mask):
    found = np.zeros(mask.shape)
    lines = [np.broadcast_to(v, len(t)) for vs, ts in zip(values, responses) for v, t in zip(vs, ts)]
    found[mask] = np.concatenate(lines)
    return found


def rows_of(packed):
    rows = packed.rows
    return jnp.asarray(rows.tokens), rows.positions, rows.subtree_end, rows.parent_token


@pytest.mark.parametrize(  # few: each compiles two gradients
    "seed, only_prompts, cut", [(0, False, False), (1, False, True), (2, True, False), (3, False, True)]
)
def test_any_loss_of_gathered_log_probs_and_its_gradient_are_those_of_padded_rows(seed, only_prompts, cut):
    rng = np.random.default_rng(seed)
    prompts, responses = random_groups(rng)
    longest = max(len(p) + len(r) for p, group in zip(prompts, responses) for r in group)
    packed = pack_groups(prompts, responses, row_tokens=longest if cut else 0, only_prompts=only_prompts)
    *flat, index, mask = padded(prompts, responses)
    np.testing.assert_array_equal(packed.mask, mask)
    assert packed.unique_tokens <= packed.sequence_tokens <= packed.flat_tokens == flat[0].size
    with jax.enable_x64(True):
        model = make_model(rng)
        advantages, drawn = (jnp.asarray(rng.normal(size=mask.shape)) for _ in range(2))

        def loss(own):
            ratio = jnp.exp(own - drawn)
            kept = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
            return -jnp.where(mask, kept, 0).sum() / mask.sum()

        of_rows = jax.jit(
            jax.value_and_grad(lambda m: loss(gather_responses(log_probs_of(m, *rows_of(packed)), packed)))
        )
        of_flat = jax.jit(jax.value_and_grad(lambda m: loss(log_probs_of(m, *flat).reshape(-1)[index])))
        for a, b in zip(jax.tree.leaves(of_rows(model)), jax.tree.leaves(of_flat(model)), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_loss_of_the_rows_is_that_of_the_flat_responses(seed):
    rng = np.random.default_rng(seed)
    prompts, responses = random_groups(rng)
    advantages = values_for(rng, responses, lambda rng, n: rng.normal(size=n) if rng.random() < 0.5 else rng.normal())
    weights = values_for(rng, responses, lambda rng, n: rng.integers(0, 2, n) / n)
    *flat, index, mask = padded(prompts, responses)
    with jax.enable_x64(True):
        model = make_model(rng)
        own = np.asarray(jax.jit(log_probs_of)(model, *flat)).reshape(-1)[index]
        drawn = [line[m] + np.where(own[0, 0] < 0, 0.1, 0) for line, m in zip(own, mask)]
        ends = np.cumsum([len(group) for group in responses])
        drawn = [drawn[end - len(group) : end] for end, group in zip(ends, responses)]
        packed = pack_groups(prompts, responses, log_probs=drawn, advantages=advantages, weights=weights)
        A, w, old = (flatten(x, responses, mask) for x in (advantages, weights, drawn))

        def of_flat(model):
            ratio = jnp.exp(log_probs_of(model, *flat).reshape(-1)[index] - old)
            return -jnp.where(mask, w * jnp.minimum(ratio * A, jnp.clip(ratio, 0.8, 1.2) * A), 0).sum()

        def of_rows(model):
            return policy_loss(log_probs_of(model, *rows_of(packed)), packed.rows, options=LossOptions(kl=0.0))[0]

        got, expected = (jax.jit(jax.value_and_grad(f))(model) for f in (of_rows, of_flat))
        # The rows hold P, N and the log-probabilities in float32.
        scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[1]))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * max(scale, 1))


def test_common_prefixes_are_there_once():
    responses = [[[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7], [9], [1, 2, 3, 4]]]
    packed = pack_groups([[7, 7]], responses)
    # 2 of the prompt, 1 2 3 4, then 5 6, 7, 9, and the last token of the repeated response.
    assert packed.unique_tokens == 2 + 4 + 2 + 1 + 1 + 1
    assert packed.sequence_tokens == 5 * 2 + 4 * 4 + 1 and packed.flat_tokens == 5 * 6
    assert pack_groups([[7, 7]], responses, only_prompts=True).unique_tokens == 2 + 17
    tokens = gather_responses(packed.rows.tokens, packed)
    np.testing.assert_array_equal(tokens[:, :4], [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7], [9, 0, 0, 0], [1, 2, 3, 4]])


def test_gathered_values_may_have_more_axes():
    packed = pack_groups([[1]], [[[2, 3], [2, 4, 5]]])
    values = np.stack([packed.rows.tokens, packed.rows.positions], axis=-1)
    found = gather_responses(values, packed)
    np.testing.assert_array_equal(found, [[[2, 1], [3, 2], [0, 0]], [[2, 1], [4, 2], [5, 3]]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(prompts=[[1]], responses=[]), "1 prompts with 0 groups of responses"),
        (dict(prompts=[], responses=[]), "0 prompts with 0 groups of responses"),
        (dict(prompts=[[1]], responses=[[[]]]), "it needs as many of one as of the other, and at least one"),
        (dict(prompts=[[]], responses=[[[1]]]), "a tree needs a prompt and responses"),
        (dict(log_probs=[[[0.0]]]), r"log_probs: \[1\] responses of the prompts, not \[2\]"),
        (dict(log_probs=[[[0.0], [0.0]]]), "log_probs: 1 values of response 0 of prompt 0, not 2"),
        (dict(advantages=[[1.0, [1.0] * 3]]), "advantages: 3 values of response 1 of prompt 0, not 2"),
        (dict(advantages=[[1.0, 1.0]], weights=[[1.0]]), r"weights: \[1\] responses of the prompts, not \[2\]"),
        (dict(advantages=[[1.0, 1.0]], log_probs=[[[-1, -2], [-1.1, -3]]]), "that responses share differ by 0.1"),
        (dict(row_tokens=2), "has 3 tokens with its prompt, but a row holds"),
    ],
)
def test_what_does_not_match_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pack_groups(**dict(prompts=[[1]], responses=[[[2, 3], [2, 4]]]) | arguments)


def test_log_probs_of_tokens_that_weigh_nothing_may_differ():
    packed = pack_groups(
        [[1]], [[[2, 3], [2, 4]]], log_probs=[[[-1, -2], [-9, -3]]], advantages=[[1.0, -1.0]], weights=[[1.0, [0, 1]]]
    )
    assert packed.rows.weight.sum() == 3 and packed.rows.positive.sum() == 2 and packed.rows.negative.sum() == -1
