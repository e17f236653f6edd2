"""Flash attention over token trees on TPU, in Pallas: blocks of keys that no query of a block can see cost nothing.

XLA makes the list of block pairs that can see one another (`ibtpo.kernels.tree_attention_blocks`), and the kernels'
grid runs along that list: its length, known at run time only, bounds the grid. The query heads of one kv head share a
tile, so keys and values are read once for all of them. The gradient follows FlashAttention-2 (arXiv 2307.08691): one
kernel for the queries, one, on transposed scores, for keys and values.

Letters: B rows, T tokens, K kv heads, G query heads of each, Dh head_dim; R = G * blocks.query rows of a tile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ibtpo.kernels.tree_attention_blocks import (
    LANES,
    MAX_ITEMS,
    TILE_ROWS,
    Blocks,
    blocks_of,
    max_items,
    supported,
    unpack,
    visible_blocks,
    work_list,
)

MASKED = -1e30  # a finite floor: rows of a tile that see nothing in a block must not become NaN
VMEM_BYTES = 32 * 2**20  # that a kernel may use; the compiler's default, 16 MiB, is too little for the largest tiles
FORWARD, BACKWARD_Q, BACKWARD_KV = "tree_attention_forward", "tree_attention_backward_q", "tree_attention_backward_kv"


def costs(
    num_items: int, blocks: Blocks, *, num_rows: int, kv_heads: int, group: int, head_dim: int, itemsize: int
) -> dict[str, pl.CostEstimate]:
    """{kernel name: work of one call that visits `num_items` block pairs}, whole blocks counted.

    The kernels themselves carry it for `max_items`, a plain causal mask, since the true number is known at run time
    only. Per visited pair: two matrix products forward, three for dq, four for dk and dv; one exponential per score;
    and the blocks that change with every item are read again (those of the list's outer block stay).
    """
    product = 2 * group * blocks.query * blocks.key * head_dim
    queries, query_scalars = group * blocks.query * head_dim * itemsize, group * blocks.query * 4
    keys, ends = blocks.key * head_dim * itemsize, blocks.key * 4
    query_blocks, key_blocks = num_rows * blocks.num_query, num_rows * blocks.num_key
    # Matrix products per item; bytes per item; bytes per outer block; number of outer blocks.
    work = {
        FORWARD: (2, 2 * keys + ends, 2 * queries + query_scalars, query_blocks),
        BACKWARD_Q: (3, 2 * keys + ends, 3 * queries + 2 * query_scalars, query_blocks),
        BACKWARD_KV: (4, 2 * queries + 2 * query_scalars, 4 * keys + ends, key_blocks),
    }
    return {
        name: pl.CostEstimate(
            flops=kv_heads * num_items * products * product,
            transcendentals=kv_heads * num_items * group * blocks.query * blocks.key,
            bytes_accessed=kv_heads * (num_items * inner + num_outer * outer),
        )
        for name, (products, inner, outer, num_outer) in work.items()
    }


def _dot(a, b, contract):
    """float32 product of two matrices over axis contract[0] of one and contract[1] of the other."""
    # Full precision for float32: the default would round its operands to bfloat16.
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, ((contract[:1], contract[1:]), ((), ())), precision=exact, preferred_element_type=jnp.float32
    )


def _columns(row):
    """[1, n] -> [n, LANES], every column that row: values along lanes now run along sublanes."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _tile(ref):
    """The queries (or outputs) of a block, [R, Dh]."""
    group, query_block, head_dim = ref.shape[2:]
    return ref[0, 0].reshape(group * query_block, head_dim)


def _seen(item, end, shape, query_block, key_axis):
    """bool `shape`: whether the query sees the key; keys along key_axis, queries (all heads') along the other."""
    *_, i, j = unpack(item)
    key = j * shape[key_axis] + jax.lax.broadcasted_iota(jnp.int32, shape, key_axis)
    query = jax.lax.broadcasted_iota(jnp.int32, shape, 1 - key_axis) & (query_block - 1)
    query += i * query_block
    return (key <= query) & (query < end)


def _forward_kernel(items, q_ref, k_ref, v_ref, end_ref, out_ref, lse_ref, high_ref, sum_ref, acc_ref, *, scale):
    item = items[pl.program_id(1)]
    first, last, *_ = unpack(item)

    @pl.when(first != 0)
    def begin():
        high_ref[...] = jnp.full_like(high_ref, MASKED)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        acc_ref[...] = jnp.zeros_like(acc_ref)

    scores = _dot(_tile(q_ref), k_ref[0, 0], (1, 1)) * scale
    seen = _seen(item, end_ref[0], scores.shape, q_ref.shape[3], key_axis=1)
    scores = jnp.where(seen, scores, MASKED)
    old = high_ref[:, :1]
    high = jnp.maximum(old, scores.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - high), 0.0)
    fade = jnp.exp(old - high)
    high_ref[...] = jnp.broadcast_to(high, high_ref.shape)
    sum_ref[...] = sum_ref[...] * fade + weights.sum(-1, keepdims=True)
    v = v_ref[0, 0]
    acc_ref[...] = acc_ref[...] * fade + _dot(weights.astype(v.dtype), v, (1, 0))

    @pl.when(last != 0)
    def finish():
        total = jnp.where(sum_ref[...] > 0, sum_ref[...], 1.0)
        out_ref[0, 0] = (acc_ref[...] / total[:, :1]).reshape(out_ref.shape[2:]).astype(out_ref.dtype)
        lse_ref[0, 0, 0] = (high_ref[...] + jnp.log(total)).T[:1]


# The gradient, with w = exp(s - lse), s = scale q k^T, dw = g v^T and delta = sum(g out) per query:
# dv = w^T g and ds = w (dw - delta) scale, of which dq = ds k and dk = ds^T q.


def _query_kernel(
    items, q_ref, k_ref, v_ref, end_ref, g_ref, lse_ref, delta_ref, dq_ref, lse_col, delta_col, acc_ref, *, scale
):
    item = items[pl.program_id(1)]
    first, last, *_ = unpack(item)

    @pl.when(first != 0)
    def begin():
        lse_col[...] = _columns(lse_ref[0, 0, 0])
        delta_col[...] = _columns(delta_ref[0, 0, 0])
        acc_ref[...] = jnp.zeros_like(acc_ref)

    k = k_ref[0, 0]
    scores = _dot(_tile(q_ref), k, (1, 1)) * scale
    seen = _seen(item, end_ref[0], scores.shape, q_ref.shape[3], key_axis=1)
    weights = jnp.where(seen, jnp.exp(scores - lse_col[:, :1]), 0.0)
    ds = weights * (_dot(_tile(g_ref), v_ref[0, 0], (1, 1)) - delta_col[:, :1]) * scale
    acc_ref[...] += _dot(ds.astype(k.dtype), k, (1, 0))

    @pl.when(last != 0)
    def finish():
        dq_ref[0, 0] = acc_ref[...].reshape(dq_ref.shape[2:]).astype(dq_ref.dtype)


def _key_kernel(
    items, q_ref, k_ref, v_ref, end_ref, g_ref, lse_ref, delta_ref, dk_ref, dv_ref, end_col, dk_acc, dv_acc, *, scale
):
    item = items[pl.program_id(1)]
    first, last, *_ = unpack(item)

    @pl.when(first != 0)
    def begin():
        end_col[...] = _columns(end_ref[0])
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    q, g = _tile(q_ref), _tile(g_ref)
    scores = _dot(k_ref[0, 0], q, (1, 1)) * scale
    seen = _seen(item, end_col[:, :1], scores.shape, q_ref.shape[3], key_axis=0)
    weights = jnp.where(seen, jnp.exp(scores - lse_ref[0, 0, 0]), 0.0)
    ds = weights * (_dot(v_ref[0, 0], g, (1, 1)) - delta_ref[0, 0, 0]) * scale
    dv_acc[...] += _dot(weights.astype(g.dtype), g, (1, 0))
    dk_acc[...] += _dot(ds.astype(q.dtype), q, (1, 0))

    @pl.when(last != 0)
    def finish():
        dk_ref[0, 0] = dk_acc[...].astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_acc[...].astype(dv_ref.dtype)


def _call(kernel, name, arrays, outs, scratch, *, blocks, by_key=False, interpret=False):
    """Runs `kernel` along the work list.

    arrays, outs: (array, or its type, and kind) in the order of the kernel's references. Kinds: "query" [B, K, G, T,
    Dh], "scalar" of a query [B, K, num_query, 1, R], "key" [B, K, T, Dh], "end" [B, 1, T]. arrays: q, k, v, end, ...
    """
    q, subtree_end = arrays[0][0], arrays[3][0]
    B, K, G, _, Dh = q.shape
    num_items = max_items(B, blocks)
    items, count = work_list(visible_blocks(subtree_end[:, 0], blocks), num_items, by_key=by_key)
    shapes = {
        "query": (1, 1, G, blocks.query, Dh),
        "scalar": (1, 1, 1, 1, G * blocks.query),
        "key": (1, 1, blocks.key, Dh),
        "end": (1, 1, blocks.key),
    }

    def spec(kind):
        def place(head, w, items):
            _, _, row, query, key = unpack(items[w])
            return {
                "query": (row, head, 0, query, 0),
                "scalar": (row, head, query, 0, 0),
                "key": (row, head, key, 0),
                "end": (row, 0, key),
            }[kind]

        return pl.BlockSpec(shapes[kind], place)

    sizes = dict(num_rows=B, kv_heads=K, group=G, head_dim=Dh, itemsize=q.dtype.itemsize)
    return pl.pallas_call(
        functools.partial(kernel, scale=Dh**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(K, count),
            in_specs=[spec(kind) for _, kind in arrays],
            out_specs=[spec(kind) for _, kind in outs],
            scratch_shapes=[pltpu.VMEM(*x) for x in scratch],
        ),
        out_shape=[x for x, _ in outs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=costs(num_items, blocks, **sizes)[name],
        interpret=interpret,
        name=name,
    )(items, *[x for x, _ in arrays])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, subtree_end, blocks, interpret):
    return _forward(q, k, v, subtree_end, blocks, interpret)[0]


def _forward(q, k, v, subtree_end, blocks, interpret):
    B, K, G, _, Dh = q.shape
    rows = G * blocks.query
    out, lse = _call(
        _forward_kernel,
        FORWARD,
        [(q, "query"), (k, "key"), (v, "key"), (subtree_end, "end")],
        [
            (jax.ShapeDtypeStruct(q.shape, v.dtype), "query"),
            (jax.ShapeDtypeStruct((B, K, blocks.num_query, 1, rows), jnp.float32), "scalar"),
        ],
        [((rows, LANES), jnp.float32), ((rows, LANES), jnp.float32), ((rows, Dh), jnp.float32)],
        blocks=blocks,
        interpret=interpret,
    )
    # A remat policy may keep these two by name; the kernel then runs once.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, subtree_end, out, lse)


def _backward(blocks, interpret, saved, g):
    q, k, v, subtree_end, out, lse = saved
    B, K, G, _, Dh = q.shape
    rows = G * blocks.query
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    delta = delta.reshape(B, K, G, blocks.num_query, blocks.query).swapaxes(2, 3).reshape(lse.shape)
    arrays = [(q, "query"), (k, "key"), (v, "key"), (subtree_end, "end")]
    arrays += [(g, "query"), (lse, "scalar"), (delta, "scalar")]
    (dq,) = _call(
        _query_kernel,
        BACKWARD_Q,
        arrays,
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), "query")],
        [((rows, LANES), jnp.float32), ((rows, LANES), jnp.float32), ((rows, Dh), jnp.float32)],
        blocks=blocks,
        interpret=interpret,
    )
    dk, dv = _call(
        _key_kernel,
        BACKWARD_KV,
        arrays,
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), "key") for x in (k, v)],
        [((blocks.key, LANES), jnp.int32), ((blocks.key, Dh), jnp.float32), ((blocks.key, Dh), jnp.float32)],
        blocks=blocks,
        by_key=True,
        interpret=interpret,
    )
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


def tree_attention_tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    *,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`ibtpo.kernels.tree_attention.tree_attention` as TPU kernels, forward and backward; arrays as there.

    A query that sees nothing gives 0. Memory beyond the arguments is O(B H T Dh): copies with the heads before the
    tokens, the output, and one log-sum-exp per query and head. The kernels do not declare over which mesh axes their
    results vary: inside `jax.shard_map` they need check_vma=False.

    Args:
      blocks: how to cut the rows; None: `blocks_of`.
      interpret: run the kernels on the CPU, slowly, for tests.

    Raises:
      ValueError: see `supported`.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    if blocks is None and not supported(B, T, H // K, Dh):
        raise ValueError(
            f"the TPU tree attention takes head_dim 64 or 128, at most {TILE_ROWS // LANES} query heads per kv head "
            f"and {MAX_ITEMS} causal block pairs, not head_dim {Dh} with {H} heads of {K} and {B} rows of {T} tokens: "
            "lower train.row_tokens or train.rows_per_step, or use backend='xla'"
        )
    blocks = blocks or blocks_of(T, H // K)
    pad = blocks.num_tokens - T

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)

    # Padding keys end at 0, so nobody sees them.
    ends = jnp.pad(subtree_end, ((0, 0), (0, pad)))[:, None]
    q = heads_first(q).reshape(B, K, H // K, blocks.num_tokens, Dh)
    out = _attention(q, heads_first(k), heads_first(v), ends, blocks, interpret)
    return out.reshape(B, H, blocks.num_tokens, Dh).swapaxes(1, 2)[:, :T]
