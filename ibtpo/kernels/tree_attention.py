"""Attention over token trees laid out depth first: one integer per token is the whole mask."""

import jax
import jax.numpy as jnp

from ibtpo.kernels.tree_attention_tpu import supported, tree_attention_tpu
from ibtpo.parallel import platform

_WIDTHS = 8  # static numbers of key blocks that a block of queries may see


def tree_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    *,
    block: int = 64,
    backend: str | None = None,
) -> jax.Array:
    """out_i = sum_j softmax_j(q_i . k_j / sqrt(Dh)) v_j over the j with j <= i < subtree_end[j].

    In depth-first order the tokens below j are the contiguous run [j, subtree_end[j]), so the condition selects exactly
    the path from the first token of i's tree to i. It holds several trees per row, plain packed sequences
    (subtree_end = end of the sequence) and padding (subtree_end[j] = j + 1: sees itself only). A query that sees
    nothing at all comes out finite, with finite gradients.

    Memory of the XLA path is O(B H block T), forward and backward: blocks of queries are visited in turn, each with the
    key blocks that it sees, and recomputed for the gradient. The TPU kernels need O(B H T Dh).

    Args:
      q: [B, T, H, Dh]; query head h reads kv head h // (H / K).
      k, v: [B, T, K, Dh].
      subtree_end: int32 [B, T], exclusive end of the subtree of each token.
      block: queries, and keys, per block of the XLA path at most; T need not be a multiple of it.
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
    num_blocks = -(-T // block)
    block = -(-T // num_blocks)  # as little fill as so many blocks allow
    # Letters: n and m blocks of queries and keys, i query in the block, j key, k kv head, g query head of that kv head,
    # x head_dim. What fills the last block is seen by nothing.
    fill = num_blocks * block - T
    q, k, v = (jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))) for x in (q, k, v))
    q = jnp.moveaxis(q.reshape(B, num_blocks, block, K, H // K, Dh), 1, 0)
    k, v = (x.reshape(B * num_blocks, block, K, Dh) for x in (k, v))
    ends = jnp.pad(subtree_end, ((0, 0), (0, fill))).reshape(B, num_blocks, block)
    numbers = jnp.arange(num_blocks, dtype=jnp.int32)

    # A block of queries sees no key block behind it, and none whose subtrees all end before it: of a row with several
    # trees, or a tree with many branches, most. Those that it does see are gathered, in one of a few static numbers.
    seen = (numbers <= numbers[:, None]) & (jnp.max(ends, axis=2)[:, None] > numbers[:, None] * block)  # [B, n, m]
    nearest = jnp.argsort(~seen, axis=2, stable=True).astype(jnp.int32)
    widths = sorted({-(-num_blocks * step // _WIDTHS) for step in range(1, _WIDTHS + 1)})
    width = jnp.searchsorted(jnp.asarray(widths), jnp.max(jnp.sum(seen, axis=2), axis=0))  # [n]

    def attend(num_blocks_seen: int):
        @jax.checkpoint
        def attend(q, number, nearest):
            chosen = nearest[:, :num_blocks_seen]
            flat = chosen + numbers.size * jnp.arange(B, dtype=jnp.int32)[:, None]

            def of(x):  # [B m, block, ...] -> [B, j, ...]
                return x.at[flat].get(mode="promise_in_bounds").reshape(B, -1, *x.shape[2:])

            keys, values, last = of(k), of(v), of(ends.reshape(-1, block))
            positions = jnp.arange(block, dtype=jnp.int32)
            rows = (number * block + positions)[:, None]
            key_ids = (chosen[:, :, None] * block + positions).reshape(B, 1, -1)
            visible = (key_ids <= rows) & (rows < last[:, None])  # [B, i, j]
            scores = jnp.einsum("bikgx,bjkx->bkgij", q, keys, preferred_element_type=jnp.float32)
            scores = scores * Dh**-0.5
            # A finite floor, not -inf: the rows that fill the last block see nothing and must not become NaN.
            scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
            weights = jax.nn.softmax(scores, axis=-1)
            return jnp.einsum("bkgij,bjkx->bikgx", weights.astype(v.dtype), values)

        return attend

    branches = [attend(number) for number in widths]

    # Again, so that the loop keeps no keys and values for the gradient: what comes out of a switch is kept once a turn.
    @jax.checkpoint
    def attend_block(inputs):
        q, number, nearest, width = inputs
        return jax.lax.switch(width, branches, q, number, nearest)

    out = jax.lax.map(attend_block, (q, numbers, jnp.moveaxis(nearest, 1, 0), width))
    return jnp.moveaxis(out, 0, 1).reshape(B, num_blocks * block, H, Dh)[:, :T]
