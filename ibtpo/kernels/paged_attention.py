"""Attention of one new token per slot over its paged keys and values.

Letters: S slots, H heads, K kv heads, g query heads of each, L layers, P pages, M pages per row, t tokens of them.
"""

import jax
from jax import numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu import paged_attention as pallas

from ibtpo.parallel import platform

LANES = 128
BLOCK_TOKENS = 256  # the TPU kernel reads whole blocks of so many tokens (half of one is beyond the end, on average)
MAX_TABLE = 1 << 17  # entries of the page table that the TPU kernel may keep in scalar memory


def paged_attention(
    query: jax.Array,
    key_pages: jax.Array,
    value_pages: jax.Array,
    layer: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    backend: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v over the first `lengths` cached tokens of each slot.

    Args:
      query: [S, H, head_dim]; query head h reads kv head h // (H / K).
      key_pages, value_pages: [K, L, P, page_size, head_dim], all layers.
      layer: int32 [].
      page_table: int32 [S, M]; absent pages are -1.
      lengths: int32 [S], at least 1.
      backend: "tpu" (JAX's own Pallas kernel, which reads the live pages only), "interpret" (the same, interpreted on
        any machine, for tests) or "xla" (reads all M pages of every slot, and masks by length); None: the kernel
        where the mesh's devices are TPUs and it fits (`supported`), else XLA.

    Returns:
      [S, H, head_dim] in the query's dtype; the softmax is float32.

    Raises:
      ValueError: the kernel is asked for and does not fit.
    """
    fits = supported(key_pages.shape[-1], key_pages.dtype, page_table.shape)
    if backend is None:
        backend = "tpu" if platform() == "tpu" and fits else "xla"
    arrays = (query, key_pages, value_pages, layer, page_table, lengths)
    if backend == "xla":
        return _xla(*arrays)
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


def supported(head_dim: int, dtype: jnp.dtype, table_shape: tuple[int, int]) -> bool:
    """Whether JAX's kernel takes such pages: whole lanes, the type it computes in, and a table that fits."""
    # It rounds whatever it reads to bfloat16, which a float32 cache was not chosen for.
    return head_dim % LANES == 0 and dtype == jnp.bfloat16 and table_shape[0] * table_shape[1] <= MAX_TABLE


def _xla(query, key_pages, value_pages, layer, page_table, lengths):
    num_slots, num_heads, head_dim = query.shape
    num_kv_heads, _, _, page_size, _ = key_pages.shape
    num_tokens = page_table.shape[1] * page_size
    pages = jnp.maximum(page_table, 0)

    def gather(cache):
        return cache[:, layer, pages].reshape(num_kv_heads, num_slots, num_tokens, head_dim)

    query = query.reshape(num_slots, num_kv_heads, -1, head_dim)
    # Scores as [.., t, g], not [.., g, t]: with few query heads per kv head the products take 1.4 to 1.6 times less
    # time on a CPU.
    scores = jnp.einsum("kstd,skgd->kstg", gather(key_pages), query, preferred_element_type=jnp.float32)
    visible = jnp.arange(num_tokens) < lengths[:, None]
    scores = jnp.where(visible[:, :, None], scores * head_dim**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=2).astype(value_pages.dtype)
    out = jnp.einsum("kstg,kstd->skgd", weights, gather(value_pages))
    return out.reshape(num_slots, num_heads, head_dim).astype(query.dtype)


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
