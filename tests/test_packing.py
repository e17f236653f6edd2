"""Packing as a faithful, reversible move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.packing import fill, moved, place, plan, row_length, unpack
from ibtpo.token_weights import TokenWeights, token_weights
from ibtpo.tree import Response, build_tree, stack_trees
from tests.packing_cases import MAX_NEW, random_trees, step_ends

seeds = st.integers(0, 2**32 - 1)


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
    layout = plan(tree, row_tokens=row_tokens, rows_per_step=multiple, select=select)
    batch = fill(layout, tree, weights)
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

    back = unpack(batch.tokens, layout)
    np.testing.assert_array_equal(back, np.where(select[:, None], tree.tokens, 0))


def test_first_fit_decreasing_fills_the_gaps():
    # 7, 5, 3, 2 generated tokens + 1 of prompt = 8, 6, 4, 3: two rows of 11 hold them as 8+3 and 6+4.
    def chain(n):
        return build_tree([1], [Response(0, -1, 0, 0, np.ones(n, int), np.zeros(n), "stop", 0.0)], step_ends)

    tree = stack_trees([chain(n) for n in (3, 7, 2, 5)])
    layout = plan(tree, row_tokens=11)
    batch = fill(layout, tree)
    assert batch.tokens.shape == (2, 11) and layout.useful_share == pytest.approx(21 / 22)
    assert [(piece.row, piece.offset) for piece in layout.pieces] == [(1, 6), (0, 0), (0, 8), (1, 0)]
    zeros = np.zeros(tree.node_parent.shape, np.float32)
    assert fill(layout, tree, TokenWeights(zeros, zeros, zeros + 1)).weight.sum() == 21 and not batch.weight.any()


def test_nothing_selected_gives_rows_of_padding():
    _, tree, advantages = random_trees(4)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    layout = plan(tree, row_tokens=8, rows_per_step=2, select=np.zeros(len(tree.tokens), bool))
    batch = fill(layout, tree, weights)
    assert batch.tokens.shape == (2, 8) and not batch.weight.any() and layout.useful_share == 0


@given(seed=seeds)
def test_a_tree_longer_than_a_row_is_cut_into_pieces_that_see_what_they_descend_from(seed):
    rng, tree, advantages = random_trees(seed)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    longest = int(tree.positions.max()) + 1
    row_tokens = longest + int(rng.integers(0, 4))
    layout = plan(tree, row_tokens=row_tokens)
    batch = fill(layout, tree, weights)
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
    np.testing.assert_array_equal(unpack(batch.tokens, layout), tree.tokens)
    np.testing.assert_array_equal(place(tree.tokens, layout), batch.tokens)
    # What RunPlan counts on: a piece has the end of a response.
    leaves = [int((tree.response_node[q] >= 0).sum()) for q in range(len(tree.tokens))]
    assert all(sum(piece.question == q for piece in layout.pieces) <= most for q, most in enumerate(leaves))


@given(seed=seeds)
def test_a_buffer_of_rows_holds_the_same_microbatches_first(seed):
    """However many rows there are, microbatch m is the same rows, and those behind the last in use are padding."""
    rng, tree, advantages = random_trees(seed)
    weights = token_weights(tree, advantages, aggregation="token_mean", max_new_tokens=MAX_NEW)
    row_tokens, rows_per_step = int(tree.positions.max()) + 1, int(rng.integers(1, 4))
    small = plan(tree, row_tokens=row_tokens, rows_per_step=rows_per_step)
    more = int(rng.integers(0, 4)) * rows_per_step
    large = plan(tree, row_tokens=row_tokens, rows_per_step=rows_per_step, num_rows=small.rows[0] + more)
    assert (large.useful_share, large.repeated_share) == (small.useful_share, small.repeated_share)
    few, many = fill(small, tree, weights), fill(large, tree, weights)
    for name, x in vars(few).items():
        if x is not None:
            x, y = (v.reshape(rows_per_step, -1, row_tokens) for v in (x, getattr(many, name)))
            np.testing.assert_array_equal(y[:, : x.shape[1]], x)
    assert not many.weight.reshape(rows_per_step, -1, row_tokens)[:, small.rows[0] // rows_per_step :].any()
    np.testing.assert_array_equal(unpack(many.tokens, large), tree.tokens)
    with pytest.raises(ValueError, match=r"more than num_rows="):
        plan(stack_trees([tree] * 9), row_tokens=row_tokens, rows_per_step=1, num_rows=1)


@given(seed=seeds)
def test_values_move_between_layouts_on_the_device(seed):
    rng, tree, _ = random_trees(seed)
    row_tokens = int(tree.positions.max()) + 1 + int(rng.integers(0, 20))
    layout, batch = (whole := plan(tree, row_tokens=row_tokens)), fill(whole, tree)
    questions = np.flatnonzero(rng.random(len(tree.tokens)) < 0.7)
    if not len(questions):
        return
    part = jax.tree.map(lambda x: x[questions], tree)
    other = plan(part, row_tokens=row_tokens)
    found = np.asarray(moved(jnp.asarray(batch.log_probs), layout, other, questions))
    taken = place(np.ones(part.tokens.shape, bool), other)
    np.testing.assert_array_equal(np.where(taken, found, 0), fill(other, part).log_probs)


def test_a_response_longer_than_a_row_is_refused_with_the_way_out():
    _, tree, _ = random_trees(2)
    longest = int(tree.positions.max()) + 1
    with pytest.raises(ValueError, match=rf"has {longest} tokens.*raise train\.row_tokens to at least {longest}"):
        plan(tree, row_tokens=longest - 1)
    with pytest.raises(ValueError, match="rows_per_step=0"):
        plan(tree, row_tokens=longest, rows_per_step=0)


def test_row_lengths_hold_their_tokens_in_few_steps():
    lengths = [row_length(n) for n in range(1, 40_000)]
    assert all(n <= length <= max(128, n + n / 16) + 128 for n, length in enumerate(lengths, start=1))
    assert len(set(lengths)) < 100
    assert row_length(25_600) == 25_600 and row_length(1) == 128
