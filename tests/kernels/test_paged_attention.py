"""Paged attention, by XLA and by the TPU and GPU kernels (interpreted), against float64 attention over the tokens."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from ibtpo.kernels import page_heads as layout
from ibtpo.kernels import paged_attention as module
from ibtpo.kernels import paged_attention_gpu
from ibtpo.kernels.paged_attention import paged_attention_cost

paged_attention = jax.jit(module.paged_attention, static_argnames="backend")

LAYERS, PAGES, PAGE, SLOTS, COLUMNS = 3, 12, 8, 5, 4


def case(rng, num_kv_heads, group, head_dim):
    """Slots of ragged lengths whose first page is everybody's; absent pages are -1."""
    cache = (num_kv_heads, LAYERS, PAGES, PAGE, head_dim)
    keys, values = rng.normal(size=(2, *cache)).astype(np.float32)
    query = rng.normal(size=(SLOTS, num_kv_heads * group, head_dim)).astype(np.float32)
    lengths = np.array([1, PAGE, PAGE + 1, 3 * PAGE - 2, COLUMNS * PAGE], np.int32)
    table = np.full((SLOTS, COLUMNS), -1, np.int32)
    for s, length in enumerate(lengths):
        own = rng.permutation(np.arange(1, PAGES))[: -(-length // PAGE) - 1]
        table[s, : len(own) + 1] = [0, *own]
    return query, keys, values, table, lengths


def oracle(query, keys, values, layer, table, lengths):
    out = np.zeros(query.shape)
    group = query.shape[1] // keys.shape[0]
    for s, length in enumerate(lengths):
        pages = table[s, : -(-length // PAGE)]
        for h in range(query.shape[1]):
            k, v = (
                x[h // group, layer, pages].reshape(-1, x.shape[-1])[:length].astype(np.float64) for x in (keys, values)
            )
            scores = k @ query[s, h] / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max())
            out[s, h] = weights / weights.sum() @ v
    return out


@pytest.mark.parametrize("num_kv_heads, group", [(1, 1), (2, 2), (2, 7), (1, 8)])
@pytest.mark.parametrize(
    "backend, dtype, head_dim, tolerance",
    [("xla", "float32", 16, 1e-5), ("xla", "bfloat16", 16, 2e-2), ("interpret", "bfloat16", 128, 2e-2)],
)
def test_paged_attention_matches_the_oracle(backend, dtype, head_dim, tolerance, num_kv_heads, group):
    query, keys, values, table, lengths = case(np.random.default_rng(group), num_kv_heads, group, head_dim)
    arrays = [jnp.asarray(x, dtype) for x in (query, keys, values)]
    rounded = [np.asarray(x, np.float64) for x in arrays]
    for layer in range(LAYERS):
        out = paged_attention(*arrays, jnp.int32(layer), table, lengths, backend=backend)
        assert out.dtype == dtype
        expected = oracle(*rounded, layer, table, lengths)
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance)
        assert abs(expected).max() > 10 * tolerance


@pytest.mark.parametrize("backend", ["xla", "interpret"])
@pytest.mark.parametrize(
    "num_kv_heads, group, head_dim, pages",
    [
        (2, 7, 64, (1, 128)),  # Qwen2.5-0.5B
        (3, 3, 64, (2, 128)),  # SmolLM2-135M: zeros for a fourth head
        (1, 4, 64, (1, 128)),
        (5, 1, 32, (2, 128)),
        (2, 2, 80, (2, 128)),
        (1, 2, 192, (1, 256)),
    ],
)
def test_small_heads_lie_side_by_side_where_lanes_are_read_whole(
    backend, num_kv_heads, group, head_dim, pages, monkeypatch
):
    monkeypatch.setattr(layout, "platform", lambda: "tpu")
    assert layout.page_heads(num_kv_heads, head_dim, jnp.dtype(jnp.bfloat16)) == pages
    query, keys, values, table, lengths = case(np.random.default_rng(group), num_kv_heads, group, head_dim)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, keys, values)]
    packed = [jnp.moveaxis(layout.in_pages(jnp.moveaxis(x, 0, -2), *pages), -2, 0) for x in arrays[1:]]
    assert packed[0].shape == (pages[0], LAYERS, PAGES, PAGE, pages[1])
    attend = jax.jit(module.paged_attention, static_argnames=("backend", "num_kv_heads"))
    out = attend(arrays[0], *packed, jnp.int32(1), table, lengths, num_kv_heads=num_kv_heads, backend=backend)
    expected = oracle(*[np.asarray(x, np.float64) for x in arrays], 1, table, lengths)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-2)


def test_pages_are_split_as_the_heads_are(monkeypatch):
    """Heads of one device lie side by side; heads that the devices do not divide stay whole on each."""
    bfloat16 = jnp.dtype(jnp.bfloat16)
    assert layout.page_heads(2, 64, bfloat16) == (2, 64)  # not on a CPU
    monkeypatch.setattr(layout, "platform", lambda: "tpu")
    assert layout.page_heads(8, 64, bfloat16, 4) == (4, 128)
    assert layout.page_heads(2, 64, bfloat16, 2) == (2, 128)
    assert layout.page_heads(3, 64, bfloat16, 2) == (3, 128)
    assert layout.page_heads(8, 128, bfloat16, 4) == (8, 128)
    assert layout.page_heads(8, 64, jnp.dtype(jnp.float32), 4) == (8, 64)


@pytest.mark.parametrize("num_kv_heads, group", [(1, 1), (2, 2), (2, 7), (1, 17)])
@pytest.mark.parametrize("programs, block", [(1, 8), (1, 32), (40, 8), (1000, 8)])
def test_the_gpu_kernel_matches_the_oracle(programs, block, num_kv_heads, group, monkeypatch):
    """In one part and in several, some of them behind the end of a sequence, in blocks of one page and of more."""
    monkeypatch.setattr(paged_attention_gpu, "PROGRAMS", programs)
    monkeypatch.setattr(paged_attention_gpu, "BLOCK_TOKENS", block)
    query, keys, values, table, lengths = case(np.random.default_rng(group), num_kv_heads, group, 32)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, keys, values)]
    out = jax.jit(lambda *args: module.paged_attention(*args, backend="interpret_gpu"))(
        *arrays, jnp.int32(1), table, lengths
    )
    expected = oracle(*[np.asarray(x, np.float64) for x in arrays], 1, table, lengths)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-2)


@pytest.mark.parametrize("seed", range(12))
def test_slots_that_share_pages_get_what_each_would_alone(seed, monkeypatch):
    """Two tiles of slots, each sharing a random number of first pages; some slots are of one token or free."""
    monkeypatch.setattr(module, "XLA_BLOCK", 2 * PAGE)
    monkeypatch.setattr(module, "share_cores", lambda: seed % 2 == 1)  # fewer blocks at once than there are slots
    rng = np.random.default_rng(seed)
    tiles, columns = 2, 9
    assert tiles * module.TILE > module.XLA_BLOCKS
    slots = tiles * module.TILE
    keys, values = rng.normal(size=(2, 2, LAYERS, 200, PAGE, 16)).astype(np.float32)
    query = rng.normal(size=(slots, 4, 16)).astype(np.float32)
    fresh = iter(rng.permutation(200))
    table, lengths = np.full((slots, columns), -1, np.int32), np.ones(slots, np.int32)
    for tile in range(tiles):
        shared = int(rng.integers(0, columns - 1))
        prefix = [next(fresh) for _ in range(shared)]
        for s in range(tile * module.TILE, (tile + 1) * module.TILE):
            kind = rng.choice(["normal", "one token", "free"], p=[0.8, 0.1, 0.1])
            if kind == "normal":
                lengths[s] = rng.integers(shared * PAGE + 1, columns * PAGE + 1)
            if kind != "free":
                held = -(-int(lengths[s]) // PAGE)
                own = [next(fresh) for _ in range(max(held - shared, 1 if kind == "one token" else 0))]
                table[s, :held] = (prefix + own if kind == "normal" else own)[:held]
    pages = module.shared_pages(jnp.asarray(table), jnp.asarray(lengths), PAGE)
    # Any number that is truly shared will do, whether it pays or not.
    fewer = np.repeat([rng.integers(0, n + 1) for n in pages[:: module.TILE]], module.TILE).astype(np.int32)
    expected = oracle(query, keys, values, 1, table, lengths)
    attend = jax.jit(functools.partial(module.paged_attention, backend="xla"))
    for shared in (None, pages, fewer):
        out = np.asarray(attend(query, keys, values, jnp.int32(1), table, lengths, shared=shared))
        assert np.isfinite(out).all()
        occupied = table[:, 0] >= 0
        np.testing.assert_allclose(out[occupied], expected[occupied], atol=1e-5)


def test_shared_pages_are_found_where_they_pay_and_only_there(monkeypatch):
    tile, page = module.TILE, 4
    monkeypatch.setattr(module, "XLA_BLOCK", page)
    own = 100 + np.arange(2 * tile * 8).reshape(2 * tile, 8)
    lengths = np.full(2 * tile, 8 * page, np.int32)

    def shared(table, lengths):
        return module.shared_pages(jnp.asarray(table), jnp.asarray(lengths), page)[::tile].tolist()

    table = own.copy()
    assert shared(table, lengths) == [0, 0]
    table[:tile, :7] = np.arange(7)
    table[tile:, :6] = 10 + np.arange(6)
    assert shared(table, lengths) == [7, 6]
    short = lengths.copy()
    short[3] = 3 * page  # its third page holds its own last token
    assert shared(table, short) == [2, 6]
    short[3] = 1  # free
    assert shared(table, short) == [7, 6]
    # Every tile takes part in the loop of those that share: one of two is worth it, one of four is not.
    table[tile:] = own[tile:]
    assert shared(table, lengths) == [7, 0]
    table = np.concatenate([table, own + 1000])
    assert shared(table, np.full(4 * tile, 8 * page, np.int32)) == [0, 0, 0, 0]


def test_the_kernel_reads_several_blocks_and_none_beyond_the_end():
    """Three slots of up to five blocks of 256 tokens; all the pages beyond a slot's last block hold NaN."""
    rng = np.random.default_rng(0)
    page, pages, columns = 64, 60, 18
    per_block = module.BLOCK_TOKENS // page
    keys, values = rng.normal(size=(2, 1, 1, pages, page, 128))
    query = rng.normal(size=(3, 2, 128))
    lengths = np.array([page * columns - 5, 3, module.BLOCK_TOKENS + 1], np.int32)
    table = 1 + rng.permutation(pages - 1)[: 3 * columns].reshape(3, columns).astype(np.int32)
    for s, length in enumerate(lengths):
        read = -(-length // module.BLOCK_TOKENS) * per_block
        keys[:, :, table[s, read:]] = values[:, :, table[s, read:]] = np.nan
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, keys, values)]
    out = paged_attention(*arrays, jnp.int32(0), table, lengths, backend="interpret")
    expected = oracle(*(np.asarray(x, np.float64) for x in arrays), 0, table, lengths)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-2)


@pytest.mark.parametrize(
    "backend, head_dim, dtype, table",
    [
        ("interpret", 64, jnp.bfloat16, (2, 3)),
        ("interpret", 128, jnp.float32, (2, 3)),
        ("interpret", 128, jnp.bfloat16, (4096, 64)),
        ("interpret_gpu", 96, jnp.bfloat16, (2, 3)),
        ("interpret_gpu", 128, jnp.float32, (2, 3)),
        ("interpret_gpu", 256, jnp.bfloat16, (2, 3)),
    ],
)
def test_pages_the_kernel_does_not_take_are_refused_with_the_way_out(backend, head_dim, dtype, table):
    cache = jnp.zeros((1, 1, 3, 8, head_dim), dtype)
    arrays = jnp.zeros((table[0], 1, head_dim), dtype), cache, cache, jnp.int32(0), np.zeros(table, np.int32)
    with pytest.raises(ValueError, match=rf"not {cache.dtype} with head_dim {head_dim}.*use backend='xla'"):
        module.paged_attention(*arrays, np.ones(table[0], np.int32), backend=backend)


def test_cost_counts_the_live_tokens():
    flops, size = paged_attention_cost(np.array([3, 5]), num_heads=4, num_kv_heads=2, head_dim=16, itemsize=2)
    assert flops == 8 * 4 * 16 * (2 + 2)  # two products, a multiplication and an addition each
    assert size == 8 * 2 * 16 * 2 * 2  # keys and values of two heads, two bytes each
