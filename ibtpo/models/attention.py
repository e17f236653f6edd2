"""The decoder's attention where keys and values are those of the rows themselves (training, scoring, prefill)."""

import jax
from jax import numpy as jnp

from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.models.decoder import Attend
from ibtpo.parallel import per_shard, platform


def tree_attend(subtree_end: jax.Array) -> Attend:
    """An `attend` for the decoder: token i sees the j with j <= i < subtree_end[j], [B, T]; the cache passes through.

    Under a mesh every device attends for its own rows and kv heads.
    """
    return _attend(tree_attention, subtree_end)


def prompt_attend(lengths: jax.Array) -> Attend:
    """An `attend` for rows [B, T] that each hold one sequence of `lengths` [B] tokens and then padding: token i of a
    sequence sees the j <= i. The output at padding is finite, but meaningless."""

    def attention(q, k, v, lengths):
        head_dim = q.shape[-1]
        if platform() == "gpu" and q.dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128:
            # cuDNN's: a tenth of the time of XLA's loop over blocks (docs/results.md).
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        # Causal attention is tree attention on a chain: every token's subtree ends where the sequence does.
        positions = jnp.arange(q.shape[1])
        ends = jnp.where(positions < lengths[:, None], lengths[:, None], positions + 1)
        return tree_attention(q, k, v, ends)

    return _attend(attention, lengths)


def _attend(attention, masks: jax.Array) -> Attend:
    """An `attend` of attention(q [B, T, H, Dh], k, v [B, T, K, Dh], masks [B, ...]) -> [B, T, H, Dh]."""
    heads = ("rows", None, "kv_heads", None)

    def grouped(q, k, v, masks):
        B, T, K, G, Dh = q.shape
        out = attention(q.reshape(B, T, K * G, Dh), k, v, masks)
        return out.reshape(B, T, K, G, Dh)

    own = per_shard(grouped, ((*heads, None), heads, heads, ("rows",) + (None,) * (masks.ndim - 1)), (*heads, None))

    def attend(q, k, v, layer, cache):
        # Query heads are split by the kv head they read, so that a device has both.
        B, T, H, Dh = q.shape
        K = k.shape[2]
        out = own(q.reshape(B, T, K, H // K, Dh), k, v, masks)
        return out.reshape(B, T, H, Dh), cache

    return attend
