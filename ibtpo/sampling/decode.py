"""The device side of the sampler: prefill, start, decode a chunk, release.

One invariant explains all of it: a sequence of n tokens has the keys and values of its first n - 1
tokens in the cache; the last one is *pending*. A decode step feeds the pending token, which writes its
keys and values and gives the logits of the next. So a fork at any token needs only a prefix of the
cache and the pending token's id, and no stored logits.

Letters: S slots, N rows of the page table (sequences), B prompts of one prefill, C tokens of a chunk.
"""

from typing import NamedTuple

import jax
from flax import nnx, struct
from jax import lax
from jax import numpy as jnp

from ibtpo.kernels.paged_attention import paged_attention
from ibtpo.models.attention import tree_attend
from ibtpo.models.decoder import Attend
from ibtpo.parallel import constrain, constrain_tree, per_shard, replicate
from ibtpo.sampling import pages as paging
from ibtpo.sampling.logits import SamplingParams, sample
from ibtpo.sampling.pages import POOL_AXES, PagePool


@struct.dataclass
class Slots:
    """What is being decoded: one sequence per slot.

    row: [S] int32, the sequence's row of the page table (in the slot's own shard).
    token: [S] int32, the pending token.
    length: [S] int32, tokens of the sequence, prompt and pending token included.
    limit: [S] int32, the length at which it must stop.
    key: [S] typed PRNG keys; the token at position i is drawn with fold_in(key, i).
    active: [S] bool.
    """

    row: jax.Array
    token: jax.Array
    length: jax.Array
    limit: jax.Array
    key: jax.Array
    active: jax.Array


@struct.dataclass
class SamplerState:
    """Everything the sampler keeps on the device."""

    pool: PagePool
    slots: Slots


@struct.dataclass
class Starts:
    """Sequences to put into slots, one entry per slot.

    valid: [S] bool, whether the slot, which must be free, gets a sequence.
    source: [S] int32, row whose first `length - 1` cached tokens are shared, or the row itself when
      the sequence goes on from where it paused.
    row, token, length, limit: as in `Slots`.
    question, response: [S] int32, what the sequence's random draws depend on besides position.
    """

    valid: jax.Array
    source: jax.Array
    row: jax.Array
    token: jax.Array
    length: jax.Array
    limit: jax.Array
    question: jax.Array
    response: jax.Array


class Chunk(NamedTuple):
    """What one decode chunk gives back to the host.

    tokens: [S, C] int32 and log_probs: [S, C] float32, of which the first `count` [S] are real.
    active: [S] bool, whether the slot's sequence goes on.
    pages_in_use: int32 scalar, before the finished sequences gave anything back.
    """

    tokens: jax.Array
    log_probs: jax.Array
    count: jax.Array
    active: jax.Array
    pages_in_use: jax.Array


SLOT_AXES = Slots(*[("rows",)] * 6)
STATE_AXES = SamplerState(pool=POOL_AXES, slots=SLOT_AXES)

_extend = per_shard(paging.extend, (POOL_AXES, ("rows",), ("rows",)), POOL_AXES)
_trim = per_shard(paging.trim, (POOL_AXES, ("rows",), ("rows",)), POOL_AXES)
_fork = per_shard(paging.fork, (POOL_AXES, ("rows",), ("rows",), ("rows",)), POOL_AXES)
_rows_of = per_shard(
    lambda table, rows: table.at[rows].get(mode="fill", fill_value=paging.NO_PAGE),
    (("rows", None), ("rows",)),
    ("rows", None),
)


def release(pool: PagePool, rows: jax.Array) -> PagePool:
    """Gives back every page of `rows` [F], equally many entries for each shard."""
    released = per_shard(paging.release, (POOL_AXES, ("rows",)), POOL_AXES)(pool, rows)
    return constrain_tree(released, POOL_AXES)


def make_slots(num_slots: int) -> Slots:
    """So many free slots."""
    zeros = jnp.zeros(num_slots, jnp.int32)
    return Slots(
        row=zeros, token=zeros, length=zeros + 1, limit=zeros, key=jax.vmap(jax.random.key)(zeros), active=zeros > 0
    )


def _write(pool: PagePool, layer, page, offset, keys, values) -> PagePool:
    """Stores keys and values [B, T, K, head_dim] of one layer at (page, offset) [B, T]."""
    axes = (POOL_AXES.keys, (), ("rows", None), ("rows", None), ("rows", None, "kv_heads", None))
    write = per_shard(paging.write, axes, POOL_AXES.keys)
    return pool.replace(
        keys=write(pool.keys, layer, page, offset, keys), values=write(pool.values, layer, page, offset, values)
    )


def _paged_attend(table: jax.Array, page: jax.Array, offset: jax.Array, lengths: jax.Array) -> Attend:
    """An `attend` for one new token per slot: stores its keys and values at (page, offset) [S, 1], then reads the
    first `lengths` [S] tokens of the slot's pages `table` [S, M]. The cache is the `PagePool`."""
    query_axes = ("rows", "kv_heads", None, None)

    def grouped(query, keys, values, layer, table, lengths):
        S, K, G, Dh = query.shape
        out = paged_attention(query.reshape(S, K * G, Dh), keys, values, layer, table, lengths)
        return out.reshape(S, K, G, Dh)

    attention = per_shard(
        grouped, (query_axes, POOL_AXES.keys, POOL_AXES.keys, (), ("rows", None), ("rows",)), query_axes
    )

    def attend(query, key, value, layer, pool):
        pool = _write(pool, layer, page, offset, key, value)
        # Query heads are split by the kv head they read, so that a device has both.
        S, _, H, Dh = query.shape
        K = key.shape[2]
        out = attention(query.reshape(S, K, H // K, Dh), pool.keys, pool.values, layer, table, lengths)
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
    # Causal attention is tree attention on a chain: every token's subtree ends where the prompt does.
    own_attend = tree_attend(jnp.where(valid, lengths[:, None], positions + 1))

    def attend(query, key, value, layer, pool):
        return own_attend(query, key, value, layer, _write(pool, layer, page, offset, key, value))

    decoder = nnx.merge(graphdef, params)
    _, pool = decoder(tokens, positions, attend, pool)
    return constrain_tree(pool, POOL_AXES)


def start(state: SamplerState, starts: Starts, key: jax.Array) -> SamplerState:
    """Forks (or resumes) sequences into free slots. key: the run's PRNG key."""
    new = starts.valid & (starts.row != starts.source)
    pool = _fork(state.pool, starts.source, jnp.where(new, starts.row, paging.NO_ROW), starts.length - 1)

    def sequence_key(question, response):
        return jax.random.fold_in(jax.random.fold_in(key, question), response)

    def put(array, value):
        return jnp.where(starts.valid, value, array)

    slots = state.slots
    slots = slots.replace(
        row=put(slots.row, starts.row),
        token=put(slots.token, starts.token),
        length=put(slots.length, starts.length),
        limit=put(slots.limit, starts.limit),
        key=put(slots.key, jax.vmap(sequence_key)(starts.question, starts.response)),
        active=put(slots.active, True),
    )
    return constrain_tree(SamplerState(pool=pool, slots=slots), STATE_AXES)


def decode_chunk(
    graphdef,
    params,
    state: SamplerState,
    sampling: SamplingParams,
    stop_ids: jax.Array,
    *,
    chunk: int,
    pages_per_slot: int,
) -> tuple[SamplerState, Chunk]:
    """Decodes up to `chunk` tokens in every active slot; stops early when none is active.

    A sequence ends at a token of `stop_ids` [any] (kept, as its last token) or at its limit; its slot
    then waits for the host. Pages for the whole chunk are allocated before the loop and what a finished
    sequence did not use is given back after it, so the loop itself never allocates. Attention reads
    `pages_per_slot` pages, which must hold every active sequence to the end of the chunk.
    """
    slots = state.slots
    num_slots = slots.row.shape[0]
    rows = jnp.where(slots.active, slots.row, paging.NO_ROW)
    # The last token of a sequence stays pending, so its keys and values need no room.
    pool = _extend(state.pool, rows, jnp.minimum(slots.length + chunk, slots.limit) - 1)
    table = _rows_of(pool.page_table[:, :pages_per_slot], rows)
    decoder = nnx.merge(graphdef, params)

    def step(carry):
        index, pool, slots, out = carry
        position = (slots.length - 1)[:, None]
        page, offset = paging.page_and_offset(table, position, slots.active[:, None], pool.page_size)
        attend = _paged_attend(table, page, offset, slots.length)
        hidden, pool = decoder(slots.token[:, None], position, attend, pool)
        keys = jax.vmap(jax.random.fold_in)(slots.key, slots.length)
        # Each device draws for some of the slots, from their whole vocabularies. The logits travel, not the table.
        logits = constrain(constrain(decoder.logits(hidden[:, 0]), "rows", "vocab"), "draws", None)
        token, log_prob = (constrain(x, "rows") for x in sample(logits, keys, sampling))

        length = slots.length + slots.active
        out = out._replace(
            tokens=out.tokens.at[:, index].set(token),
            log_probs=out.log_probs.at[:, index].set(log_prob),
            count=out.count + slots.active,
        )
        stopped = jnp.any(token[:, None] == stop_ids, axis=1) | (length >= slots.limit)
        slots = slots.replace(
            token=jnp.where(slots.active, token, slots.token),
            length=length,
            active=slots.active & ~stopped,
        )
        return index + 1, pool, slots, out

    def working(carry):
        index, _, slots, _ = carry
        return (index < chunk) & jnp.any(slots.active)

    out = Chunk(
        tokens=jnp.zeros((num_slots, chunk), jnp.int32),
        log_probs=jnp.zeros((num_slots, chunk), jnp.float32),
        count=jnp.zeros(num_slots, jnp.int32),
        active=slots.active,
        pages_in_use=paging.pages_in_use(pool),
    )
    _, pool, slots, out = lax.while_loop(working, step, (jnp.int32(0), pool, slots, out))

    finished = jnp.where(slots.active, paging.NO_ROW, rows)
    pool = _trim(pool, finished, slots.length - 1)
    # Every host reads the chunk and plans the same next one.
    out = replicate(out._replace(active=slots.active))
    return constrain_tree(SamplerState(pool=pool, slots=slots), STATE_AXES), out
