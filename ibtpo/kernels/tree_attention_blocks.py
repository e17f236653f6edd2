"""Which pairs of a query block and a key block of a token tree's rows can see one another, as a list for the kernels.

The mask is `subtree_end` alone (see `ibtpo.kernels.tree_attention`). A key block is visible to a query block iff it
begins no later than the queries end and one of its subtrees ends after the queries begin, so from one number per key
block XLA makes the list of visible (row, query block, key block) triples along which the grid of
`ibtpo.kernels.tree_attention_tpu` runs.

Letters: B rows, T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KEY_BLOCK = 512  # most keys in a block
TILE_ROWS = 1024  # most query rows in a tile: its scores, [TILE_ROWS, KEY_BLOCK] float32, take 2 MiB
LANES = 128
HEAD_DIMS = (64, 128)
# A work item is one int32 in scalar memory, of which a TPU core has 1 MiB or less: two flags and three block numbers.
ROW_BITS, QUERY_BITS, KEY_BITS = 8, 12, 9
MAX_ITEMS = 1 << 16


class Blocks(NamedTuple):
    """How a row of tokens is cut: tokens of a query and of a key block (powers of two), and how many of each."""

    query: int
    key: int
    num_query: int
    num_key: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the row with its padding."""
        return self.num_key * self.key


def blocks_of(num_tokens: int, group: int) -> Blocks:
    """Blocks for rows of `num_tokens` tokens and `group` query heads per kv head."""
    key = LANES
    while key < min(KEY_BLOCK, num_tokens):
        key *= 2
    query = LANES
    while query < key and 2 * query * group <= TILE_ROWS:
        query *= 2
    num_key = -(-num_tokens // key)
    return Blocks(query, key, num_key * key // query, num_key)


def supported(num_rows: int, num_tokens: int, group: int, head_dim: int) -> bool:
    """Whether these kernels take such arrays: a known head_dim, tiles and a work list that fit."""
    blocks = blocks_of(num_tokens, group)
    return (
        head_dim in HEAD_DIMS
        and group * LANES <= TILE_ROWS
        and num_rows < 1 << ROW_BITS
        and blocks.num_query < 1 << QUERY_BITS
        and blocks.num_key < 1 << KEY_BITS
        and max_items(num_rows, blocks) <= MAX_ITEMS
    )


def max_items(num_rows: int, blocks: Blocks) -> int:
    """Block pairs on or under the diagonal, over all rows: those a plain causal mask visits."""
    per_key = blocks.key // blocks.query
    return num_rows * sum(blocks.num_query - j * per_key for j in range(blocks.num_key))


def visible_blocks(subtree_end: jax.Array, blocks: Blocks) -> jax.Array:
    """bool [B, num_query, num_key]: whether a query block may see a token of a key block; subtree_end [B, T padded].

    The block pair on the diagonal always counts as visible, so that every block of every result is written.
    """
    last_end = subtree_end.reshape(*subtree_end.shape[:-1], blocks.num_key, blocks.key).max(-1)
    first_query = np.arange(blocks.num_query)[:, None] * blocks.query
    first_key = np.arange(blocks.num_key) * blocks.key
    begun = first_key <= first_query + blocks.query - 1
    diagonal = first_query // blocks.key == np.arange(blocks.num_key)
    return begun & (first_query < last_end[..., None, :]) | diagonal


def work_list(visible: jax.Array, num_items: int, *, by_key: bool) -> tuple[jax.Array, jax.Array]:
    """(items int32 [num_items], their number int32 []) of `visible_blocks`, as the grid visits them.

    In the order of (row, query block, key block), or of (row, key block, query block). An item packs, from the low
    bits, whether it is the first and whether it is the last of its run (same row and outer block), then row, query
    block and key block.
    """
    runs = visible.swapaxes(1, 2) if by_key else visible
    count = runs.sum(dtype=jnp.int32)
    index = jnp.nonzero(runs.reshape(-1), size=num_items, fill_value=0)[0].astype(jnp.int32)
    _, num_outer, num_inner = runs.shape
    run, inner = index // num_inner, index % num_inner
    row, outer = run // num_outer, run % num_outer
    place = jnp.arange(num_items)
    first = (place == 0) | (run != jnp.roll(run, 1))
    last = (place == count - 1) | (run != jnp.roll(run, -1))
    query, key = (inner, outer) if by_key else (outer, inner)
    packed = (key << QUERY_BITS | query) << ROW_BITS | row
    return packed << 2 | last << 1 | first, count


def unpack(item):
    """(first, last, row, query block, key block)."""
    rest = item >> 2
    query = (rest >> ROW_BITS) & ((1 << QUERY_BITS) - 1)
    return item & 1, item & 2, rest & ((1 << ROW_BITS) - 1), query, rest >> (ROW_BITS + QUERY_BITS)
