"""Decode attention over paged keys and values on GPUs, in Pallas (Triton): pages are read where they lie.

Letters: S slots, K kv heads, g query heads of each, n splits of a sequence, M pages per row, x head_dim.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

BLOCK_TOKENS = 128  # keys that a program reads at once; this and the next: fastest on an H200 (docs/results.md)
NUM_WARPS, NUM_STAGES = 4, 2
PROGRAMS = 2048  # sequences are cut into parts until there are PROGRAMS programs, so that all of the device has work
LEAST_ROWS = 16  # of a matrix product; queries are padded to it
LOWEST = float(jnp.finfo(jnp.float32).min)


def supported(head_dim: int, page_size: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes such pages: sizes are powers of two, heads fit shared memory, products are exact in the
    cache's type."""
    # Matrix units would round float32 to 10 bits, which a float32 cache was not chosen for.
    powers = head_dim & (head_dim - 1) == 0 and page_size & (page_size - 1) == 0
    return powers and LEAST_ROWS <= head_dim <= 128 and jnp.dtype(dtype).itemsize == 2


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _kernel(
    query_ref, key_ref, value_ref, first_page_ref, table_ref, length_ref, out_ref, *sums, group, page_size, split
):
    """One slot, kv head and part of its sequence.

    query [rows, x], of which `group` are there, scaled by log2(e) / sqrt(x); key and value [tokens of all pages, x];
    first_page [1], of the layer; table: ids of its pages; length [1]; split: tokens of a part. out [rows, x], of which
    `group` are kept: the attention of the part; sums, where there are several: maximum and denominator of its softmax,
    [rows] each.
    """
    rows, head_dim = query_ref.shape
    kept = jnp.arange(rows) < group
    kept_rows = jnp.broadcast_to(kept[:, None], (rows, head_dim))
    query = triton.load(query_ref, mask=kept_rows, other=0)
    length, first_row = length_ref[0], first_page_ref[0] * page_size
    first = pl.program_id(2) * split
    last = jnp.minimum(first + split, length)

    def read(block, carry):
        highest, total, out = carry
        token = first + block * BLOCK_TOKENS + jnp.arange(BLOCK_TOKENS)
        # One row of keys per token, in a tile of two dimensions: of three, Triton would keep it in shared memory as it
        # came, and the product would read it element by element.
        row = first_row + table_ref[lax.div(token, page_size)] * page_size + lax.rem(token, page_size)
        keys, values = key_ref[row], value_ref[row]
        scores = jnp.where((token < length)[None], _dot(query, keys.T), LOWEST)
        new_highest = jnp.maximum(highest, scores.max(axis=1))
        weights = jnp.exp2(scores - new_highest[:, None])
        old = jnp.exp2(highest - new_highest)
        total = total * old + weights.sum(axis=1)
        return new_highest, total, out * old[:, None] + _dot(weights.astype(values.dtype), values)

    empty = jnp.full(rows, LOWEST), jnp.zeros(rows), jnp.zeros((rows, head_dim))
    highest, total, out = lax.fori_loop(0, pl.cdiv(jnp.maximum(last - first, 0), BLOCK_TOKENS), read, empty)
    # A part behind the end of its sequence has nothing in it, and its weight will be 0.
    out /= jnp.where(total > 0, total, 1)[:, None]
    triton.store(out_ref, out.astype(out_ref.dtype), mask=kept_rows)
    for ref, value in zip(sums, (highest, total)):
        triton.store(ref, value, mask=kept)


class _Parts(NamedTuple):
    """How every sequence is cut: the number of its parts, and the tokens of each, in whole blocks."""

    number: int
    tokens: int


def _cut(num_sequences: int, most_tokens: int) -> _Parts:
    """As many parts as it takes for `PROGRAMS` programs, one per sequence (a slot and kv head) and part."""
    blocks = pl.cdiv(most_tokens, BLOCK_TOKENS)
    number = min(blocks, pl.cdiv(PROGRAMS, num_sequences))
    tokens = pl.cdiv(blocks, number) * BLOCK_TOKENS
    return _Parts(pl.cdiv(blocks * BLOCK_TOKENS, tokens), tokens)


def _attend_parts(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    first_page: jax.Array,
    table: jax.Array,
    lengths: jax.Array,
    *,
    parts: _Parts,
    page_size: int,
    interpret: bool,
) -> list[jax.Array]:
    """`_kernel` over all slots, kv heads and parts.

    query [S, K, g, x], scaled; keys and values [K, tokens of all pages, x]; first_page [1]; table [S, M], of which the
    parts' tokens are pages; lengths [S].

    Returns the result of each part: out [n, S, K, g, x]; where there are several parts, in float32 and with the maximum
    and denominator of the softmax, [n, S, K, g] each.
    """
    num_slots, num_kv_heads, group, head_dim = query.shape
    rows = max(LEAST_ROWS, pl.next_power_of_2(group))
    all_tokens = pl.BlockSpec((None, *keys.shape[1:]), lambda s, k, n: (k, 0, 0))

    # A block of queries reaches beyond the array where a group has fewer than a product takes: loads and stores are
    # masked.
    def of_part(*shape):
        return pl.BlockSpec((None, None, None, *shape), lambda s, k, n: (n, s, k, *[0] * len(shape)))

    def of_all(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((parts.number, num_slots, num_kv_heads, *shape), dtype)

    one = parts.number == 1
    return pl.pallas_call(
        functools.partial(_kernel, group=group, page_size=page_size, split=parts.tokens),
        grid=(num_slots, num_kv_heads, parts.number),
        in_specs=[
            pl.BlockSpec((None, None, rows, head_dim), lambda s, k, n: (s, k, 0, 0)),
            all_tokens,
            all_tokens,
            pl.BlockSpec((1,), lambda s, k, n: (0,)),
            pl.BlockSpec((None, table.shape[1]), lambda s, k, n: (s, 0)),
            pl.BlockSpec((1,), lambda s, k, n: (s,)),
        ],
        out_specs=[of_part(rows, head_dim)] + ([] if one else [of_part(rows)] * 2),
        out_shape=[of_all(group, head_dim, dtype=values.dtype if one else jnp.float32)]
        + ([] if one else [of_all(group)] * 2),
        compiler_params=triton.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES),
        interpret=interpret,
        name="paged_attention",
    )(query, keys, values, first_page, table, lengths)


def _join(out: jax.Array, highest: jax.Array, total: jax.Array) -> jax.Array:
    """The attention of whole sequences [S, K, g, x], from the results of `_attend_parts` for several parts."""
    weights = total * jnp.exp2(highest - highest.max(axis=0))
    return (out * (weights / weights.sum(axis=0))[..., None]).sum(axis=0)


def paged_attention_gpu(
    query: jax.Array,
    key_pages: jax.Array,
    value_pages: jax.Array,
    layer: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`ibtpo.kernels.paged_attention.paged_attention` by a Pallas kernel; arrays as there.

    Every program reads one sequence's pages for one kv head. Where sequences and heads are too few to fill the device,
    it reads a part of them, and XLA puts the parts together (https://arxiv.org/abs/2311.01282).
    """
    num_slots, num_heads, head_dim = query.shape
    num_kv_heads, num_layers, num_pages, page_size, _ = key_pages.shape
    parts = _cut(num_slots * num_kv_heads, page_table.shape[1] * page_size)
    # A block reads whole: tokens behind the end of a sequence are of any page, and masked.
    table = jnp.maximum(page_table, 0)
    table = jnp.pad(table, ((0, 0), (0, pl.cdiv(parts.number * parts.tokens, page_size) - table.shape[1])))
    query = (query.astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))).astype(key_pages.dtype)
    tokens = (num_kv_heads, num_layers * num_pages * page_size, head_dim)
    out, *sums = _attend_parts(
        query.reshape(num_slots, num_kv_heads, num_heads // num_kv_heads, head_dim),
        key_pages.reshape(tokens),
        value_pages.reshape(tokens),
        (layer * num_pages)[None],
        table,
        lengths,
        parts=parts,
        page_size=page_size,
        interpret=interpret,
    )
    if sums:
        out = _join(out, *sums)
    return out.reshape(num_slots, num_heads, head_dim).astype(value_pages.dtype)
