"""Flash attention over token trees on GPUs, in Pallas (Triton): blocks of keys that no query of a block sees cost
nothing.

XLA lists, for each block of queries, the key blocks that hold something it sees, and for each block of keys the query
blocks that see something of it (`_Visits`); a program reads its own list. Blocks that are seen as a whole come first in
a list, and are computed without a mask. The gradient follows FlashAttention-2 (arXiv 2307.08691): one kernel for the
queries, one, on transposed scores, for keys and values. Nothing is added up in an order that differs between runs.

A tile of queries is some tokens times several query heads of one kv head, which read the same keys: more rows for a
product without a coarser mask. Exponentials are of base 2, as the device's are.

Letters: B rows, T tokens, H query heads, K kv heads, x head_dim; R rows of a tile of queries.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

HEADS = 8  # most query heads of a tile
HEAD_DIMS = (16, 32, 64, 128)
SHARED_MEMORY = 160 << 10  # bytes a program may have on an A100, H100 or B200, at least
SMALL_SHARED_MEMORY = 99 << 10  # the same of workstation cards
MAX_ENTRIES = 1 << 26  # of a list over all block pairs, int32 each
LOWEST = -1e30  # a finite floor of a row's maximum: a query that has seen nothing yet must not become NaN
FORWARD, BACKWARD_Q, BACKWARD_KV = "tree_attention_forward", "tree_attention_backward_q", "tree_attention_backward_kv"


class Tile(NamedTuple):
    """What a program computes at a time: R rows of queries, tokens of a key block; warps and pipeline stages of it."""

    rows: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """A tile for each kernel."""

    forward: Tile
    query: Tile
    key: Tile


def shared_memory() -> int:
    """Bytes of shared memory that a program may have on this process's GPUs; 0 where Triton's kernels do not run.

    Without a GPU, in ahead-of-time compilation: those of an H100.
    """
    if jax.default_backend() != "gpu":
        return SHARED_MEMORY
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    major, _, minor = capability.partition(".")
    if not major.isdigit() or int(major) < 8:
        return 0
    return SMALL_SHARED_MEMORY if int(major) == 12 or (int(major) == 8 and minor not in ("0", "7")) else SHARED_MEMORY


def tiles_of(head_dim: int, dtype: Any, shared: int) -> Tiles:
    """Tiles that the registers and `shared` bytes of shared memory hold, by the compiler without spilling (but for some
    bytes of float32, whose products are three each; docs/results.md)."""
    if jnp.dtype(dtype).itemsize > 2:
        if head_dim > 64:
            return Tiles(*[Tile(32, 32, 8, 1)] * 3)
        return Tiles(Tile(64, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1))
    if head_dim > 64 and shared < SHARED_MEMORY:
        return Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2))
    return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))


def heads_of(group: int) -> int:
    """Query heads of a tile: the largest power of two that divides those of a kv head, at most `HEADS`."""
    return min(group & -group, HEADS)


def supported(
    num_rows: int,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: Any,
    shared_memory: int = SHARED_MEMORY,
) -> bool:
    """Whether the kernels take such arrays: known head_dim and type, indices and lists that fit, and a GPU with
    `shared_memory`."""
    if head_dim not in HEAD_DIMS or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return False
    if not shared_memory:
        return False
    tiles, heads = tiles_of(head_dim, dtype, shared_memory), heads_of(num_heads // num_kv_heads)
    tokens = _padded(num_tokens, tiles, heads)
    entries = max(tokens // (tile.rows // heads) * (tokens // tile.keys) for tile in tiles)
    return num_rows * entries <= MAX_ENTRIES and tokens * num_heads * head_dim < 1 << 31


def _padded(num_tokens: int, tiles: Tiles, heads: int) -> int:
    """Tokens of a row in whole blocks of every tile."""
    block = math.lcm(*[size for tile in tiles for size in (tile.rows // heads, tile.keys)])
    return -(-num_tokens // block) * block


class _Visits(NamedTuple):
    """The block pairs to visit, by their outer block: order [B, outer, inner], the inner blocks that it sees as a whole
    and then those it sees a part of; counts [B, outer, 2], how many of the former, and of both."""

    order: jax.Array
    counts: jax.Array


def visits(subtree_end: jax.Array, query_block: int, key_block: int, *, by_key: bool) -> _Visits:
    """Which pairs of a query and a key block hold a visible pair, for subtree_end [B, T], T in whole blocks.

    A key block is seen by a query block iff it begins no later than the queries end and one of its subtrees ends after
    the queries begin (on the diagonal that may be a pair that sees nothing, which is masked), and seen as a whole iff
    it ends no later than the queries begin and all of its subtrees end after the queries.
    """
    B, T = subtree_end.shape
    ends = subtree_end.reshape(B, 1, T // key_block, key_block)
    query = jnp.arange(0, T, query_block, dtype=jnp.int32)[:, None]
    key = jnp.arange(0, T, key_block, dtype=jnp.int32)
    seen = (key < query + query_block) & (ends.max(-1) > query)
    whole = (key + key_block - 1 <= query) & (ends.min(-1) >= query + query_block)
    if by_key:
        seen, whole = seen.swapaxes(1, 2), whole.swapaxes(1, 2)
    kind = jnp.where(whole, 0, jnp.where(seen, 1, 2))
    counts = jnp.stack([whole.sum(-1), seen.sum(-1)], axis=-1)
    return _Visits(jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32), counts.astype(jnp.int32))


class _Shape(NamedTuple):
    """Sizes of the arrays, static. heads: query heads of a tile. precision: of products of float32.

    split: tiles of the heads of a kv head.
    """

    tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    heads: int
    precision: Any

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def split(self) -> int:
        return self.group // self.heads

    def tile_rows(self, block, kv_head, part, rows: int):
        """(rows of [T H, x] that a tile of queries is, their tokens), [rows] each."""
        row = jnp.arange(rows)
        token = block * (rows // self.heads) + row // self.heads
        return token * self.num_heads + kv_head * self.group + part * self.heads + row % self.heads, token


def _dot(a, b, shape):
    # The default would round float32 to 10 bits.
    precision = shape.precision if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _over(counts_ref, visit, carry, times=1):
    """`visit(masked, n, carry)` over a program's list, `times` for each entry: whole blocks, then the others."""
    whole, seen = counts_ref[0] * times, counts_ref[1] * times
    carry = jax.lax.fori_loop(0, whole, functools.partial(visit, False), carry)
    return jax.lax.fori_loop(whole, seen, functools.partial(visit, True), carry)


def _forward_kernel(q_ref, k_ref, v_ref, end_ref, order_ref, counts_ref, out_ref, lse_ref, *, shape, tile):
    block, (kv_head, part) = pl.program_id(0), _head(pl.program_id(1), shape)
    rows, token = shape.tile_rows(block, kv_head, part, tile.rows)
    q, scale = q_ref[rows], _scale(shape)

    def visit(masked, n, carry):
        high, total, acc = carry
        keys = pl.ds(order_ref[n] * tile.keys, tile.keys)
        scores = _dot(q, k_ref[keys].T, shape)
        if masked:
            scores = jnp.where(_seen(token[:, None], order_ref[n], end_ref[keys][None], tile), scores, -jnp.inf)
        new = jnp.maximum(high, scores.max(1) * scale)
        weights = jnp.exp2(scores * scale - new[:, None])
        fade = jnp.exp2(high - new)
        v = v_ref[keys]
        return new, total * fade + weights.sum(1), acc * fade[:, None] + _dot(weights.astype(v.dtype), v, shape)

    nothing = jnp.full(tile.rows, LOWEST), jnp.zeros(tile.rows), jnp.zeros((tile.rows, shape.head_dim))
    high, total, acc = _over(counts_ref, visit, nothing)
    total = jnp.where(total > 0, total, 1)
    out_ref[rows] = (acc / total[:, None]).astype(out_ref.dtype)
    lse_ref[rows] = high + jnp.log2(total)


# The gradient, with w = exp(s - lse), s = scale q k^T, dw = g v^T and delta = sum(g out) per query:
# dv = w^T g and ds = w (dw - delta) scale, of which dq = ds k and dk = ds^T q.


def _query_kernel(
    q_ref, k_ref, v_ref, end_ref, g_ref, lse_ref, delta_ref, order_ref, counts_ref, dq_ref, *, shape, tile
):
    block, (kv_head, part) = pl.program_id(0), _head(pl.program_id(1), shape)
    rows, token = shape.tile_rows(block, kv_head, part, tile.rows)
    q, g, lse, delta, scale = q_ref[rows], g_ref[rows], lse_ref[rows], delta_ref[rows], _scale(shape)

    def visit(masked, n, acc):
        keys = pl.ds(order_ref[n] * tile.keys, tile.keys)
        k = k_ref[keys]
        weights = jnp.exp2(_dot(q, k.T, shape) * scale - lse[:, None])
        if masked:
            weights = jnp.where(_seen(token[:, None], order_ref[n], end_ref[keys][None], tile), weights, 0)
        ds = weights * (_dot(g, v_ref[keys].T, shape) - delta[:, None])
        return acc + _dot(ds.astype(k.dtype), k, shape)

    acc = _over(counts_ref, visit, jnp.zeros((tile.rows, shape.head_dim)))
    dq_ref[rows] = (acc * shape.head_dim**-0.5).astype(dq_ref.dtype)


def _key_kernel(
    q_ref, k_ref, v_ref, end_ref, g_ref, lse_ref, delta_ref, order_ref, counts_ref, dk_ref, dv_ref, *, shape, tile
):
    block, kv_head = pl.program_id(0), pl.program_id(1)
    keys = pl.ds(block * tile.keys, tile.keys)
    k, v, end, scale = k_ref[keys], v_ref[keys], end_ref[keys], _scale(shape)

    def visit(masked, n, carry):
        dk, dv = carry
        # Every tile of a query block in turn.
        rows, token = shape.tile_rows(order_ref[_div(n, shape.split)], kv_head, _rem(n, shape.split), tile.rows)
        q, g = q_ref[rows], g_ref[rows]
        weights = jnp.exp2(_dot(k, q.T, shape) * scale - lse_ref[rows][None])
        if masked:
            weights = jnp.where(_seen(token[None], block, end[:, None], tile), weights, 0)
        ds = weights * (_dot(v, g.T, shape) - delta_ref[rows][None])
        return dk + _dot(ds.astype(q.dtype), q, shape), dv + _dot(weights.astype(g.dtype), g, shape)

    zeros = jnp.zeros((tile.keys, shape.head_dim))
    dk, dv = _over(counts_ref, visit, (zeros, zeros), shape.split)
    dk_ref[keys] = (dk * shape.head_dim**-0.5).astype(dk_ref.dtype)
    dv_ref[keys] = dv.astype(dv_ref.dtype)


def _div(x, y: int):
    return x if y == 1 else jax.lax.div(x, y)


def _rem(x, y: int):
    return 0 if y == 1 else jax.lax.rem(x, y)


def _head(index, shape: _Shape):
    """(kv head, tile of its query heads) of a program's index."""
    return _div(index, shape.split), _rem(index, shape.split)


def _scale(shape: _Shape) -> float:
    """Of a score, for an exponential of base 2."""
    return shape.head_dim**-0.5 * math.log2(math.e)


def _seen(query, key_block, end, tile: Tile):
    """Whether queries see the keys of a block, whose subtrees end at `end`: one of `query` and `end` is a column."""
    key = key_block * tile.keys + jnp.arange(tile.keys).reshape(end.shape)
    return (key <= query) & (query < end)


def _call(kernel, name: str, arrays, outs, shape: _Shape, tile: Tile, *, by_key: bool = False, interpret: bool = False):
    """Runs `kernel` once for each outer block, head and row.

    arrays, outs: (array, or its type, and kind) in the order of the kernel's references. Kinds: "query" [B, T H, ...],
    "key" [B, T, K, x], of which a program gets one head, "end" [B, T].
    """
    ends = arrays[3][0]
    B, T = ends.shape
    query_block = tile.rows // shape.heads
    order, counts = visits(ends, query_block, tile.keys, by_key=by_key)
    blocks = T // (tile.keys if by_key else query_block)
    per_kv_head = 1 if by_key else shape.split

    def spec(x, kind):
        if kind == "key":
            return pl.BlockSpec((None, T, None, shape.head_dim), lambda i, h, b: (b, 0, h // per_kv_head, 0))
        return pl.BlockSpec((None, *x.shape[1:]), lambda i, h, b: (b,) + (0,) * (len(x.shape) - 1))

    def of_block(x):
        return pl.BlockSpec((None, None, x.shape[2]), lambda i, h, b: (b, i, 0))

    return pl.pallas_call(
        functools.partial(kernel, shape=shape, tile=tile),
        grid=(blocks, shape.num_kv_heads * per_kv_head, B),
        in_specs=[*[spec(*x) for x in arrays], of_block(order), of_block(counts)],
        out_specs=[spec(*x) for x in outs],
        out_shape=[x for x, _ in outs],
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name=name,
    )(*[x for x, _ in arrays], order, counts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(q, k, v, subtree_end, shape, tiles, interpret):
    return _forward(q, k, v, subtree_end, shape, tiles, interpret)[0]


def _forward(q, k, v, subtree_end, shape, tiles, interpret):
    out, lse = _call(
        _forward_kernel,
        FORWARD,
        [(q, "query"), (k, "key"), (v, "key"), (subtree_end, "end")],
        [
            (jax.ShapeDtypeStruct(q.shape, v.dtype), "query"),
            (jax.ShapeDtypeStruct(q.shape[:2], jnp.float32), "query"),
        ],
        shape,
        tiles.forward,
        interpret=interpret,
    )
    # A remat policy may keep these two by name; the kernel then runs once.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, subtree_end, out, lse)


def _backward(shape, tiles, interpret, saved, g):
    q, k, v, subtree_end, out, lse = saved
    delta = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    arrays = [(q, "query"), (k, "key"), (v, "key"), (subtree_end, "end")]
    arrays += [(g, "query"), (lse, "query"), (delta, "query")]
    of = [(jax.ShapeDtypeStruct(x.shape, x.dtype), kind) for x, kind in arrays[:3]]
    (dq,) = _call(_query_kernel, BACKWARD_Q, arrays, of[:1], shape, tiles.query, interpret=interpret)
    dk, dv = _call(_key_kernel, BACKWARD_KV, arrays, of[1:], shape, tiles.key, by_key=True, interpret=interpret)
    return dq, dk, dv, None


_attention.defvjp(_forward, _backward)


def tree_attention_gpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    subtree_end: jax.Array,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`ibtpo.kernels.tree_attention.tree_attention` as GPU kernels, forward and backward; arrays as there.

    A query that sees nothing gives 0. Memory beyond the arguments is O(B H T x): the output and one log-sum-exp per
    query and head (and copies, where T is no multiple of the blocks), and the lists, one int32 per block pair. Inside
    `jax.shard_map` the kernels need check_vma=False.

    Args:
      tiles: None: `tiles_of`.
      interpret: run the kernels on the CPU, slowly, for tests.

    Raises:
      ValueError: see `supported`.
    """
    B, T, H, Dh = q.shape
    K = k.shape[2]
    shared = shared_memory()
    if tiles is None and not supported(B, T, H, K, Dh, q.dtype, shared):
        raise ValueError(
            f"the GPU tree attention takes head_dim {', '.join(map(str, HEAD_DIMS))} and 2^26 block pairs, not "
            f"head_dim {Dh} of {q.dtype} with {B} rows of {T} tokens: lower train.row_tokens or train.rows_per_step, "
            "or use backend='xla'"
        )
    tiles, heads = tiles or tiles_of(Dh, q.dtype, shared), heads_of(H // K)
    tokens = _padded(T, tiles, heads)

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, tokens - T)) + ((0, 0),) * (x.ndim - 2))

    # Padding keys end at 0, so nobody sees them.
    # Three products of TF32, exact to about a float32's rounding; the CPU has the one that this stands for.
    precision = jax.lax.Precision.HIGHEST if interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    shape = _Shape(tokens, H, K, Dh, heads, precision)
    out = _attention(pad(q).reshape(B, tokens * H, Dh), pad(k), pad(v), pad(subtree_end), shape, tiles, interpret)
    return out.reshape(B, tokens, H, Dh)[:, :T]
