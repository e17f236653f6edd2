"""How pages hold the heads of keys and values: as they are, or several small ones side by side in whole lanes.

Letters: S slots, H heads, K kv heads, L layers, P pages.
"""

import jax
from jax import numpy as jnp

from ibtpo.parallel import platform

LANES = 128


def pages_for(num_tokens, page_size: int):
    """ceil(num_tokens / page_size): pages that hold `num_tokens` tokens."""
    return -(-num_tokens // page_size)


def page_heads(num_kv_heads: int, head_dim: int, dtype: jnp.dtype, tensor: int = 1) -> tuple[int, int]:
    """(heads, lanes) of a model's keys or values in pages [heads, L, P, page_size, lanes] on the current platform.

    The TPU kernel reads whole lanes, 128 numbers. Smaller heads lie side by side in them, and what is left of the lanes
    is zeros; where `tensor` devices split the heads, those of one device. Elsewhere heads are as they are.
    """
    if platform() != "tpu" or dtype != jnp.bfloat16 or head_dim % LANES == 0:
        return num_kv_heads, head_dim
    lanes = pages_for(head_dim, LANES) * LANES
    if num_kv_heads % tensor:  # every device has all of them, in pages that it does not split either
        return num_kv_heads, lanes
    return tensor * pages_for(num_kv_heads // tensor, lanes // head_dim), lanes


def side_by_side(num_kv_heads: int, heads: int, head_dim: int, lanes: int) -> int:
    """How many heads lie side by side in pages of so many heads and lanes."""
    return lanes // head_dim if heads < num_kv_heads else 1


def in_pages(new: jax.Array, heads: int, lanes: int) -> jax.Array:
    """Keys or values [..., K, head_dim] as the pages of `page_heads` hold them: [..., heads, lanes]."""
    num_kv_heads, head_dim = new.shape[-2:]
    if (num_kv_heads, head_dim) == (heads, lanes):
        return new
    side = side_by_side(num_kv_heads, heads, head_dim, lanes)
    missing = (heads * side - num_kv_heads, lanes // side - head_dim)
    padded = jnp.pad(new, [(0, 0)] * (new.ndim - 2) + [(0, n) for n in missing])
    padded = padded.reshape(*new.shape[:-2], heads, side * (lanes // side))
    return jnp.pad(padded, [(0, 0)] * (new.ndim - 1) + [(0, lanes - padded.shape[-1])])


def widened(query: jax.Array, num_kv_heads: int, pages: tuple[int, ...]) -> jax.Array:
    """[S, H', lanes]: queries for pages of the shape [heads, L, P, page_size, lanes].

    As they are where the heads are; else float32, each with zeros where its neighbours' keys lie, and larger by as much
    as the root of the lanes is than that of head_dim, by which attention divides.
    """
    num_slots, _, head_dim = query.shape
    heads, lanes = pages[0], pages[-1]
    if (num_kv_heads, head_dim) == (heads, lanes):
        return query
    side = side_by_side(num_kv_heads, heads, head_dim, lanes)
    grouped = query.astype(jnp.float32).reshape(num_slots, num_kv_heads, -1, head_dim) * (lanes / head_dim) ** 0.5
    grouped = jnp.pad(grouped, ((0, 0), (0, heads * side - num_kv_heads), (0, 0), (0, lanes // side - head_dim)))
    grouped = grouped.reshape(num_slots, heads, side, -1, 1, lanes // side)
    own = jnp.eye(side, dtype=jnp.float32)[:, None, :, None]
    wide = (grouped * own).reshape(num_slots, -1, side * (lanes // side))
    return jnp.pad(wide, ((0, 0), (0, 0), (0, lanes - wide.shape[-1])))


def narrowed(out: jax.Array, query: jax.Array, num_kv_heads: int, pages: tuple[int, ...]) -> jax.Array:
    """[S, H, head_dim]: the output for `widened` queries, of each its own head's values, in the query's type."""
    num_slots, _, head_dim = query.shape
    heads, lanes = pages[0], pages[-1]
    if (num_kv_heads, head_dim) == (heads, lanes):
        return out
    side = side_by_side(num_kv_heads, heads, head_dim, lanes)
    part = lanes // side
    out = out[..., : side * part].reshape(num_slots, heads, side, -1, side, part)
    own = jnp.stack([out[:, :, i, :, i, :head_dim] for i in range(side)], axis=2)
    own = own.reshape(num_slots, heads * side, -1, head_dim)[:, :num_kv_heads]
    return own.reshape(query.shape).astype(query.dtype)
