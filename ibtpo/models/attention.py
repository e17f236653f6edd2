"""The decoder's attention where keys and values are those of the rows themselves (training, scoring, prefill)."""

import jax

from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.models.decoder import Attend
from ibtpo.parallel import per_shard


def tree_attend(subtree_end: jax.Array) -> Attend:
    """An `attend` for the decoder: token i sees the j with j <= i < subtree_end[j], [B, T]; the cache passes through.

    Under a mesh every device attends for its own rows and kv heads.
    """
    heads, ends = ("rows", None, "kv_heads", None), ("rows", None)

    def grouped(q, k, v, subtree_end):
        B, T, K, G, Dh = q.shape
        out = tree_attention(q.reshape(B, T, K * G, Dh), k, v, subtree_end)
        return out.reshape(B, T, K, G, Dh)

    attention = per_shard(grouped, ((*heads, None), heads, heads, ends), (*heads, None))

    def attend(q, k, v, layer, cache):
        # Query heads are split by the kv head they read, so that a device has both.
        B, T, H, Dh = q.shape
        K = k.shape[2]
        out = attention(q.reshape(B, T, K, H // K, Dh), k, v, subtree_end)
        return out.reshape(B, T, H, Dh), cache

    return attend
