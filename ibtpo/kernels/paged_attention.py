"""Attention of one new token per slot over its paged keys and values.

Letters: S slots, H heads, K kv heads, g query heads of each, L layers, P pages, M pages per row, R rows that read a
block each (slots, or tiles of them), t tokens of it.
"""

from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import paged_attention as pallas

from ibtpo.kernels import paged_attention_gpu
from ibtpo.kernels.page_heads import LANES, narrowed, pages_for, widened
from ibtpo.parallel import platform, share_cores

BLOCK_TOKENS = 256  # tokens of a block, which the TPU kernel reads whole (half of one is beyond the end, on average)
XLA_BLOCK = 64  # tokens of a slot that the XLA path reads at once
XLA_BLOCKS = 8  # such blocks that it reads at once on one core: the gathered tokens stay in the core's cache
SHARED_BLOCK = 256  # tokens of each tile that it reads at once
TILE = 8  # neighbouring slots that the XLA path lets read their common pages together
SHARED_SPEED = 4  # a page read together costs a tile 1 / SHARED_SPEED of that page read by each of its slots
LOWEST = float(jnp.finfo(jnp.float32).min)
MAX_TABLE = 1 << 17  # entries of the page table that the TPU kernel may keep in scalar memory


def paged_attention(
    query: jax.Array,
    key_pages: jax.Array,
    value_pages: jax.Array,
    layer: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    shared: jax.Array | None = None,
    num_kv_heads: int | None = None,
    backend: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v over the first `lengths` cached tokens of each slot.

    Args:
      query: [S, H, head_dim]; query head h reads kv head h // (H / K).
      key_pages, value_pages: [K, L, P, page_size, head_dim], all layers; or in the shape of `page_heads`.
      layer: int32 [].
      page_table: int32 [S, M]; absent pages are -1.
      lengths: int32 [S], at least 1.
      shared: int32 [S], `shared_pages` of these slots, for the XLA path; None: every slot reads its own.
      num_kv_heads: K; None: as many as the pages have.
      backend: "tpu" (JAX's own Pallas kernel) or "gpu" (`paged_attention_gpu`), which read the live pages only;
        "interpret" or "interpret_gpu" (the same, interpreted on any machine, for tests); or "xla" (reads whole blocks
        of the live pages; those that neighbouring slots share are read once where that pays). None: the kernel of the
        mesh's devices where there is one and it fits (`supported`), else XLA.

    Returns:
      [S, H, head_dim] in the query's dtype; the softmax is float32.

    Raises:
      ValueError: the kernel is asked for and does not fit.
    """
    num_kv_heads = num_kv_heads or key_pages.shape[0]
    wide = widened(query, num_kv_heads, key_pages.shape)
    out = _on(backend, wide, key_pages, value_pages, layer, page_table, lengths, shared)
    return narrowed(out, query, num_kv_heads, key_pages.shape)


def _on(backend, query, key_pages, value_pages, layer, page_table, lengths, shared) -> jax.Array:
    """`paged_attention` of queries as wide as the pages, on the backend that is asked for, or that fits."""
    page_size, head_dim = key_pages.shape[3:]
    fits = supported(head_dim, key_pages.dtype, page_table.shape)
    fits_gpu = paged_attention_gpu.supported(head_dim, page_size, key_pages.dtype)
    if backend is None:
        backend = platform() if {"tpu": fits, "gpu": fits_gpu}.get(platform()) else "xla"
    arrays = (query, key_pages, value_pages, layer, page_table, lengths)
    if backend == "xla":
        return _xla(*arrays, shared)
    if backend in ("gpu", "interpret_gpu"):
        if not fits_gpu:
            raise ValueError(
                f"the GPU paged attention takes 16-bit pages with head_dim and page_size powers of two, head_dim 16 to "
                f"128, not {key_pages.dtype} with head_dim {head_dim} and page_size {page_size}: use backend='xla'"
            )
        return paged_attention_gpu.paged_attention_gpu(*arrays, interpret=backend == "interpret_gpu")
    if not fits:
        raise ValueError(
            f"the TPU paged attention takes bfloat16 pages with head_dim in multiples of {LANES} and a page table of "
            f"at most {MAX_TABLE} entries, not {key_pages.dtype} with head_dim {key_pages.shape[-1]} and a table "
            f"{page_table.shape}: use backend='xla', or lower sampling.slots or raise sampling.page_size"
        )
    if backend == "interpret":
        with pltpu.force_tpu_interpret_mode():
            return _tpu(*arrays)
    return _tpu(*arrays)


def supported(head_dim: int, dtype: jnp.dtype, table_shape: tuple[int, ...]) -> bool:
    """Whether JAX's kernel takes such pages: whole lanes, the type it computes in, and a table that fits."""
    # It rounds whatever it reads to bfloat16, which a float32 cache was not chosen for.
    return head_dim % LANES == 0 and dtype == jnp.bfloat16 and table_shape[0] * table_shape[1] <= MAX_TABLE


class _Layer(NamedTuple):
    """One layer's pages in the cache. keys and values: [K, L, P, page_size, head_dim], of all layers; first_row:
    [K, 1, 1], where the pages of a kv head begin in `_gather`'s rows."""

    keys: jax.Array
    values: jax.Array
    first_row: jax.Array

    @property
    def page_size(self) -> int:
        return self.keys.shape[3]


# The running softmax of query rows: maximum [K, R, g], denominator [K, R, g], numerator [K, R, g, head_dim].
_Softmax = tuple[jax.Array, jax.Array, jax.Array]


def _empty(query: jax.Array) -> _Softmax:
    shape = query.shape[:3]
    return jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros(query.shape, jnp.float32)


def _gather(cache: jax.Array, first_row: jax.Array, pages: jax.Array) -> jax.Array:
    """[K, R, t, head_dim], the tokens of `pages` [R, t / page_size] in the layer of `first_row`.

    A page of one layer and kv head is one row of the flat view: pages are gathered as whole rows, in the order in
    which the products read them.
    """
    num_kv_heads, _, _, page_size, head_dim = cache.shape
    rows = lax.optimization_barrier(first_row + pages)  # once, not for each element that they fetch
    found = cache.reshape(-1, page_size * head_dim).at[rows].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return found.reshape(num_kv_heads, pages.shape[0], -1, head_dim)


def _attend(layer: _Layer, query: jax.Array, pages: jax.Array, visible: jax.Array) -> _Softmax:
    """The softmax of one block per row; query [K, R, g, head_dim], pages [R, t / page_size], visible [R, t]."""
    # As [.., t, g], not [.., g, t]: with few query heads per kv head the product takes a third of the time (CPU),
    # and the barrier keeps XLA from turning it round again.
    keys = _gather(layer.keys, layer.first_row, pages)
    scores = jnp.einsum("krtd,krgd->krtg", keys, query, preferred_element_type=jnp.float32)
    scores = jnp.swapaxes(lax.optimization_barrier(scores), 2, 3)
    scores = jnp.where(visible[:, None], scores, LOWEST)
    highest = jnp.max(scores, axis=3)
    weights = jnp.where(visible[:, None], jnp.exp(scores - highest[..., None]), 0)
    total = jnp.sum(weights, axis=3)
    weights = lax.optimization_barrier(weights.astype(layer.values.dtype))
    values = _gather(layer.values, layer.first_row, pages)
    return highest, total, jnp.einsum("krgt,krtd->krgd", weights, values, preferred_element_type=jnp.float32)


def _merge(row: jax.Array, carry: _Softmax, block: _Softmax) -> _Softmax:
    """Adds block [K, R, g, ..] to the running softmax of rows `row` [R], several of which may be one."""
    highest, total, out = carry
    new_highest = highest.at[:, row].max(block[0])
    old, new = jnp.exp(highest - new_highest), jnp.exp(block[0] - new_highest[:, row])
    total = (total * old).at[:, row].add(block[1] * new)
    return new_highest, total, (out * old[..., None]).at[:, row].add(block[2] * new[..., None])


def _read_shared(
    layer: _Layer, query: jax.Array, table: jax.Array, lengths: jax.Array, shared: jax.Array, none: _Softmax
) -> tuple[_Softmax, jax.Array]:
    """Slots of a tile read the pages that all of them share once, in one product with all their queries.

    query [K, S, g, head_dim], table [S, M], shared [S] as of `shared_pages`; none: the softmax of slots that have read
    nothing. Returns the slots' softmax after it, and from which page on each is left to read its own, [S].
    """
    num_kv_heads, num_slots = query.shape[:2]
    num_columns, page_size = table.shape[1], layer.page_size
    tiles, alone = num_slots // TILE, lengths == 1
    start, shared = jnp.where(alone, 0, shared), shared[::TILE]
    # Of any slot that is not alone: the shared ones are the same.
    tile_table = jnp.max(jnp.where(alone[:, None], 0, table).reshape(tiles, TILE, num_columns), axis=1)
    together = query.reshape(num_kv_heads, tiles, -1, query.shape[-1])

    wide = max(1, SHARED_BLOCK // page_size)
    tile_table = jnp.pad(tile_table, ((0, 0), (0, -num_columns % wide)))

    def read_block(block, carry):
        pages = lax.dynamic_slice_in_dim(tile_table, block * wide, wide, axis=1)
        visible = block * wide * page_size + jnp.arange(wide * page_size) < shared[:, None] * page_size
        return _merge(jnp.arange(tiles), carry, _attend(layer, together, pages, visible))

    read = lax.fori_loop(0, pages_for(jnp.max(shared), wide), read_block, _empty(together))

    def of_slots(read, none):
        return jnp.where(alone.reshape(1, -1, *[1] * (none.ndim - 2)), none, read.reshape(none.shape))

    return jax.tree.map(of_slots, read, none), start


def _read_own(
    layer: _Layer,
    query: jax.Array,
    table: jax.Array,
    lengths: jax.Array,
    token: jax.Array,
    start: jax.Array,
    carry: _Softmax,
) -> _Softmax:
    """Adds the pages each slot reads alone, from page `start` [S] on, to its softmax.

    They are read block by block, several blocks at a time, whatever slots they are of: the blocks of all slots are
    numbered through, so that the work follows the sum of the lengths and not the longest. token: [t], 0 to the number
    of a block's tokens; table: [S, M] in whole blocks.
    """
    num_slots, num_columns = table.shape
    page_size = layer.page_size
    columns = token.size // page_size
    blocks = pages_for(pages_for(lengths, page_size) - start, columns)
    ends = jnp.cumsum(blocks)
    width = min(num_slots, XLA_BLOCKS) if share_cores() else num_slots

    def read_blocks(turn, carry):
        number = turn * width + jnp.arange(width)
        slot = jnp.searchsorted(ends, number, side="right", method="compare_all").clip(max=num_slots - 1)
        first = start[slot] + (number - ends[slot] + blocks[slot]) * columns
        pages = table[slot[:, None], (first[:, None] + jnp.arange(columns)).clip(max=num_columns - 1)]
        visible = first[:, None] * page_size + token < lengths[slot][:, None]
        visible &= (number < ends[-1])[:, None]
        pages, visible = lax.optimization_barrier((pages, visible))  # once, not for each element they are used for
        return _merge(slot, carry, _attend(layer, query[:, slot], pages, visible))

    return lax.fori_loop(0, pages_for(ends[-1], width), read_blocks, carry)


def _xla(query, key_pages, value_pages, layer, page_table, lengths, shared):
    num_slots, num_heads, head_dim = query.shape
    num_kv_heads, num_layers, num_pages, page_size, _ = key_pages.shape
    columns = max(1, XLA_BLOCK // page_size)  # pages of each slot read at once
    num_columns = pages_for(page_table.shape[1], columns) * columns
    table = jnp.pad(jnp.maximum(page_table, 0), ((0, 0), (0, num_columns - page_table.shape[1])))
    query = jnp.moveaxis(query.reshape(num_slots, num_kv_heads, -1, head_dim), 1, 0) * head_dim**-0.5
    first_row = (jnp.arange(num_kv_heads)[:, None, None] * num_layers + layer) * num_pages
    pages = _Layer(key_pages, value_pages, first_row)
    token = jnp.arange(columns * page_size)
    carry, start = _empty(query), jnp.zeros(num_slots, jnp.int32)
    if shared is not None and num_slots % TILE == 0:
        carry, start = _read_shared(pages, query, table, lengths, shared, carry)
    _, total, out = _read_own(pages, query, table, lengths, token, start, carry)
    out = jnp.moveaxis(out / total[..., None], 0, 1)
    return out.reshape(num_slots, num_heads, head_dim).astype(value_pages.dtype)


def shared_pages(page_table: jax.Array, lengths: jax.Array, page_size: int) -> jax.Array:
    """int32 [S]: how many of its first pages a slot had better read together with the others of its tile of neighbours;
    equal within a tile, and zero for all where it does not pay.

    Read together are the first whole pages that all slots of the tile name. Slots of one token, which free ones claim
    to have, do not count: they read theirs alone.
    """
    if lengths.shape[0] % TILE:
        return jnp.zeros_like(lengths)
    columns = max(1, XLA_BLOCK // page_size)
    tables, lengths = page_table.reshape(-1, TILE, page_table.shape[1]), lengths.reshape(-1, TILE)
    alone, longest = lengths == 1, jnp.argmax(lengths, axis=1)
    same = jnp.take_along_axis(tables, longest[:, None, None], axis=1) == tables
    same = jnp.all(same | alone[..., None], axis=1)
    # Every slot keeps its last token to itself, so that none is done before its own loop.
    whole = jnp.min(jnp.where(alone, jnp.max(lengths), lengths) - 1, axis=1) // page_size
    shared = jnp.minimum(jnp.sum(jnp.cumprod(same, axis=1), axis=1), whole)
    shared = jnp.where(jnp.all(alone, axis=1), 0, shared).astype(jnp.int32)
    # All tiles go round their loop as often as the one with the most to read; a slot reads its own blocks only.
    held = pages_for(lengths, page_size)
    own = jnp.where(alone, held, held - shared[:, None])
    saved = jnp.sum(pages_for(held, columns) - pages_for(own, columns))
    pays = saved * SHARED_SPEED > pages_for(jnp.max(shared), columns) * lengths.size
    return jnp.repeat(jnp.where(pays, shared, 0), TILE)


def _tpu(query, key_pages, value_pages, layer, page_table, lengths):
    head_dim = query.shape[-1]
    num_kv_heads, _, num_pages, page_size, _ = key_pages.shape
    # The kernel knows no layers: a layer's pages are a range of all pages.
    pages = jnp.maximum(page_table, 0) + layer * num_pages
    block = max(1, min(BLOCK_TOKENS // page_size, pages.shape[1]))
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % block)))  # read at most, never seen: lengths end before
    shape = (num_kv_heads, -1, page_size, head_dim)
    return pallas.paged_attention(
        query.astype(jnp.float32) * head_dim**-0.5,  # it does not scale, and adds up the output in the query's type
        key_pages.reshape(shape),
        value_pages.reshape(shape),
        lengths,
        pages,
        pages_per_compute_block=block,
    ).astype(query.dtype)


def paged_attention_cost(lengths: jax.Array, *, num_heads: int, num_kv_heads: int, head_dim: int, itemsize: int):
    """(FLOPs, bytes) of one call of the TPU kernel, which carries no estimate of its own.

    Two products with each cached key and value, which are read once; the queries are nothing to that.

    Args:
      lengths: [S], as the kernel reads them: in whole blocks of max(1, BLOCK_TOKENS // page_size) pages.
    """
    tokens = lengths.sum()
    return 4 * num_heads * head_dim * tokens, 2 * num_kv_heads * head_dim * itemsize * tokens
