"""Attention over token trees laid out depth first: one integer per token is the whole mask."""

import jax

from ibtpo.kernels import tree_attention_gpu as gpu
from ibtpo.kernels.tree_attention_blocks import supported
from ibtpo.kernels.tree_attention_tpu import tree_attention_tpu
from ibtpo.kernels.tree_attention_xla import tree_attention_xla
from ibtpo.parallel import platform


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
    nothing at all comes out 0.

    All backends leave out keys that no query of a block sees, keep the output and one log-sum-exp per query and head
    for the gradient, and compute the weights again from them. Memory is O(B H T Dh) with the kernels,
    O(B H block T) in XLA.

    Args:
      q: [B, T, H, Dh]; query head h reads kv head h // (H / K).
      k, v: [B, T, K, Dh].
      subtree_end: int32 [B, T], exclusive end of the subtree of each token.
      block: queries per block of the XLA backend; T need not be a multiple of it.
      backend: "tpu" or "gpu" (Pallas), "interpret" (the TPU's kernels, interpreted on any machine, for tests) or "xla";
        None: the kernels of the mesh's devices where they take the shapes (`tree_attention_blocks.supported`,
        `tree_attention_gpu.supported`), else XLA.

    Returns:
      [B, T, H, Dh] in v's dtype; scores and softmax are float32.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    if backend is None:
        kernels = {
            "tpu": lambda: supported(B, T, H // K, Dh),
            "gpu": lambda: gpu.supported(B, T, H, K, Dh, q.dtype, gpu.shared_memory()),
        }
        backend = platform() if kernels.get(platform(), lambda: False)() else "xla"
    if backend == "xla":
        return tree_attention_xla(q, k, v, subtree_end, block)
    if backend == "gpu":
        return gpu.tree_attention_gpu(q, k, v, subtree_end)
    return tree_attention_tpu(q, k, v, subtree_end, interpret=backend == "interpret")
