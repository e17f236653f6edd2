"""Attention over token trees laid out depth first: one integer per token is the whole mask."""

import itertools

import jax
import jax.numpy as jnp

from ibtpo.kernels.tree_attention_tpu import supported, tree_attention_tpu
from ibtpo.parallel import platform

_GROUPS = 8  # static key ranges of the causal triangle


def tree_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    *,
    query_block: int = 128,
    backend: str | None = None,
) -> jax.Array:
    """out_i = sum_j softmax_j(q_i . k_j / sqrt(Dh)) v_j over the j with j <= i < subtree_end[j].

    In depth-first order the tokens below j are the contiguous run [j, subtree_end[j]), so the condition selects exactly
    the path from the first token of i's tree to i. It holds several trees per row, plain packed sequences
    (subtree_end = end of the sequence) and padding (subtree_end[j] = j + 1: sees itself only). A query that sees
    nothing at all comes out finite, with finite gradients.

    Memory of the XLA path is O(B H query_block T), forward and backward: query blocks are visited in turn and
    recomputed for the gradient. The TPU kernels need O(B H T Dh).

    Args:
      q: [B, T, H, Dh]; query head h reads kv head h // (H / K).
      k, v: [B, T, K, Dh].
      subtree_end: int32 [B, T], exclusive end of the subtree of each token.
      query_block: queries per block of the XLA path; T need not be a multiple of it.
      backend: "tpu" (Pallas), "interpret" (the same kernels, interpreted on any machine, for tests) or "xla"; None: the
        kernels where the mesh's devices are TPUs and the shapes allow it (`tree_attention_tpu.supported`), else XLA.

    Returns:
      [B, T, H, Dh] in v's dtype; scores and softmax are float32.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    if backend is None:
        backend = "tpu" if platform() == "tpu" and supported(B, T, H // K, Dh) else "xla"
    if backend != "xla":
        return tree_attention_tpu(q, k, v, subtree_end, interpret=backend == "interpret")
    block = min(query_block, T)
    num_blocks = -(-T // block)
    # Letters: n block, i query in the block, j key, k kv head, g query head of that kv head, x head_dim.
    q = jnp.pad(q, ((0, 0), (0, num_blocks * block - T), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(B, num_blocks, block, K, H // K, Dh), 1, 0)
    starts = jnp.arange(num_blocks, dtype=jnp.int32) * block

    def attend_group(first: int, last: int) -> jax.Array:
        """Blocks first <= n < last, against the keys up to the end of the last of them."""
        num_keys = min(last * block, T)
        keys, values, ends = k[:, :num_keys], v[:, :num_keys], subtree_end[:, None, :num_keys]
        key_ids = jnp.arange(num_keys, dtype=jnp.int32)

        @jax.checkpoint
        def attend_block(inputs):
            q, start = inputs
            rows = (start + jnp.arange(block, dtype=jnp.int32))[:, None]
            visible = (key_ids <= rows) & (rows < ends)  # [B, i, j]
            scores = jnp.einsum("bikgx,bjkx->bkgij", q, keys, preferred_element_type=jnp.float32)
            scores = scores * Dh**-0.5
            # A finite floor, not -inf: the rows that fill the last block see nothing and must not become NaN.
            scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
            weights = jax.nn.softmax(scores, axis=-1)
            return jnp.einsum("bkgij,bjkx->bikgx", weights.astype(v.dtype), values)

        return jax.lax.map(attend_block, (q[first:last], starts[first:last]))

    # No key after a query is ever visible. Groups of blocks with static key ranges skip most of those: 8 groups leave
    # 9/16 of the square, and the program's size does not grow with T.
    bounds = [num_blocks * g // min(_GROUPS, num_blocks) for g in range(min(_GROUPS, num_blocks) + 1)]
    out = jnp.concatenate([attend_group(*pair) for pair in itertools.pairwise(bounds)])
    return jnp.moveaxis(out, 0, 1).reshape(B, num_blocks * block, H, Dh)[:, :T]
