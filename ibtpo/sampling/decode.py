"""The device side of the sampler: prefill, start, decode a chunk, release, recompute.

One invariant explains all of it: a sequence of n tokens has the keys and values of its first n - 1
tokens in the cache; the last one is *pending*. A decode step feeds the pending token, which writes its
keys and values and gives the logits of the next. So a fork at any token needs only a prefix of the
cache and the pending token's id, and no stored logits.

Nothing here waits for the host. Sequences to be decoded stand by in a queue, and a slot that falls free in the middle
of a chunk takes the next of them. Pages are taken from the pool token by token; when it is empty a slot starves: it
makes no progress, loses nothing, and the host is told.

Letters: S slots, W entries of the queue, N rows of the page table (sequences), B prompts of one prefill, C steps of a
chunk.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
from flax import nnx
from jax import lax
from jax import numpy as jnp

from ibtpo.kernels.paged_attention import paged_attention, shared_pages
from ibtpo.models.attention import prompt_attend
from ibtpo.models.decoder import Attend, Decoder
from ibtpo.parallel import constrain, constrain_tree, current_mesh, num_row_shards, per_shard, replicate
from ibtpo.sampling import pages as paging
from ibtpo.sampling.device import CHECK_EVERY, Chunk
from ibtpo.sampling.logits import SamplingParams, sample
from ibtpo.sampling.pages import POOL_AXES, PagePool
from ibtpo.sampling.slots import QUEUE_AXES, SLOT_AXES, STATE_AXES, Queue, SamplerState, Slots, Starts, make_slots
from ibtpo.sampling.stops import MATCHED

_extend = per_shard(paging.extend, (POOL_AXES, ("rows",), ("rows",)), POOL_AXES)
_fork = per_shard(paging.fork, (POOL_AXES, ("rows",), ("rows",), ("rows",)), (POOL_AXES, ("rows",)))
_rows_of = per_shard(
    lambda table, rows: table.at[rows].get(mode="fill", fill_value=paging.NO_PAGE),
    (("rows", None), ("rows",)),
    ("rows", None),
)
_take_pages = per_shard(
    paging.take_pages,
    (POOL_AXES, ("rows",), ("rows",), ("rows",), ("rows",), ("rows",)),
    (POOL_AXES, *[("rows",)] * 2),
)


def release(state: SamplerState, rows: jax.Array) -> SamplerState:
    """Gives back every page of `rows` [F], equally many entries for each shard, and takes those of them that still
    decode or stand by out of their slots and the queue."""

    def release(state, rows):
        def kept(row):
            return jnp.all(row[:, None] != rows, axis=1)

        slots, queue = state.slots, state.queue
        return SamplerState(
            pool=paging.release(state.pool, rows),
            slots=replace(slots, active=slots.active & kept(slots.row)),
            queue=replace(queue, waiting=queue.waiting & kept(queue.row)),
        )

    return constrain_tree(per_shard(release, (STATE_AXES, ("rows",)), STATE_AXES)(state, rows), STATE_AXES)


def _write(pool: PagePool, layer, page, offset, keys, values) -> PagePool:
    """Stores keys and values [B, T, K, head_dim] of one layer at (page, offset) [B, T]."""
    axes = (POOL_AXES.keys, (), ("rows", None), ("rows", None), ("rows", None, "kv_heads", None))
    write = per_shard(paging.write, axes, POOL_AXES.keys)
    keys, values = (write(cache, layer, page, offset, new) for cache, new in ((pool.keys, keys), (pool.values, values)))
    return replace(pool, keys=keys, values=values)


def _paged_attend(page_size: int, table: jax.Array, page: jax.Array, offset: jax.Array, lengths: jax.Array) -> Attend:
    """An `attend` for one new token per slot: stores its keys and values at (page, offset) [S, 1], then reads the
    first `lengths` [S] tokens of the slot's pages `table` [S, M]. The cache is the `PagePool`."""
    query_axes = ("rows", "kv_heads", None, None)
    find_shared = per_shard(lambda t, n: shared_pages(t, n, page_size), (("rows", None), ("rows",)), ("rows",))
    shared = find_shared(table, lengths)  # the same for every layer

    def grouped(query, keys, values, layer, table, lengths, shared):
        S, K, G, Dh = query.shape
        query = query.reshape(S, K * G, Dh)
        out = paged_attention(query, keys, values, layer, table, lengths, shared=shared, num_kv_heads=K)
        return out.reshape(S, K, G, Dh)

    attention = per_shard(
        grouped,
        (query_axes, POOL_AXES.keys, POOL_AXES.keys, (), ("rows", None), ("rows",), ("rows",)),
        query_axes,
    )

    def attend(query, key, value, layer, pool):
        pool = _write(pool, layer, page, offset, key, value)
        # Query heads are split by the kv head they read, so that a device has both.
        S, _, H, Dh = query.shape
        K = key.shape[2]
        out = attention(query.reshape(S, K, H // K, Dh), pool.keys, pool.values, layer, table, lengths, shared)
        return out.reshape(S, 1, H, Dh), pool

    return attend


def prefill(graphdef, params, pool: PagePool, tokens: jax.Array, lengths: jax.Array, rows: jax.Array) -> PagePool:
    """Puts the keys and values of whole prompts into the cache.

    tokens: [B, T] int32, of which the first `lengths` [B] are real. rows: [B] int32, empty rows of the
    page table, equally many entries for each shard; an entry out of range is passed over. No logits
    are computed: the prompt's last token is pending in whatever forks from it.
    """
    batch, num_tokens = tokens.shape
    pool = _extend(pool, rows, lengths)
    positions = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))
    # Of a row out of range the table names no page, so nothing of it is stored.
    valid = positions < lengths[:, None]
    page, offset = paging.page_and_offset(_rows_of(pool.page_table, rows), positions, valid, pool.page_size)
    own_attend = prompt_attend(lengths)

    def attend(query, key, value, layer, pool):
        return own_attend(query, key, value, layer, _write(pool, layer, page, offset, key, value))

    decoder = nnx.merge(graphdef, params)
    _, pool = decoder(tokens, positions, attend, pool)
    return constrain_tree(pool, POOL_AXES)


def start(state: SamplerState, starts: Starts, key: jax.Array) -> SamplerState:
    """Puts sequences into the queue and forks those that are not ready as far as there are pages.

    key: the run's PRNG key. The entries free in the queue must be enough.
    """

    def sequence_key(question, response):
        return jax.random.fold_in(jax.random.fold_in(key, question), response)

    new = Queue(
        source=starts.source,
        row=starts.row,
        token=starts.token,
        length=starts.length,
        limit=starts.limit,
        key=jax.vmap(sequence_key)(starts.question, starts.response),
        stop_state=starts.stop_state,
        waiting=starts.valid,
        ready=starts.valid & (starts.row == starts.source),
    )

    def append(queue, new):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), queue, new)
        order = jnp.argsort(~both.waiting, stable=True)[: queue.row.shape[0]]
        return jax.tree.map(lambda x: x[order], both)

    queue = per_shard(append, (QUEUE_AXES, QUEUE_AXES), QUEUE_AXES)(state.queue, new)
    targets = jnp.where(queue.waiting & ~queue.ready, queue.row, paging.NO_ROW)
    pool, forked = _fork(state.pool, queue.source, targets, queue.length - 1)
    queue = replace(queue, ready=queue.ready | forked)
    return constrain_tree(SamplerState(pool=pool, slots=state.slots, queue=queue), STATE_AXES)


def _adopt(slots: Slots, queue: Queue) -> tuple[Slots, Queue]:
    """Free slots take the first sequences of the queue that are ready."""
    num_entries = queue.row.shape[0]
    free = ~slots.active
    (first,) = jnp.nonzero(queue.waiting & queue.ready, size=free.shape[0], fill_value=num_entries)
    entry = jnp.where(free, first[jnp.maximum(jnp.cumsum(free) - 1, 0)], num_entries)
    taken = entry < num_entries
    entry = jnp.minimum(entry, num_entries - 1)

    def take(slot_values, queue_values):
        return jnp.where(taken, queue_values[entry], slot_values)

    slots = Slots(
        row=take(slots.row, queue.row),
        token=take(slots.token, queue.token),
        length=take(slots.length, queue.length),
        limit=take(slots.limit, queue.limit),
        key=take(slots.key, queue.key),
        stop_state=take(slots.stop_state, queue.stop_state),
        active=slots.active | taken,
    )
    entry = jnp.where(taken, entry, num_entries)
    return slots, replace(queue, waiting=queue.waiting.at[entry].set(False, mode="drop"))


_adopt_all = per_shard(_adopt, (SLOT_AXES, QUEUE_AXES), (SLOT_AXES, QUEUE_AXES))


def _narrow(slots: Slots, width: int) -> Slots:
    """The active slots first, neighbours by row, so that those of one question read shared pages together; and only
    `width` of them."""
    order = jnp.argsort(jnp.where(slots.active, slots.row, paging.NO_ROW))[:width]
    return jax.tree.map(lambda x: x[order], slots)


def _widen(slots: Slots, num_slots: int) -> Slots:
    """With free slots added."""
    added = make_slots(num_slots - slots.row.shape[0])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), slots, added)


def _decode_step(
    decoder: Decoder,
    layers: list | None,
    free_pages: jax.Array,
    stops: jax.Array,
    sampling: SamplingParams,
) -> Callable[[tuple], tuple]:
    """One step of `decode_chunk`, as a function of its loop's carry: (steps taken, whether anything can go on,
    pool, pages taken [shards], slots, queue, chunk)."""

    def step(carry):
        index, _, pool, taken, active_slots, queue, out = carry
        current, queue = _adopt_all(active_slots, queue)
        pool, taken, running = _take_pages(pool, free_pages, taken, current.row, current.length, current.active)
        rows = jnp.where(current.active, current.row, paging.NO_ROW)
        table = _rows_of(pool.page_table, rows)
        position = (current.length - 1)[:, None]
        page, offset = paging.page_and_offset(table, position, running[:, None], pool.page_size)
        # Free slots read one token, of whatever page; nobody looks at the result.
        attend = _paged_attend(pool.page_size, table, page, offset, jnp.where(running, current.length, 1))
        hidden, pool = decoder(current.token[:, None], position, attend, pool, layers=layers)
        keys = jax.vmap(jax.random.fold_in)(current.key, current.length)
        # Each device draws for some of the slots, from their whole vocabularies. The logits travel, not the table.
        logits = constrain(constrain(decoder.logits(hidden[:, 0]), "rows", "vocab"), "draws", None)
        token, log_prob = (constrain(x, "rows") for x in sample(logits, keys, sampling))

        length = current.length + running
        stop_state = stops[current.stop_state, token].astype(jnp.int32)
        stopped = running & (stop_state == MATCHED)
        out = out._replace(
            owner=out.owner.at[:, index].set(jnp.where(running, current.row, paging.NO_ROW)),
            tokens=out.tokens.at[:, index].set(token),
            log_probs=out.log_probs.at[:, index].set(log_prob),
            stopped=out.stopped.at[:, index].set(stopped),
        )
        current = replace(
            current,
            token=jnp.where(running, token, current.token),
            length=length,
            stop_state=jnp.where(running & ~stopped, stop_state, current.stop_state),
            active=current.active & ~stopped & ~(running & (length >= current.limit)),
        )

        def can_go_on():
            return jnp.any(running) & (jnp.any(current.active) | jnp.any(queue.waiting & queue.ready))

        if current_mesh() is None:
            going = can_go_on()
        else:
            # Asked of all devices, which wait for each other then: seldom, so that one may be a little ahead.
            going = lax.cond(index % CHECK_EVERY == CHECK_EVERY - 1, can_go_on, lambda: jnp.bool_(True))
        return index + 1, going, pool, taken, current, queue, out

    return step


def _empty_chunk(slots: int, chunk: int, shards: int) -> Chunk:
    """A chunk in which nothing was drawn."""
    return Chunk(
        owner=jnp.full((slots, chunk), paging.NO_ROW, jnp.int32),
        tokens=jnp.zeros((slots, chunk), jnp.int32),
        log_probs=jnp.zeros((slots, chunk), jnp.float32),
        stopped=jnp.zeros((slots, chunk), bool),
        steps=jnp.int32(0),
        pages_in_use=jnp.zeros(shards, jnp.int32),
        starved=jnp.zeros(shards, bool),
    )


def _use_of_pages(pool: PagePool, slots: Slots, queue: Queue) -> tuple[jax.Array, jax.Array]:
    """Of one shard, after a chunk: its pages in use [1], and whether a sequence waits for one [1]."""
    short = slots.active & paging.lacks_page(pool, slots.row, slots.length)
    idle = queue.waiting & ~queue.ready & ~jnp.all(slots.active)
    # A slot that will need a page of an empty pool in the next step counts: it starves then.
    used = paging.pages_in_use(pool)
    return used[None], (used == pool.num_pages)[None] & (jnp.any(short) | jnp.any(idle))[None]


def decode_chunk(
    graphdef,
    params,
    state: SamplerState,
    sampling: SamplingParams,
    stops: jax.Array,
    steps: jax.Array,
    layers: list | None = None,
    *,
    chunk: int,
    slots: int,
) -> tuple[SamplerState, Chunk]:
    """Takes up to `steps` (int32 scalar, at most `chunk`) decode steps; stops early when nothing can go on, which it
    notices up to `CHECK_EVERY` - 1 steps later on a mesh.

    A sequence ends at a token that `stops`, the `StopTable`'s transitions [A, V], says to (kept, as its last token) or
    at its limit, and its slot takes the next of the queue. `layers`: the decoder's layers one by one
    (`Decoder.unstack`), None to scan over them. `slots`: how many of the slots take part, over all shards; each shard's
    must hold its active sequences.
    """
    shards = num_row_shards()
    num_slots = state.slots.row.shape[0] // shards
    width = slots // shards
    free_pages = per_shard(lambda ref_counts: paging.free_pages(ref_counts, width * chunk), (("rows",),), ("rows",))(
        state.pool.ref_counts
    )
    decoder = nnx.merge(graphdef, params)
    step = _decode_step(decoder, layers, free_pages, stops, sampling)

    def working(carry):
        index, going = carry[:2]
        return (index < steps) & going

    active_slots = per_shard(lambda s: _narrow(s, width), (SLOT_AXES,), SLOT_AXES)(state.slots)
    going = jnp.any(active_slots.active) | jnp.any(state.queue.waiting & state.queue.ready)
    taken = jnp.zeros(shards, jnp.int32)
    carry = (jnp.int32(0), going, state.pool, taken, active_slots, state.queue, _empty_chunk(slots, chunk, shards))
    taken_steps, _, pool, _, active_slots, queue, out = lax.while_loop(working, step, carry)

    used, starved = per_shard(_use_of_pages, (POOL_AXES, SLOT_AXES, QUEUE_AXES), (("rows",), ("rows",)))(
        pool, active_slots, queue
    )
    all_slots = per_shard(lambda s: _widen(s, num_slots), (SLOT_AXES,), SLOT_AXES)(active_slots)
    # Every host reads the chunk and plans the same next one.
    out = replicate(out._replace(steps=taken_steps, pages_in_use=used, starved=starved))
    return constrain_tree(SamplerState(pool=pool, slots=all_slots, queue=queue), STATE_AXES), out


def recompute(
    graphdef,
    params,
    state: SamplerState,
    sources: jax.Array,
    rows: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
) -> SamplerState:
    """Puts the keys and values of tokens that were decoded before into the cache again.

    tokens: [B, T] int32, those at positions starts [B] to ends [B] (exclusive) of the sequences `rows` [B], whose first
    `starts` tokens the rows `sources` [B] have in the cache (a source that is the row itself: goes on there). Equally
    many entries for each shard; a row out of range is passed over.

    Every token attends as a decode step's would, to the cached ones before it.
    """
    num_tokens = tokens.shape[1]
    pool, _ = _fork(state.pool, sources, jnp.where(rows == sources, paging.NO_ROW, rows), starts)
    pool = _extend(pool, rows, ends)
    positions = starts[:, None] + jnp.arange(num_tokens)
    valid = positions < ends[:, None]
    table = _rows_of(pool.page_table, rows)
    page, offset = paging.page_and_offset(table, positions, valid, pool.page_size)
    each = jnp.repeat(table, num_tokens, axis=0)
    lengths = jnp.where(valid, positions + 1, 1)
    attend = _paged_attend(pool.page_size, each, page.reshape(-1, 1), offset.reshape(-1, 1), lengths.reshape(-1))
    decoder = nnx.merge(graphdef, params)
    _, pool = decoder(tokens.reshape(-1, 1), positions.reshape(-1, 1), attend, pool)
    return constrain_tree(replace(state, pool=pool), STATE_AXES)
