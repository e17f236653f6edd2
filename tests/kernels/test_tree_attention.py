"""Tree attention against a float64 NumPy oracle that walks parents, on random forests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.kernels.tree_attention import tree_attention

H, K, DH = 4, 2, 8


def random_forest(rng: np.random.Generator, num_tokens: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(parent, subtree_end) of several random trees in depth-first order, then padding; parent -1: a first token."""
    parent = np.full(num_tokens, -1)
    for i in range(1, num_tokens - padding):
        path = [i - 1]  # depth first: a token continues any token on the path of the one before it
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        # Mostly a plain continuation, sometimes a branch, sometimes a new tree.
        kind = rng.random()
        parent[i] = path[0] if kind < 0.6 else rng.choice(path) if kind < 0.9 else -1
    end = np.arange(num_tokens) + 1
    for i in reversed(range(num_tokens - padding)):
        if parent[i] >= 0:
            end[parent[i]] = max(end[parent[i]], end[i])
    return parent, end.astype(np.int32)


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
        for h in range(H):
            g = h // (H // K)
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
    out, vjp = jax.vjp(lambda q, k, v: tree_attention(q, k, v, ends, query_block=block), q, k, v)
    return out, *vjp(cotangent)


def test_trees_of_one_row_do_not_see_each_other():
    rng = np.random.default_rng(0)
    _, a = random_forest(rng, 9, 0)
    _, b = random_forest(rng, 14, 0)
    q = rng.normal(size=(1, 23, H, DH)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 23, K, DH)).astype(np.float32)
    together = tree_attention(q, k, v, np.concatenate([a, b + 9])[None], query_block=8)
    for part, end in ((slice(0, 9), a), (slice(9, 23), b)):
        alone = tree_attention(q[:, part], k[:, part], v[:, part], end[None])
        np.testing.assert_allclose(together[:, part], alone, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_that_see_nothing_are_finite(dtype):
    """Padding marked carelessly with 0 must not poison the gradient of the rest."""
    rng = np.random.default_rng(0)
    ends = np.array([[3, 3, 3, 0, 0]], np.int32)
    q = jnp.asarray(100 * rng.normal(size=(1, 5, H, DH)), dtype)
    k, v = jnp.asarray(100 * rng.normal(size=(2, 1, 5, K, DH)), dtype)
    for x in _values_and_gradients(q, k, v, ends, jnp.ones_like(q), block=4):
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
