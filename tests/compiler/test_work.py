"""A tree, its visible pairs, and the rows of an update."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.compiler.work import make_work, representative_tree, visible_blocks, visible_pairs
from ibtpo.kernels.tree_attention_tpu import Blocks
from ibtpo.run_plan import RunPlan
from ibtpo.sampling.strategies import TreeOptions
from tests.compiler.small import MODEL, small


def visible(subtree_end):
    i = np.arange(len(subtree_end))
    return (i[None, :] <= i[:, None]) & (i[:, None] < subtree_end[None, :])


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5), st.integers(1, 40))
def test_visible_pairs_and_blocks_are_those_of_the_mask(seed, initial, rounds, prompt):
    options = TreeOptions(initial=initial, rounds=rounds, max_new_tokens=200, min_new_tokens=1)
    end = representative_tree(options, prompt, seed).subtree_end[0]
    mask = visible(end)
    assert visible_pairs(end) == mask.sum()
    num_key = -(-len(end) // 128)
    blocks = Blocks(query=64, key=128, num_query=2 * num_key, num_key=num_key)
    padded = np.zeros((blocks.num_tokens,) * 2, bool)
    padded[: len(end), : len(end)] = mask
    seen = padded.reshape(blocks.num_query, 64, num_key, 128).any(axis=(1, 3))
    causal = np.tri(blocks.num_tokens, dtype=bool).reshape(blocks.num_query, 64, num_key, 128).any(axis=(1, 3))
    # On the diagonal the kernel visits every block, also where all of it is padding.
    seen |= np.arange(blocks.num_query)[:, None] // 2 == np.arange(num_key)
    causal |= np.arange(blocks.num_query)[:, None] // 2 == np.arange(num_key)
    assert visible_blocks(end, blocks) == (seen.sum(), causal.sum())


def test_the_representative_tree_is_the_papers():
    options = TreeOptions(initial=4, rounds=9, top_k=1, branch=1, max_new_tokens=2048, min_new_tokens=16)
    tree = representative_tree(options, 100)
    assert tree.response_node.shape == (1, 12)
    assert (tree.response_length == 2048).all()
    assert np.bincount(tree.response_round[0]).tolist() == [4, 1, 1, 1, 1, 1, 1, 1, 1]
    tokens = tree.tokens.shape[1]
    # Four whole responses, and of each later one what lies behind its fork: half of it on average.
    assert 100 + 4 * 2048 + 8 * 2048 * 0.3 < tokens < 100 + 4 * 2048 + 8 * 2048 * 0.7
    again = representative_tree(options, 100)
    np.testing.assert_array_equal(tree.subtree_end, again.subtree_end)


def test_independent_responses_share_the_prompt_alone():
    options = TreeOptions(strategy="independent", initial=3, rounds=1, max_new_tokens=50)
    tree = representative_tree(options, 10)
    assert tree.tokens.shape == (1, 10 + 3 * 50)
    expected = 10 * 11 // 2 + 3 * (50 * 10 + 50 * 51 // 2)
    assert visible_pairs(tree.subtree_end[0]) == expected


def test_rows_shorter_than_a_tree_hold_pieces_of_it():
    whole, pieces = (make_work(c := small(train__row_tokens=n), MODEL, RunPlan.from_config(c)) for n in (0, 32))
    assert pieces.row_tokens == 32 < pieces.tree_tokens == whole.tree_tokens
    assert pieces.rows % 2 == 0 and pieces.rows >= 4 * pieces.tree_tokens / 32
    # Of four trees; means are rounded down, and rows up to whole microbatches.
    real = 4 * pieces.tree_tokens
    assert 0.9 * real <= pieces.rows * pieces.unique_tokens <= 1.2 * real
    assert len(pieces.subtree_end) == 32 and visible_pairs(pieces.subtree_end) >= pieces.pairs
