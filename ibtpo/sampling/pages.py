"""The paged KV cache: fixed pages, reference counts, copy-on-write forks.

A sequence's keys and values live in pages named by its row of the page table. Forking a sequence
shares its whole pages and copies only the one that is partly filled, so a page is written by exactly
one sequence: the one that owns its unfilled tail. Every function here is pure and vectorised over
rows; none loops over pages.

Under a mesh every shard of the logical axis "rows" (data and fsdp devices) has its own pages, page-table
rows and slots, page and row ids count within the shard, and the functions here run on each shard by
itself (`parallel.per_shard` with `POOL_AXES`): no page crosses shards. kv heads are split over tensor.

Letters: L layers, P pages, K kv heads, N rows of the page table (one per sequence), M pages a row can
hold, F forks made at once.
"""

from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np
from flax import struct
from jax import numpy as jnp

from ibtpo.kernels.page_heads import in_pages, pages_for

NO_PAGE = -1
NO_ROW = np.iinfo(np.int32).max  # a row (or page) out of range of any pool: scatters pass it over


@struct.dataclass
class PagePool:
    """All KV memory of the sampler.

    keys, values: [K, L, P, page_size, head_dim]: layers and pages are neighbours, so that one layer's
      pages are a range of L * P, and kernels that know no layers read them without a copy. Where a kernel reads whole
      lanes only, several small heads are one (`kernels.page_heads`).
    ref_counts: [P] int32, how many page-table entries name the page; 0 means free.
    page_table: [N, M] int32, pages of each row in order, NO_PAGE where there is none.
    """

    keys: jax.Array
    values: jax.Array
    ref_counts: jax.Array
    page_table: jax.Array

    @property
    def num_pages(self) -> int:
        return self.keys.shape[2]

    @property
    def page_size(self) -> int:
        return self.keys.shape[3]


# The same structure with the logical names of the arrays' axes in their places.
POOL_AXES: PagePool = cast(Any, PagePool)(
    keys=("kv_heads", None, "rows", None, None),
    values=("kv_heads", None, "rows", None, None),
    ref_counts=("rows",),
    page_table=("rows", None),
)


def make_pool(
    *,
    num_layers: int,
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    num_rows: int,
    pages_per_row: int,
    dtype=jnp.float32,
) -> PagePool:
    """An empty pool: every page free, every row of the page table empty. Heads as `page_heads` has them."""
    shape = (num_kv_heads, num_layers, num_pages, page_size, head_dim)
    return PagePool(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        ref_counts=jnp.zeros(num_pages, jnp.int32),
        page_table=jnp.full((num_rows, pages_per_row), NO_PAGE, jnp.int32),
    )


def pages_in_use(pool: PagePool) -> jax.Array:
    """Number of pages some row refers to, an int32 scalar."""
    return jnp.sum(pool.ref_counts > 0, dtype=jnp.int32)


def _allocate(ref_counts: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives each True of `wanted` (any shape) a free page of its own, with reference count 1.

    Returns (pages, ref_counts); pages is NO_PAGE where nothing was wanted *or nothing was free*, which
    callers have to look at: a fork is not done then, and a row waits.
    """
    flat = wanted.reshape(-1)
    rank = jnp.cumsum(flat) - 1
    num_pages = ref_counts.shape[0]
    (free,) = jnp.nonzero(ref_counts == 0, size=min(flat.size, num_pages), fill_value=num_pages)
    pages = jnp.where(flat, free.at[rank].get(mode="fill", fill_value=num_pages), num_pages)
    ref_counts = ref_counts.at[pages].set(1, mode="drop")
    return jnp.where(pages < num_pages, pages, NO_PAGE).reshape(wanted.shape), ref_counts


def _drop(ref_counts: jax.Array, pages: jax.Array) -> jax.Array:
    """Takes one reference off every page named (NO_PAGE entries are passed over)."""
    pages = jnp.where(pages == NO_PAGE, ref_counts.shape[0], pages)
    return ref_counts.at[pages].add(-1, mode="drop")


def extend(pool: PagePool, rows: jax.Array, num_tokens: jax.Array) -> PagePool:
    """Makes room for `num_tokens` [F] tokens in `rows` [F]; a row out of range is passed over.

    Pages a row already holds stay; only missing ones are allocated.
    """
    held = pool.page_table.at[rows].get(mode="fill", fill_value=0)  # 0 = held: allocates nothing
    column = jnp.arange(pool.page_table.shape[1])
    missing = (held == NO_PAGE) & (column < pages_for(num_tokens, pool.page_size)[:, None])
    pages, ref_counts = _allocate(pool.ref_counts, missing)
    table = pool.page_table.at[rows].set(jnp.where(missing, pages, held), mode="drop")
    return replace(pool, ref_counts=ref_counts, page_table=table)


def release(pool: PagePool, rows: jax.Array) -> PagePool:
    """Gives back every page of `rows` [F]; those nobody else refers to become free.

    A row out of range is passed over. Rows are only ever given back whole: a row cut short could end within a
    page that a fork of it shares, and would then write into the fork's tokens.
    """
    return replace(
        pool,
        ref_counts=_drop(pool.ref_counts, pool.page_table.at[rows].get(mode="fill", fill_value=NO_PAGE)),
        page_table=pool.page_table.at[rows].set(NO_PAGE, mode="drop"),
    )


def fork(pool: PagePool, sources: jax.Array, targets: jax.Array, num_tokens: jax.Array) -> tuple[PagePool, jax.Array]:
    """Lets each row of `targets` [F] begin with the first `num_tokens` [F] cached tokens of `sources` [F].

    Whole pages are shared (reference count + 1); a partly filled last page is copied into a fresh one,
    because both rows will write on. Target rows must be empty and distinct. An entry whose target is
    out of range is passed over, and so is one for whose copy no page is free.

    Returns: (pool, [F] bool: whether the entry was forked).
    """
    page_size, num_pages = pool.page_size, pool.num_pages
    partial = (targets < pool.page_table.shape[0]) & (num_tokens % page_size > 0)
    copies, ref_counts = _allocate(pool.ref_counts, partial)
    done = (targets < pool.page_table.shape[0]) & (~partial | (copies != NO_PAGE))
    targets = jnp.where(done, targets, NO_ROW)
    held = pool.page_table.at[sources].get(mode="fill", fill_value=NO_PAGE)
    column = jnp.arange(held.shape[1])
    shared = done[:, None] & (column < (num_tokens // page_size)[:, None])
    ref_counts = ref_counts.at[jnp.where(shared, held, num_pages)].add(1, mode="drop")

    at_partial = partial[:, None] & (column == (num_tokens // page_size)[:, None])
    rows = jnp.where(shared, held, jnp.where(at_partial, copies[:, None], NO_PAGE))
    original = jnp.max(jnp.where(at_partial, held, 0), axis=1)
    copies = jnp.where(copies == NO_PAGE, num_pages, copies)
    forked = replace(
        pool,
        keys=pool.keys.at[:, :, copies].set(pool.keys[:, :, original], mode="drop"),
        values=pool.values.at[:, :, copies].set(pool.values[:, :, original], mode="drop"),
        ref_counts=ref_counts,
        page_table=pool.page_table.at[targets].set(rows, mode="drop"),
    )
    return forked, done


def free_pages(ref_counts: jax.Array, count: int) -> jax.Array:
    """The first `count` free pages, int32 [count]; out of range beyond the last one."""
    (free,) = jnp.nonzero(ref_counts == 0, size=count, fill_value=NO_ROW)
    return free.astype(jnp.int32)


def lacks_page(pool: PagePool, rows: jax.Array, lengths: jax.Array) -> jax.Array:
    """[S] bool: whether the row [S] has no page for the last of its first `lengths` [S] tokens."""
    return pool.page_table[rows, (lengths - 1) // pool.page_size] == NO_PAGE


def take_pages(
    pool: PagePool, free: jax.Array, taken: jax.Array, rows: jax.Array, lengths: jax.Array, active: jax.Array
) -> tuple[PagePool, jax.Array, jax.Array]:
    """Room for the last of the first `lengths` [S] tokens of distinct `rows` [S], where `active` [S] and not there yet.

    free: `free_pages` of a pool from which nothing else has been taken since. taken: int32 [1], how many of them this
    function has given away.

    Returns: (pool, taken, [S] bool: active and with room).
    """
    wanted = active & lacks_page(pool, rows, lengths)
    rank = taken + jnp.cumsum(wanted) - 1
    pages = jnp.where(wanted, free.at[rank].get(mode="fill", fill_value=NO_ROW), NO_ROW)
    got = pages < pool.num_pages
    column = (lengths - 1) // pool.page_size
    pool = replace(
        pool,
        ref_counts=pool.ref_counts.at[pages].set(1, mode="drop"),
        page_table=pool.page_table.at[jnp.where(got, rows, NO_ROW), column].set(pages, mode="drop"),
    )
    return pool, taken + jnp.sum(got, dtype=jnp.int32), active & (~wanted | got)


def page_and_offset(
    page_table: jax.Array, positions: jax.Array, valid: jax.Array, page_size: int
) -> tuple[jax.Array, jax.Array]:
    """Where tokens at `positions` [S, T] of the rows `page_table` [S, M] are stored.

    Returns (page, offset) [S, T]; page is out of range (dropped by scatters) where not `valid`.
    """
    pages = jnp.take_along_axis(page_table, positions // page_size, axis=1, mode="clip")
    return jnp.where(valid & (pages != NO_PAGE), pages, NO_ROW), positions % page_size


def write(cache: jax.Array, layer: jax.Array, page: jax.Array, offset: jax.Array, new: jax.Array) -> jax.Array:
    """Keys or values `cache` [heads, L, P, page_size, lanes] with those of new tokens, [S, T, K, head_dim], of one
    layer stored at (page, offset) [S, T]."""
    num_kv_heads, num_layers, num_pages, page_size, head_dim = cache.shape
    new = in_pages(new, num_kv_heads, head_dim)
    # Rows of a flat view, one per token and kv head: a window over several heads would make the TPU compiler prefer
    # another layout than the attention kernel's, and copy the whole cache there and back in every layer.
    head = jnp.arange(num_kv_heads)[:, None, None]
    index = ((head * num_layers + layer) * num_pages + page) * page_size + offset
    index = jnp.where(page < num_pages, index, NO_ROW)
    rows = cache.reshape(-1, head_dim).at[index].set(jnp.moveaxis(new, 2, 0).astype(cache.dtype), mode="drop")
    return rows.reshape(cache.shape)
