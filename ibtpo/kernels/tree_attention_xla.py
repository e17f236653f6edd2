"""Tree attention in XLA, for CPUs, GPUs, and shapes that the TPU kernels do not take.

Blocks of queries take turns, several in each; each gathers the key blocks that hold something it sees, whose number is
rounded up to one of a few static ones. The backward pass computes the weights again from the log-sum-exp.

Letters: B rows, T tokens, K kv heads, n query blocks of a turn, r their queries times the query heads of a kv head,
j gathered keys, x head_dim.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

DENSE = 128  # tokens of a row up to which everyone reads all keys, and nothing is gathered
KEYS_PER_QUERY_BLOCK = 4  # key blocks in a query block: smaller key blocks fit the visible keys more exactly
TURN_BLOCKS = 4  # query blocks of a turn at most
TURN_SCORES = 1 << 22  # scores of a turn at most, unless one query block has more
# Static numbers of key blocks gathered, in 64ths of all.
SHARES = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)


class _Blocks(NamedTuple):
    """How rows are cut: query and key blocks in tokens, query blocks of a turn, turns, tokens with padding."""

    query: int
    key: int
    turn: int
    turns: int
    tokens: int

    @property
    def dense(self) -> bool:
        """Whether there is one block, of which everyone reads everything."""
        return self.key == self.tokens


def _cut(num_rows: int, num_tokens: int, num_heads: int, block: int) -> _Blocks:
    if num_tokens <= min(DENSE, 2 * block):
        return _Blocks(num_tokens, num_tokens, 1, 1, num_tokens)
    block = KEYS_PER_QUERY_BLOCK * max(1, block // KEYS_PER_QUERY_BLOCK)
    num_blocks = -(-num_tokens // block)
    scores = num_rows * num_heads * block * num_tokens
    turns = -(-num_blocks // min(TURN_BLOCKS, max(1, TURN_SCORES // scores)))
    turn = -(-num_blocks // turns)
    return _Blocks(block, block // KEYS_PER_QUERY_BLOCK, turn, turns, turns * turn * block)


class _Visits(NamedTuple):
    """Which key blocks the turns gather. turn: [turns], its number; chosen: [turns, B, n, key blocks], in the order of
    the row, those that a query block sees before the others; branch: [turns], the index of their number in `widths`."""

    turn: jax.Array
    chosen: jax.Array
    branch: jax.Array


def _visits(subtree_end: jax.Array, blocks: _Blocks) -> tuple[_Visits, tuple[int, ...]]:
    """(visits, widths). A query block sees no key block that begins behind it, and none whose subtrees all end before
    it."""
    B = subtree_end.shape[0]
    num_keys = blocks.tokens // blocks.key
    first_query = jnp.arange(0, blocks.tokens, blocks.query, dtype=jnp.int32)[:, None]
    begun = jnp.arange(0, blocks.tokens, blocks.key, dtype=jnp.int32) < first_query + blocks.query
    seen = begun & (subtree_end.reshape(B, 1, num_keys, blocks.key).max(-1) > first_query)
    chosen = jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32)
    widths = tuple(sorted({-(-num_keys * share // SHARES[-1]) for share in SHARES}))
    most = seen.sum(-1).reshape(B, blocks.turns, blocks.turn).max((0, 2))
    chosen = jnp.moveaxis(chosen.reshape(B, blocks.turns, blocks.turn, num_keys), 1, 0)
    turn = jnp.arange(blocks.turns, dtype=jnp.int32)
    return _Visits(turn, chosen, jnp.searchsorted(jnp.asarray(widths), most)), widths


def _queries(x: jax.Array, K: int, blocks: _Blocks) -> jax.Array:
    """[B, T, H, Dh] -> [turns, K, B, n, r, Dh]."""
    B, T, H, Dh = x.shape
    x = jnp.pad(x, ((0, 0), (0, blocks.tokens - T), (0, 0), (0, 0)))
    x = x.reshape(B, blocks.turns, blocks.turn, blocks.query, K, H // K, Dh)
    return x.transpose(1, 4, 0, 2, 5, 3, 6).reshape(blocks.turns, K, B, blocks.turn, -1, Dh)


def _from_queries(x: jax.Array, shape: tuple[int, ...], blocks: _Blocks) -> jax.Array:
    """The inverse of `_queries`, without the padding."""
    B, T, H, Dh = shape
    x = x.reshape(blocks.turns, -1, B, blocks.turn, H // x.shape[1], blocks.query, Dh)
    return x.transpose(2, 0, 3, 5, 1, 4, 6).reshape(B, blocks.tokens, H, Dh)[:, :T]


def _keys(x: jax.Array, blocks: _Blocks) -> jax.Array:
    """[B, T, K, Dh] -> [K, B key blocks, key Dh]: a block of a kv head is one row, gathered as a whole."""
    _, T, K, Dh = x.shape
    x = jnp.pad(x, ((0, 0), (0, blocks.tokens - T), (0, 0), (0, 0)))
    return jnp.moveaxis(x, 2, 0).reshape(K, -1, blocks.key * Dh)


def _from_keys(x: jax.Array, shape: tuple[int, ...], blocks: _Blocks) -> jax.Array:
    B, T, K, Dh = shape
    return jnp.moveaxis(x.reshape(K, B, blocks.tokens, Dh), 0, 2)[:, :T]


class _Gathered(NamedTuple):
    """Keys that a turn's queries may see: keys and values [K, B, n, j, Dh]; visible [B, n, queries, j]; the rows of
    `_keys` that they are, [B n key blocks]."""

    keys: jax.Array
    values: jax.Array
    visible: jax.Array
    rows: jax.Array


def _gather(keys, values, ends, turn, chosen, num_keys: int, blocks: _Blocks) -> _Gathered:
    """keys, values: of `_keys`; ends [B, tokens]; turn []; chosen [B, n, key blocks], of which the first num_keys."""
    K, (B, n) = keys.shape[0], chosen.shape[:2]
    chosen = chosen[..., :num_keys]
    rows = (chosen + ends.shape[1] // blocks.key * jnp.arange(B, dtype=jnp.int32)[:, None, None]).reshape(-1)

    def of(x):
        x = x if blocks.dense else x.at[:, rows].get(mode="promise_in_bounds")
        return x.reshape(K, B, n, num_keys * blocks.key, -1)

    last = ends.reshape(-1, blocks.key).at[rows].get(mode="promise_in_bounds").reshape(B, n, 1, -1)
    key = (chosen[..., None] * blocks.key + jnp.arange(blocks.key, dtype=jnp.int32)).reshape(B, n, 1, -1)
    query = (turn * n + jnp.arange(n, dtype=jnp.int32))[:, None] * blocks.query
    query = (query + jnp.arange(blocks.query, dtype=jnp.int32))[..., None]
    return _Gathered(of(keys), of(values), (key <= query) & (query < last), rows)


def _dot(subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.promote_types(operands[0].dtype, jnp.float32))


def _scores(query, seen: _Gathered) -> tuple[jax.Array, jax.Array]:
    """(scores, visible), both [K, B, n, r, j]."""
    scores = _dot("kbnrx,kbnjx->kbnrj", query, seen.keys) * query.shape[-1] ** -0.5
    B, n, num_queries, j = seen.visible.shape
    group = query.shape[3] // num_queries
    visible = jnp.broadcast_to(seen.visible[:, :, None], (B, n, group, num_queries, j)).reshape(B, n, -1, j)
    return scores, visible


def _attend(query, seen: _Gathered) -> tuple[jax.Array, jax.Array]:
    """(out [K, B, n, r, Dh], log-sum-exp of the scores [K, B, n, r]); 0 for a query that sees nothing."""
    scores, visible = _scores(query, seen)
    # A finite floor, not -inf: a query that sees nothing must not become NaN.
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    high = scores.max(-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(scores - high), 0)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1)
    out = _dot("kbnrj,kbnjx->kbnrx", weights.astype(seen.values.dtype), seen.values) / total
    return out.astype(seen.values.dtype), (high + jnp.log(total))[..., 0]


def _attend_gradient(query, seen: _Gathered, lse, delta, g) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of query, keys and values. With w = exp(s - lse): ds = w (dw - delta), delta = sum_j w dw."""
    scores, visible = _scores(query, seen)
    weights = jnp.where(visible, jnp.exp(scores - lse[..., None]), 0)
    weight_gradient = _dot("kbnrx,kbnjx->kbnrj", g, seen.values)
    score_gradient = weights * (weight_gradient - delta[..., None]) * query.shape[-1] ** -0.5
    weights, score_gradient = weights.astype(query.dtype), score_gradient.astype(query.dtype)
    return (
        _dot("kbnrj,kbnjx->kbnrx", score_gradient, seen.keys),
        _dot("kbnrj,kbnrx->kbnjx", score_gradient, query),
        _dot("kbnrj,kbnrx->kbnjx", weights, g),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def tree_attention_xla(q: jax.Array, k: jax.Array, v: jax.Array, subtree_end: jax.Array, block: int) -> jax.Array:
    """`ibtpo.kernels.tree_attention.tree_attention` in XLA; arrays as there.

    A query that sees nothing gives 0. Memory beyond the arguments and copies of them is O(B H block T), or TURN_SCORES
    scores where that is more.

    Args:
      block: queries per block.
    """
    return _forward(q, k, v, subtree_end, block)[0]


def _forward(q, k, v, subtree_end, block):
    B, T, H, _ = q.shape
    K, blocks = k.shape[2], _cut(B, T, H, block)
    ends = jnp.pad(subtree_end, ((0, 0), (0, blocks.tokens - T)))
    keys, values, (visits, widths) = _keys(k, blocks), _keys(v, blocks), _visits(ends, blocks)

    def branch(num_keys: int):
        def attend(query, turn, chosen):
            return _attend(query, _gather(keys, values, ends, turn, chosen, num_keys, blocks))

        return attend

    branches = [branch(width) for width in widths]

    # Not for a gradient of it, which is below: otherwise JAX computes all values that follow from subtree_end alone,
    # the masks of all turns, ahead of the loop over the layers, and keeps it.
    @jax.checkpoint
    def take_turn(inputs):
        query, turn, chosen, index = inputs
        return jax.lax.switch(index, branches, query, turn, chosen)

    out, lse = jax.lax.map(take_turn, (_queries(q, K, blocks), *visits))
    # A remat policy may keep these two by name.
    out, lse = checkpoint_name(_from_queries(out, q.shape, blocks), "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, subtree_end, out, lse)


def _backward(block, saved, g):
    q, k, v, subtree_end, out, lse = saved
    B, T, H, Dh = q.shape
    K, blocks = k.shape[2], _cut(B, T, H, block)
    ends = jnp.pad(subtree_end, ((0, 0), (0, blocks.tokens - T)))
    keys, values, (visits, widths) = _keys(k, blocks), _keys(v, blocks), _visits(ends, blocks)
    delta = _queries((g.astype(lse.dtype) * out.astype(lse.dtype)).sum(-1, keepdims=True), K, blocks)[..., 0]

    def branch(num_keys: int):
        def add_gradient(dk, dv, query, lse, delta, g, turn, chosen):
            seen = _gather(keys, values, ends, turn, chosen, num_keys, blocks)
            dq, *changes = _attend_gradient(query, seen, lse, delta, g)
            # Query blocks share key blocks.
            changes = [x.reshape(K, -1, blocks.key * Dh) for x in changes]
            if blocks.dense:
                dk, dv = changes
            else:
                dk, dv = (x.at[:, seen.rows].add(y, mode="promise_in_bounds") for x, y in zip((dk, dv), changes))
            return dk, dv, dq.astype(q.dtype)

        return add_gradient

    branches = [branch(width) for width in widths]

    def take_turn(carry, inputs):
        *arrays, index = inputs
        dk, dv, dq = jax.lax.switch(index, branches, *carry, *arrays)
        return (dk, dv), dq

    zeros = jnp.zeros(keys.shape, lse.dtype)
    (dk, dv), dq = jax.lax.scan(
        take_turn, (zeros, zeros), (_queries(q, K, blocks), lse, delta, _queries(g, K, blocks), *visits)
    )
    dk, dv = (_from_keys(x, k.shape, blocks).astype(y.dtype) for x, y in ((dk, k), (dv, v)))
    return _from_queries(dq, q.shape, blocks), dk, dv, None


tree_attention_xla.defvjp(_forward, _backward)
