"""Tree attention, by XLA and by the TPU kernels (interpreted), against a float64 oracle that walks parents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.kernels import tree_attention_tpu as tpu
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.kernels.tree_attention_blocks import Blocks, blocks_of, max_items, supported
from tests.kernels.forests import random_forest

H, K, DH = 4, 2, 8


def oracle(q, k, v, parent, cotangent):
    """Attention of every token over its path, [T, ...] of one row in float64, and gradients of sum(out * cotangent).

    With w = softmax(s): ds = w * (dw - sum(w dw)), written out per token and head.
    """
    q, k, v, cotangent = (x.astype(np.float64) for x in (q, k, v, cotangent))
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(len(q)):
        path = [i]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // K)
            scores = k[path, g] @ q[i, h] / np.sqrt(DH)
            w = np.exp(scores - scores.max())
            w /= w.sum()
            out[i, h] = w @ v[path, g]
            dw = v[path, g] @ cotangent[i, h]
            ds = w * (dw - w @ dw) / np.sqrt(DH)
            dq[i, h] = ds @ k[path, g]
            dk[path, g] += ds[:, None] * q[i, h]
            dv[path, g] += w[:, None] * cotangent[i, h]
    return out, dq, dk, dv


@given(
    seed=st.integers(0, 2**32 - 1),
    num_tokens=st.sampled_from([1, 7, 24, 37]),  # a few shapes only: each one compiles
    block=st.sampled_from([8, 128]),
    padded=st.booleans(),
)
def test_values_and_gradients_match_the_oracle(seed, num_tokens, block, padded):
    rng = np.random.default_rng(seed)
    forests = [random_forest(rng, num_tokens, num_tokens // 4 if padded else 0) for _ in range(2)]
    ends = np.stack([end for _, end in forests])
    q, cotangent = rng.normal(size=(2, 2, num_tokens, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, num_tokens, K, DH)).astype(np.float32)
    got = _values_and_gradients(q, k, v, ends, cotangent, block)
    for row, (parent, _) in enumerate(forests):
        expected = oracle(q[row], k[row], v[row], parent, cotangent[row])
        for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
            np.testing.assert_allclose(a[row], b, atol=2e-5, rtol=2e-5, err_msg=name)


@jax.jit(static_argnames="block")
def _values_and_gradients(q, k, v, ends, cotangent, block):
    out, vjp = jax.vjp(lambda q, k, v: tree_attention(q, k, v, ends, block=block), q, k, v)
    return out, *vjp(cotangent)


SMALL = Blocks(query=8, key=16, num_query=10, num_key=5)


@functools.partial(jax.jit, static_argnames="backend")
def _by_backend(q, k, v, ends, cotangent, backend):
    """Values and gradients; the kernels with blocks small enough for many of them in a short row."""

    def attention(q, k, v):
        if backend == "xla":
            return tree_attention(q, k, v, ends, block=32, backend="xla")
        return tpu.tree_attention_tpu(q, k, v, ends, blocks=SMALL, interpret=True)

    out, vjp = jax.vjp(attention, q, k, v)
    return out, *vjp(cotangent)


def relative_error(got, expected) -> float:
    return float(np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("group", [1, 7])  # 2 is in the tests around this one
@pytest.mark.parametrize("dtype, tolerance", [("float32", 5e-6), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_backends_match_the_oracle(backend, dtype, tolerance, group):
    T = 75  # no multiple of the blocks, which cut it into 10 x 5
    for seed in range(3):
        rng = np.random.default_rng(seed)
        forests = [random_forest(rng, T, padding) for padding in (0, 20)]
        ends = np.stack([end for _, end in forests])
        q, cotangent = jnp.asarray(rng.normal(size=(2, 2, T, group * K, DH)), dtype)
        k, v = jnp.asarray(rng.normal(size=(2, 2, T, K, DH)), dtype)
        got = _by_backend(q, k, v, ends, cotangent, backend)
        rounded = [np.asarray(x, np.float64) for x in (q, k, v, cotangent)]
        for row, (parent, _) in enumerate(forests):
            expected = oracle(*(x[row] for x in rounded[:3]), parent, rounded[3][row])
            for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
                assert a.dtype == dtype
                assert relative_error(a[row], b) < tolerance, name


@pytest.mark.parametrize("num_trees", [1, 5])
def test_chains_are_packed_causal_attention(num_trees):
    """Plain sequences side by side: the parent of a token is the one before it."""
    T, size = 75, 75 // num_trees
    rng = np.random.default_rng(0)
    parent = np.where(np.arange(T) % size == 0, -1, np.arange(T) - 1)
    ends = ((np.arange(T) // size + 1) * size).astype(np.int32)
    q, cotangent = rng.normal(size=(2, 1, T, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, T, K, DH)).astype(np.float32)
    expected = oracle(q[0], k[0], v[0], parent, cotangent[0])
    for backend in ("xla", "interpret"):
        for a, b in zip(_by_backend(q, k, v, ends[None], cotangent, backend), expected, strict=True):
            assert relative_error(a[0], b) < 5e-6


@pytest.mark.parametrize("num_tokens, group, head_dim", [(600, 2, 64), (130, 7, 128)])
def test_the_tpu_kernels_match_xla_at_their_own_block_sizes(num_tokens, group, head_dim):
    rng = np.random.default_rng(0)
    blocks = blocks_of(num_tokens, group)
    assert supported(1, num_tokens, group, head_dim) and max_items(1, blocks) > 1
    ends = random_forest(rng, num_tokens, 30)[1][None]
    q, cotangent = rng.normal(size=(2, 1, num_tokens, group, head_dim)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, num_tokens, 1, head_dim)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="backend")
    def values_and_gradients(q, k, v, backend):
        out, vjp = jax.vjp(lambda *x: tree_attention(*x, ends, backend=backend), q, k, v)
        return out, *vjp(cotangent)

    for a, b in zip(values_and_gradients(q, k, v, "interpret"), values_and_gradients(q, k, v, "xla"), strict=True):
        assert relative_error(a, b) < 5e-6


def test_the_tpu_kernels_work_under_scan_remat_and_shard_map():
    """As a model uses them: layers are a scan of recomputed bodies, and every device has its own rows."""
    rng = np.random.default_rng(0)
    ends = random_forest(rng, 75, 0)[1][None]
    q = rng.normal(size=(1, 75, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 3, 1, 75, K, DH)).astype(np.float32)  # of three layers
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])

    @functools.partial(jax.jit, static_argnames="backend")
    def loss_gradient(q, k, v, backend):
        def attention(q, k, v, ends):
            if backend == "xla":
                return tree_attention(q, k, v, ends, backend="xla")
            return tpu.tree_attention_tpu(q, k, v, ends, blocks=SMALL, interpret=True)

        attention = jax.shard_map(attention, in_specs=jax.P("x"), out_specs=jax.P("x"), check_vma=False)
        layer = jax.checkpoint(lambda q, kv: (q + attention(q, *kv, ends), None), prevent_cse=False)
        return jax.grad(lambda *x: (jax.lax.scan(layer, x[0], x[1:])[0] ** 2).sum(), argnums=(0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        for a, b in zip(loss_gradient(q, k, v, "interpret"), loss_gradient(q, k, v, "xla"), strict=True):
            assert relative_error(a, b) < 5e-6


def test_blocks_that_nobody_sees_are_not_read():
    """Two trees, of 32 and 43 tokens: nothing of the first one's blocks reaches the second, not even NaN."""
    rng = np.random.default_rng(0)
    ends = np.repeat([32, 75], [32, 43])[None].astype(np.int32)
    q = rng.normal(size=(1, 75, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 75, K, DH)).astype(np.float32)
    k[:, :32] = v[:, :32] = np.nan
    for x in _by_backend(q, k, v, ends, q, "interpret"):
        assert np.isnan(x[:, :32]).all() and np.isfinite(x[:, 32:]).all()


def test_costs_are_those_of_dense_attention_where_all_blocks_are_visible():
    """One block: the products of a dense [G Tq, Tk] attention, and every array read or written once."""
    blocks = Blocks(query=128, key=128, num_query=1, num_key=1)
    costs = tpu.costs(1, blocks, num_rows=1, kv_heads=3, group=2, head_dim=64, itemsize=2)
    product = 3 * 2 * 128 * 128 * 64 * 2
    queries, keys, scalars, ends = 3 * 2 * 128 * 64 * 2, 3 * 128 * 64 * 2, 3 * 2 * 128 * 4, 3 * 128 * 4
    found = {name: (c.flops, c.bytes_accessed) for name, c in costs.items()}
    assert found == {
        "tree_attention_forward": (2 * product, 2 * keys + ends + 2 * queries + scalars),
        "tree_attention_backward_q": (3 * product, 2 * keys + ends + 3 * queries + 2 * scalars),
        "tree_attention_backward_kv": (4 * product, 4 * keys + ends + 2 * queries + 2 * scalars),
    }
    twice = tpu.costs(2, blocks, num_rows=1, kv_heads=3, group=2, head_dim=64, itemsize=2)
    assert all(twice[name].flops == 2 * flops for name, (flops, _) in found.items())


@pytest.mark.parametrize(
    "rows, tokens, heads, head_dim", [(1, 16, 1, 96), (300, 16, 1, 128), (64, 32768, 1, 128), (1, 16, 9, 128)]
)
def test_shapes_the_tpu_kernels_do_not_take_are_refused_with_the_way_out(rows, tokens, heads, head_dim):
    q, kv = (jax.ShapeDtypeStruct((rows, tokens, n, head_dim), jnp.float32) for n in (heads, 1))
    ends = np.ones((rows, tokens), np.int32)
    message = f"not head_dim {head_dim} with {heads} heads of 1 and {rows} rows of {tokens} tokens: lower train.row_tok"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda q, kv: tree_attention(q, kv, kv, ends, backend="interpret"), q, kv)


def test_trees_of_one_row_do_not_see_each_other():
    rng = np.random.default_rng(0)
    _, a = random_forest(rng, 9, 0)
    _, b = random_forest(rng, 14, 0)
    q = rng.normal(size=(1, 23, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 23, K, DH)).astype(np.float32)
    together = tree_attention(q, k, v, np.concatenate([a, b + 9])[None], block=8)
    for part, end in ((slice(0, 9), a), (slice(9, 23), b)):
        alone = tree_attention(q[:, part], k[:, part], v[:, part], end[None])
        np.testing.assert_allclose(together[:, part], alone, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_rows_that_see_nothing_are_finite(backend, dtype):
    """Padding marked carelessly with 0, whole blocks of it, must not poison the gradient of the rest."""
    rng = np.random.default_rng(0)
    ends = np.where(np.arange(75) < 19, 19, 0)[None].astype(np.int32)
    q = jnp.asarray(100 * rng.normal(size=(1, 75, H, DH)), dtype)
    k, v = jnp.asarray(100 * rng.normal(size=(2, 1, 75, K, DH)), dtype)
    for x in _by_backend(q, k, v, ends, jnp.ones_like(q), backend):
        assert x.dtype == dtype and np.isfinite(x.astype(np.float32)).all()


def test_memory_grows_linearly_with_the_row():
    def temporaries(num_tokens: int) -> int:
        q = jax.ShapeDtypeStruct((1, num_tokens, H, DH), jnp.float32)
        kv = jax.ShapeDtypeStruct((1, num_tokens, K, DH), jnp.float32)
        ends = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)
        compiled = _values_and_gradients.lower(q, kv, kv, ends, q, block=64).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    assert long < 6 * short  # 4 times the tokens; the full score matrix would need 16 times as much
    assert long < 4 * H * 4096 * 4096  # less than one full float32 score matrix


def test_a_scan_over_layers_keeps_no_masks():
    """JAX moves what does not depend on the layer out of the loop, which must not be the masks of all blocks."""

    def temporaries(num_tokens: int) -> int:
        q = jax.ShapeDtypeStruct((1, num_tokens, H, DH), jnp.float32)
        ends = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)

        @jax.jit
        def gradient(q, ends):
            def layer(q, _):
                return q + tree_attention(q, q[:, :, :K], q[:, :, K:], ends), None

            return jax.grad(lambda q: jax.lax.scan(layer, q, length=3)[0].sum())(q)

        return gradient.lower(q, ends).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 6 * temporaries(1024)
