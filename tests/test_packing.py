"""Token weights against loops over responses; packing as a faithful, reversible move."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.packing import pack, place, response_weights, row_length, token_weights, unpack
from ibtpo.tree import Response, build_tree, stack_trees, tokens_of_response

MAX_NEW = 6


def step_ends(tokens):
    return [*range(2, len(tokens), 2), len(tokens)]


def random_tree(rng):
    responses = []
    for index in range(int(rng.integers(1, 5))):
        parent = int(rng.integers(-1, index))
        fork, tokens, log_probs = 0, np.zeros(0, int), np.zeros(0)
        if parent >= 0:
            fork = int(rng.integers(0, len(responses[parent].tokens)))
            tokens, log_probs = responses[parent].tokens[:fork], responses[parent].log_probs[:fork]
        new = int(rng.integers(1, MAX_NEW - fork + 1))
        tokens, log_probs = np.r_[tokens, rng.integers(1, 9, new)], np.r_[log_probs, -rng.random(new)]
        responses.append(Response(index, parent, fork, 0, tokens, log_probs, "stop", float(rng.integers(0, 2))))
    return build_tree(rng.integers(1, 9, rng.integers(1, 4)), responses, step_ends)


def random_trees(seed):
    rng = np.random.default_rng(seed)
    tree = stack_trees([random_tree(rng) for _ in range(int(rng.integers(1, 6)))])
    return rng, tree, rng.standard_normal((*tree.rewards.shape, tree.node_parent.shape[1])).astype(np.float32)


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


def visible(subtree_end):
    index = np.arange(len(subtree_end))
    return (index <= index[:, None]) & (index[:, None] < subtree_end)


@given(seed=seeds)
def test_packing_moves_every_tree_whole_and_shows_it_nothing_else(seed):
    rng, tree, advantages = random_trees(seed)
    select = rng.random(len(tree.tokens)) < 0.8
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    longest = int((tree.step >= 0).sum(axis=1).max())
    row_tokens, multiple = longest + int(rng.integers(0, 30)), int(rng.integers(1, 4))
    batch, layout = pack(tree, *weights, row_tokens=row_tokens, row_multiple=multiple, select=select)
    num_rows = len(batch.tokens)
    assert num_rows % multiple == 0 and batch.tokens.shape == (num_rows, row_tokens)

    assert [piece.question for piece in layout.pieces] == np.flatnonzero(select).tolist()
    assert layout.repeated_share == 0
    taken = np.zeros((num_rows, row_tokens), int)
    for piece in layout.pieces:
        q, b, begin, n = piece.question, piece.row, piece.offset, piece.length
        cells = slice(begin, begin + n)
        taken[b, cells] += 1
        assert n == int((tree.step[q] >= 0).sum())
        for name in ("tokens", "positions", "log_probs"):
            np.testing.assert_array_equal(getattr(batch, name)[b, cells], getattr(tree, name)[q, :n])
        np.testing.assert_array_equal(batch.parent_token[b, cells] - begin, tree.parent_token[q, :n])
        sees = visible(batch.subtree_end[b])
        np.testing.assert_array_equal(sees[cells, cells], visible(tree.subtree_end[q, :n]))
        assert sees[cells].sum() == sees[cells, cells].sum() == sees[:, cells].sum()
        for name, value in zip(("positive", "negative", "weight"), weights):
            np.testing.assert_array_equal(getattr(batch, name)[b, cells], value[q][tree.step[q, :n]])
    assert taken.max(initial=0) <= 1  # no cell holds two tokens
    assert layout.useful_share == pytest.approx(taken.mean())
    empty = taken == 0
    own = np.broadcast_to(np.arange(row_tokens), taken.shape)
    np.testing.assert_array_equal(batch.subtree_end[empty], own[empty] + 1)
    np.testing.assert_array_equal(batch.parent_token[empty], own[empty])
    assert not any(x[empty].any() for x in (batch.positive, batch.negative, batch.weight, batch.log_probs))

    back = unpack(batch.tokens, layout, *tree.tokens.shape)
    np.testing.assert_array_equal(back, np.where(select[:, None], tree.tokens, 0))


def test_first_fit_decreasing_fills_the_gaps():
    # 7, 5, 3, 2 generated tokens + 1 of prompt = 8, 6, 4, 3: two rows of 11 hold them as 8+3 and 6+4.
    def chain(n):
        return build_tree([1], [Response(0, -1, 0, 0, np.ones(n, int), np.zeros(n), "stop", 0.0)], step_ends)

    tree = stack_trees([chain(n) for n in (3, 7, 2, 5)])
    zeros = np.zeros(tree.node_parent.shape, np.float32)
    batch, layout = pack(tree, zeros, zeros, zeros, row_tokens=11)
    assert batch.tokens.shape == (2, 11) and layout.useful_share == pytest.approx(21 / 22)
    assert [(piece.row, piece.offset) for piece in layout.pieces] == [(1, 6), (0, 0), (0, 8), (1, 0)]
    again, same = pack(tree, zeros, zeros, zeros + 1, row_tokens=11)
    assert [piece[2:] for piece in same.pieces] == [piece[2:] for piece in layout.pieces] and again.weight.sum() == 21


def test_nothing_selected_gives_rows_of_padding():
    _, tree, advantages = random_trees(4)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    select = np.zeros(len(tree.tokens), bool)
    batch, layout = pack(tree, *weights, row_tokens=8, row_multiple=2, select=select)
    assert batch.tokens.shape == (2, 8) and not batch.weight.any() and layout.useful_share == 0


@given(seed=seeds)
def test_a_tree_longer_than_a_row_is_cut_into_pieces_that_see_what_they_descend_from(seed):
    rng, tree, advantages = random_trees(seed)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    longest = int(tree.positions.max()) + 1
    row_tokens = longest + int(rng.integers(0, 4))
    batch, layout = pack(tree, *weights, row_tokens=row_tokens)
    taken, owned = np.zeros(batch.tokens.shape, int), np.zeros(tree.tokens.shape, int)
    for piece in layout.pieces:
        q, b = piece.question, piece.row
        source = np.r_[piece.path, piece.start : piece.stop].astype(int)
        cells = slice(piece.offset, piece.offset + len(source))
        taken[b, cells] += 1
        owned[q, piece.start : piece.stop] += 1
        for name in ("tokens", "positions", "log_probs"):
            np.testing.assert_array_equal(getattr(batch, name)[b, cells], getattr(tree, name)[q, source])
        np.testing.assert_array_equal(source[batch.parent_token[b, cells] - piece.offset], tree.parent_token[q, source])
        sees, whole = visible(batch.subtree_end[b]), visible(tree.subtree_end[q])
        np.testing.assert_array_equal(sees[cells, cells], whole[np.ix_(source, source)])
        assert sees[cells].sum() == sees[cells, cells].sum()
        own = slice(len(piece.path), None)
        # Nothing that an own token sees in the tree is missing.
        np.testing.assert_array_equal(sees[cells][own].sum(axis=1), whole[source[own]].sum(axis=1))
        for name, value in zip(("positive", "negative", "weight"), weights):
            packed = getattr(batch, name)[b, cells]
            assert not packed[: len(piece.path)].any()
            np.testing.assert_array_equal(packed[own], value[q][tree.step[q, piece.start : piece.stop]])
    np.testing.assert_array_equal(owned, tree.step >= 0)  # every token belongs to one piece
    assert taken.max() == 1
    assert layout.useful_share == pytest.approx(owned.sum() / taken.size)
    assert layout.repeated_share == pytest.approx((taken.sum() - owned.sum()) / owned.sum())
    np.testing.assert_array_equal(unpack(batch.tokens, layout, *tree.tokens.shape), tree.tokens)
    np.testing.assert_array_equal(place(tree.tokens, layout, batch.tokens.shape), batch.tokens)


def test_a_response_longer_than_a_row_is_refused_with_the_way_out():
    _, tree, advantages = random_trees(2)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    longest = int(tree.positions.max()) + 1
    with pytest.raises(ValueError, match=rf"has {longest} tokens.*raise train\.row_tokens to at least {longest}"):
        pack(tree, *weights, row_tokens=longest - 1)
    with pytest.raises(ValueError, match="row_multiple=0"):
        pack(tree, *weights, row_tokens=longest, row_multiple=0)


def test_row_lengths_hold_their_tokens_in_few_steps():
    lengths = [row_length(n) for n in range(1, 40_000)]
    assert all(n <= length <= max(128, n + n / 16) + 128 for n, length in enumerate(lengths, start=1))
    assert len(set(lengths)) < 100
    assert row_length(25_600) == 25_600 and row_length(1) == 128
