"""The work list of the TPU kernels holds every block pair with a visible token, and no other."""

import jax.numpy as jnp
import numpy as np
import pytest

from ibtpo.kernels import tree_attention_blocks as tree_blocks
from tests.kernels.forests import random_forest

SMALL = tree_blocks.Blocks(query=8, key=16, num_query=10, num_key=5)


@pytest.mark.parametrize("seed", range(5))
def test_the_work_list_is_exactly_the_visible_blocks(seed):
    rng = np.random.default_rng(seed)
    ends = np.stack([random_forest(rng, SMALL.num_tokens, 0)[1] for _ in range(2)])
    i, j = np.mgrid[: SMALL.num_tokens, : SMALL.num_tokens]
    expected = []
    for row, end in enumerate(ends):
        query, key = np.nonzero((j <= i) & (i < end[j]))
        expected += [(row, a, b) for a, b in {(a // SMALL.query, b // SMALL.key) for a, b in zip(query, key)}]
    visible = tree_blocks.visible_blocks(jnp.asarray(ends), SMALL)
    bound = tree_blocks.max_items(2, SMALL)
    assert len(expected) < bound  # some are skipped
    for by_key in (False, True):
        items, count = tree_blocks.work_list(visible, bound, by_key=by_key)
        first, last, *places = (np.asarray(x) for x in tree_blocks.unpack(items[: int(count)]))
        order = (lambda p: (p[0], p[2], p[1])) if by_key else None
        found = [tuple(map(int, place)) for place in zip(*places)]
        assert found == sorted(expected, key=order)
        runs = [(row, key if by_key else query) for row, query, key in found]
        assert [bool(x) for x in first] == [w == 0 or runs[w] != runs[w - 1] for w in range(len(runs))]
        assert [bool(x) for x in last] == [*(runs[w] != runs[w + 1] for w in range(len(runs) - 1)), True]


@pytest.mark.parametrize("num_tokens, group", [(1, 1), (129, 4), (4096, 7), (25600, 7), (32768, 2), (4096, 8)])
def test_blocks_cover_the_row_and_tiles_stay_small(num_tokens, group):
    blocks = tree_blocks.blocks_of(num_tokens, group)
    assert blocks.num_tokens == blocks.num_query * blocks.query >= num_tokens > blocks.num_tokens - blocks.key
    assert blocks.key % blocks.query == 0 and blocks.query % tree_blocks.LANES == 0
    assert group * blocks.query <= tree_blocks.TILE_ROWS and blocks.key <= tree_blocks.KEY_BLOCK
    assert tree_blocks.supported(1, num_tokens, group, 128)
    chain = np.full((3, blocks.num_tokens), blocks.num_tokens)
    assert tree_blocks.visible_blocks(chain, blocks).sum() == tree_blocks.max_items(3, blocks)
