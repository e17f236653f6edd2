"""The page pool against a plain-Python model of it: lists of tokens, one per sequence."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import numpy as jnp

from ibtpo.sampling import pages as paging

ROWS, PAGES, PAGE_SIZE, PAGES_PER_ROW = 6, 14, 4, 5
BATCH = 3  # operations are vectorised over BATCH rows; unused entries are out of range


def new_pool():
    return paging.make_pool(
        num_layers=2,
        num_pages=PAGES,
        page_size=PAGE_SIZE,
        num_kv_heads=1,
        head_dim=1,
        num_rows=ROWS,
        pages_per_row=PAGES_PER_ROW,
    )


@jax.jit
def extend_and_write(pool, rows, old, new, values):
    """Makes room for `new` tokens and writes values[:, i] at positions old <= i < new of both caches."""
    pool = paging.extend(pool, rows, new)
    positions = jnp.broadcast_to(jnp.arange(values.shape[1]), values.shape)
    valid = (positions >= old[:, None]) & (positions < new[:, None])
    table = pool.page_table.at[rows].get(mode="fill", fill_value=paging.NO_PAGE)
    page, offset = paging.page_and_offset(table, positions, valid, PAGE_SIZE)
    values = values[:, :, None, None]
    for layer in range(2):
        pool = pool.replace(
            keys=paging.write(pool.keys, layer, page, offset, values + layer),
            values=paging.write(pool.values, layer, page, offset, -values - layer),
        )
    return pool


fork, release = jax.jit(paging.fork), jax.jit(paging.release)


def contents(pool, row, length):
    table = np.asarray(pool.page_table)[row]
    pages = table[: paging.pages_for(length, PAGE_SIZE)]
    assert (pages != paging.NO_PAGE).all()
    keys = np.asarray(pool.keys)[0, ..., 0][:, pages].reshape(2, -1)[:, :length]
    values = np.asarray(pool.values)[0, ..., 0][:, pages].reshape(2, -1)[:, :length]
    np.testing.assert_array_equal(keys, -values)
    np.testing.assert_array_equal(keys[1], keys[0] + 1)
    return keys[0].tolist()


def pad(values, fill=ROWS):
    return jnp.asarray([*values, *[fill] * (BATCH - len(values))], jnp.int32)


operation = st.one_of(
    st.tuples(
        st.just("extend"),
        st.lists(
            st.tuples(st.integers(0, ROWS - 1), st.integers(1, 7)), min_size=1, max_size=BATCH, unique_by=lambda e: e[0]
        ),
    ),
    st.tuples(
        st.just("fork"),
        st.lists(
            st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1), st.integers(0, 20)),
            min_size=1,
            max_size=BATCH,
            unique_by=lambda e: e[1],
        ),
    ),
    st.tuples(st.just("release"), st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=BATCH, unique=True)),
)


@settings(max_examples=60)
@given(st.lists(operation, min_size=1, max_size=25))
def test_any_sequence_of_operations_keeps_contents_and_page_counts(operations):
    pool, model, fresh = new_pool(), {}, iter(range(1, 10**6))
    for kind, entries in operations:
        if kind == "extend":
            entries = [(row, min(len(model.get(row, [])) + n, PAGE_SIZE * PAGES_PER_ROW)) for row, n in entries]
            grown = {
                **model,
                **{row: model.get(row, []) + [None] * (new - len(model.get(row, []))) for row, new in entries},
            }
            if upper_bound(grown) > PAGES:
                continue
            old = [len(model.get(row, [])) for row, _ in entries]
            values = np.zeros((BATCH, PAGE_SIZE * PAGES_PER_ROW), np.float32)
            for i, (row, new) in enumerate(entries):
                tail = [10.0 * next(fresh) for _ in range(new - old[i])]
                model[row] = model.get(row, []) + tail
                values[i, old[i] : new] = tail
            pool = extend_and_write(
                pool, pad([r for r, _ in entries]), pad(old, 0), pad([n for _, n in entries], 0), values
            )
        elif kind == "fork":
            targets = {target for _, target, _ in entries}
            entries = [
                (s, t, min(n, len(model.get(s, []))))
                for s, t, n in entries
                if t not in model and s not in targets and s in model
            ]
            grown = {**model, **{t: model[s][:n] for s, t, n in entries}}
            if not entries or upper_bound(grown) > PAGES:
                continue
            model = {row: tokens for row, tokens in grown.items() if tokens}
            pool, done = fork(
                pool,
                pad([s for s, _, _ in entries]),
                pad([t for _, t, _ in entries]),
                pad([n for _, _, n in entries], 0),
            )
            assert done.tolist() == [True] * len(entries) + [False] * (BATCH - len(entries))
        else:
            model = {row: tokens for row, tokens in model.items() if row not in entries}
            pool = release(pool, pad(entries))
        check(pool, model)
    pool = release(pool, jnp.arange(ROWS))
    assert int(paging.pages_in_use(pool)) == 0


def upper_bound(model):
    """Pages needed if nothing were shared."""
    return sum(paging.pages_for(len(tokens), PAGE_SIZE) for tokens in model.values())


def check(pool, model):
    table, ref_counts = np.asarray(pool.page_table), np.asarray(pool.ref_counts)
    named, times = np.unique(table[table != paging.NO_PAGE], return_counts=True)
    expected = np.zeros(PAGES, int)
    expected[named] = times
    np.testing.assert_array_equal(ref_counts, expected)
    assert int(paging.pages_in_use(pool)) + int((ref_counts == 0).sum()) == PAGES
    for row in range(ROWS):
        tokens = model.get(row, [])
        assert (table[row] != paging.NO_PAGE).sum() == paging.pages_for(len(tokens), PAGE_SIZE)
        assert contents(pool, row, len(tokens)) == tokens


@pytest.mark.parametrize("length", range(1, 13))
def test_fork_shares_whole_pages_and_copies_only_the_partial_one(length):
    pool = extend_and_write(
        new_pool(), pad([0]), pad([0], 0), pad([12], 0), jnp.arange(BATCH * 20.0).reshape(BATCH, 20) * 10
    )
    forked, _ = fork(pool, pad([0]), pad([1]), pad([length], 0))
    shared = length // PAGE_SIZE
    np.testing.assert_array_equal(forked.page_table[1, :shared], pool.page_table[0, :shared])
    added = int(paging.pages_in_use(forked)) - int(paging.pages_in_use(pool))
    assert added == (length % PAGE_SIZE > 0)
    assert contents(forked, 1, length) == contents(pool, 0, length)


def test_allocation_has_no_loop_over_pages():
    """The number of operations does not depend on the number of pages or rows."""

    def operations(rows, pages):
        pool = jax.eval_shape(
            functools.partial(
                paging.make_pool,
                num_layers=1,
                num_pages=pages,
                page_size=4,
                num_kv_heads=1,
                head_dim=1,
                num_rows=rows,
                pages_per_row=8,
            )
        )
        index = jax.ShapeDtypeStruct((rows,), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda p, i: paging.fork(paging.extend(p, i, i), i, i, i))(pool, index)
        text = str(jaxpr)
        assert "while" not in text and "scan[" not in text
        return len(jaxpr.eqns)

    assert operations(4, 16) == operations(64, 4096)


def test_a_fork_without_a_page_for_its_copy_is_passed_over_and_the_others_are_made():
    pool = paging.extend(new_pool(), pad([0]), pad([5], 0))
    pool = paging.extend(pool, pad([1, 2, 3]), pad([20, 20, 4], 0))  # 2 + 5 + 5 + 1 pages: one is left
    before = np.asarray(pool.page_table)
    forked, done = fork(pool, pad([0, 0, 0]), pad([4, 5], ROWS), pad([5, 5], 4))
    assert done.tolist() == [True, False, False]
    table = np.asarray(forked.page_table)
    assert table[4, 0] == before[0, 0] and table[4, 1] not in (*before[0], paging.NO_PAGE)
    assert (table[5] == paging.NO_PAGE).all()
    assert forked.ref_counts[before[0, 0]] == 2
    whole, done = fork(forked, pad([0]), pad([5]), pad([4], 0))  # whole pages need no copy
    assert done.tolist() == [True, False, False] and whole.page_table[5, 0] == before[0, 0]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=BATCH, max_size=BATCH), st.integers(0, 10), st.data())
def test_pages_taken_token_by_token_are_free_distinct_and_run_out(lengths, occupied, data):
    """Against counting: a row gets a page whenever its length passes a multiple, while there are any."""
    pool = paging.extend(new_pool(), pad([3, 4], ROWS), pad([min(occupied, 5) * 4, max(occupied - 5, 0) * 4], 0))
    left = PAGES - occupied
    rows, held = jnp.arange(BATCH), [0] * BATCH
    free, taken = paging.free_pages(pool.ref_counts, 40), jnp.zeros(1, jnp.int32)
    length = [1] * BATCH
    for _ in range(12):
        active = [data.draw(st.booleans()) and n <= limit for n, limit in zip(length, lengths)]
        pool, taken, running = paging.take_pages(pool, free, taken, rows, jnp.asarray(length), jnp.asarray(active))
        for row in range(BATCH):
            room = -(-length[row] // PAGE_SIZE) <= held[row]
            got = active[row] and not room and left > 0
            left, held[row] = left - got, held[row] + got
            assert bool(running[row]) == (active[row] and (room or got))
            length[row] += bool(running[row])
    table = np.asarray(pool.page_table)
    named = table[table != paging.NO_PAGE]
    assert len(set(named.tolist())) == len(named) == int(paging.pages_in_use(pool)) == PAGES - left
    assert (np.asarray(pool.ref_counts)[named] == 1).all()
    assert [(row != paging.NO_PAGE).sum() for row in table[:BATCH]] == held
