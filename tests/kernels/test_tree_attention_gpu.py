"""Tree attention by the GPU kernels, interpreted, against a float64 oracle that holds the whole mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibtpo.kernels import tree_attention_gpu as gpu
from ibtpo.kernels.tree_attention import tree_attention
from tests.kernels.forests import dense_attention, random_forest

# Small enough for many blocks in a short row, and a tile of each shape.
SMALL = gpu.Tiles(gpu.Tile(32, 16, 4, 1), gpu.Tile(16, 16, 4, 1), gpu.Tile(16, 32, 4, 1))


def chain(num_tokens, lengths):
    """Plain sequences side by side, then padding."""
    ends = np.arange(1, num_tokens + 1)
    for end, length in zip(np.cumsum(lengths), lengths):
        ends[end - length : end] = end
    return ends.astype(np.int32)


def deep(num_tokens):
    """One path from which a single token branches off at every step: the deepest tree of so many tokens."""
    ends = np.arange(1, num_tokens + 1)
    ends[::2] = num_tokens
    return ends.astype(np.int32)


def forest(num_tokens, padding, seed=0):
    return random_forest(np.random.default_rng(seed), num_tokens, padding)[1]


ROWS = {
    "forests": lambda T: [forest(T, 0), forest(T, 20, 1)],
    "one tree and an empty row": lambda T: [deep(T), np.arange(1, T + 1, dtype=np.int32)],
    "sequences": lambda T: [chain(T, [T]), chain(T, [5, 1, 30, 2])],
    "padding that sees nothing": lambda T: [np.where(np.arange(T) < 19, 19, 0).astype(np.int32), forest(T, 40, 2)],
}


@functools.partial(jax.jit, static_argnames="tiles")
def values_and_gradients(q, k, v, ends, cotangent, tiles=SMALL):
    out, vjp = jax.vjp(lambda *x: gpu.tree_attention_gpu(*x, ends, tiles=tiles, interpret=True), q, k, v)
    return out, *vjp(cotangent)


def make(T, heads, kv_heads, head_dim, dtype="float32", rows=2):
    rng = np.random.default_rng(0)
    q, cotangent = jnp.asarray(rng.normal(size=(2, rows, T, heads, head_dim)), dtype)
    k, v = jnp.asarray(rng.normal(size=(2, rows, T, kv_heads, head_dim)), dtype)
    return q, k, v, cotangent


def check(got, q, k, v, ends, cotangent, tolerance):
    for row in range(len(ends)):
        expected = dense_attention(q[row], k[row], v[row], ends[row], cotangent[row])
        for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
            assert a.dtype == q.dtype and np.isfinite(np.asarray(a, np.float64)).all(), name
            error = np.abs(np.asarray(a[row], np.float64) - b).max()
            assert error <= tolerance * max(np.abs(b).max(), 1), f"{name} of row {row}: {error}"


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heads, kv_heads, dtype, tolerance", [(4, 2, "float32", 5e-6), (3, 1, "bfloat16", 2e-2)])
def test_values_and_gradients_match_the_oracle(rows, heads, kv_heads, dtype, tolerance):
    T = 75  # no multiple of the blocks
    ends = np.stack(ROWS[rows](T))
    q, k, v, cotangent = make(T, heads, kv_heads, 16, dtype)
    check(values_and_gradients(q, k, v, ends, cotangent), q, k, v, ends, cotangent, tolerance)


@pytest.mark.parametrize("heads, kv_heads, head_dim, dtype", [(4, 2, 64, "bfloat16"), (2, 1, 128, "float32")])
def test_at_their_own_block_sizes(heads, kv_heads, head_dim, dtype):
    T = 200
    ends = np.stack([forest(T, 30)])
    q, k, v, cotangent = make(T, heads, kv_heads, head_dim, dtype, rows=1)
    got = values_and_gradients(q, k, v, ends, cotangent, tiles=gpu.tiles_of(head_dim, q.dtype, gpu.SHARED_MEMORY))
    check(got, q, k, v, ends, cotangent, 2e-2 if dtype == "bfloat16" else 5e-6)


def test_blocks_that_nobody_sees_are_not_read():
    """Two trees, of 32 and 43 tokens: nothing of the first one's blocks reaches the second, not even NaN."""
    ends = np.repeat([32, 75], [32, 43])[None].astype(np.int32)
    q, k, v, cotangent = make(75, 4, 2, 16, rows=1)
    k, v = (x.at[:, :32].set(np.nan) for x in (k, v))
    for x in values_and_gradients(q, k, v, ends, cotangent):
        assert np.isnan(x[:, :32]).all() and np.isfinite(x[:, 32:]).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("query_block, key_block", [(16, 8), (8, 16)])
def test_a_list_has_the_visible_blocks_and_those_seen_as_a_whole_first(seed, query_block, key_block):
    T = 64
    ends = np.stack([forest(T, 0, seed), deep(T), chain(T, [40, 8, 16])])
    i, j = np.mgrid[:T, :T]
    for by_key in (False, True):
        order, counts = (np.asarray(x) for x in gpu.visits(jnp.asarray(ends), query_block, key_block, by_key=by_key))
        for row, end in enumerate(ends):
            seen = ((j <= i) & (i < end[j])).reshape(T // query_block, query_block, T // key_block, key_block)
            some, every = seen.any((1, 3)), seen.all((1, 3))
            if by_key:
                some, every = some.T, every.T
            for outer in range(len(some)):
                whole, found = counts[row, outer]
                assert set(order[row, outer, :whole]) == set(np.flatnonzero(every[outer]))
                listed = order[row, outer, :found].tolist()
                assert set(np.flatnonzero(some[outer])) <= set(listed) and len(set(listed)) == found
                for extra in set(listed) - set(np.flatnonzero(some[outer])):  # only where the diagonal passes
                    key, query = (outer, extra) if by_key else (extra, outer)
                    assert key * key_block < (query + 1) * query_block and query * query_block < (key + 1) * key_block


def test_they_are_chosen_on_a_gpu_where_they_take_the_shapes(monkeypatch):
    taken = []
    monkeypatch.setattr("ibtpo.kernels.tree_attention.platform", lambda: "gpu")
    monkeypatch.setattr(gpu, "tree_attention_gpu", lambda q, *_: taken.append(q.shape[-1]) or q)
    for head_dim in (96, 64):
        q = jnp.ones((1, 8, 2, head_dim))
        out = tree_attention(q, q[:, :, :1], q[:, :, :1], np.full((1, 8), 8, np.int32))
        assert out.shape == q.shape
    assert taken == [64]


@pytest.mark.parametrize("shape, dtype", [((1, 16, 2, 96), "float32"), ((1, 16, 2, 64), "float64")])
def test_shapes_they_do_not_take_are_refused_with_the_way_out(shape, dtype):
    B, T, H, Dh = shape
    assert not gpu.supported(B, T, H, 1, Dh, dtype)
    with jax.enable_x64(True):
        q = jax.ShapeDtypeStruct(shape, dtype)
        kv = jax.ShapeDtypeStruct((B, T, 1, Dh), dtype)
        ends = np.full((B, T), T, np.int32)
        with pytest.raises(ValueError, match=f"not head_dim {Dh} of {dtype} with 1 rows of 16 tokens"):
            jax.eval_shape(lambda q, kv: gpu.tree_attention_gpu(q, kv, kv, ends), q, kv)


def test_rows_whose_lists_are_too_long_go_to_xla():
    assert gpu.supported(1, 131_072, 16, 8, 128, "bfloat16")
    assert not gpu.supported(1, 2**20, 16, 8, 128, "bfloat16")
    assert not gpu.supported(1, 131_072, 16, 8, 128, "bfloat16", shared_memory=0)
