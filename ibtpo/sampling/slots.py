"""The sampler's state on the device: slots, the queue of sequences standing by, and the page pool.

Letters: S slots, W entries of the queue.
"""

from typing import Any, cast

import jax
from flax import struct
from jax import numpy as jnp

from ibtpo.sampling.pages import POOL_AXES, PagePool


@struct.dataclass
class Slots:
    """The sequences being decoded, one per slot.

    row: [S] int32, the sequence's row of the page table (in the slot's own shard).
    token: [S] int32, the pending token.
    length: [S] int32, tokens of the sequence, prompt and pending token included.
    limit: [S] int32, the length at which it must stop.
    key: [S] typed PRNG keys; the token at position i is drawn with fold_in(key, i).
    stop_state: [S] int32, the response's state in the `StopTable`.
    active: [S] bool.
    """

    row: jax.Array
    token: jax.Array
    length: jax.Array
    limit: jax.Array
    key: jax.Array
    stop_state: jax.Array
    active: jax.Array


@struct.dataclass
class Queue:
    """Sequences standing by for a slot, first come first served by index.

    source: [W] int32, the row whose first `length - 1` cached tokens the sequence begins with, or its own row.
    row, token, length, limit, key, stop_state: [W], as in `Slots`.
    waiting: [W] bool, whether the entry holds a sequence.
    ready: [W] bool, whether its row has its cached tokens; not yet so where the pool had no page for the fork.
    """

    source: jax.Array
    row: jax.Array
    token: jax.Array
    length: jax.Array
    limit: jax.Array
    key: jax.Array
    stop_state: jax.Array
    waiting: jax.Array
    ready: jax.Array


@struct.dataclass
class SamplerState:
    """Everything the sampler keeps on the device."""

    pool: PagePool
    slots: Slots
    queue: Queue


@struct.dataclass
class Starts:
    """Sequences to put into the queue, W entries of which the valid ones come first (within each shard).

    valid: [W] bool.
    source, row, token, length, limit, stop_state: as in `Queue`.
    question, response: [W] int32; the sequence's random draws depend on these and the position.
    """

    valid: jax.Array
    source: jax.Array
    row: jax.Array
    token: jax.Array
    length: jax.Array
    limit: jax.Array
    stop_state: jax.Array
    question: jax.Array
    response: jax.Array


# The same structures with the logical names of the arrays' axes in their places.
SLOT_AXES: Slots = cast(Any, Slots)(*[("rows",)] * 7)
QUEUE_AXES: Queue = cast(Any, Queue)(*[("rows",)] * 9)
STATE_AXES = SamplerState(pool=POOL_AXES, slots=SLOT_AXES, queue=QUEUE_AXES)


def _no_sequences(number: int) -> dict[str, jax.Array]:
    """The fields that a slot and an entry of the queue share, without a sequence."""
    zeros = jnp.zeros(number, jnp.int32)
    key = jax.vmap(jax.random.key)(zeros)
    return dict(row=zeros, token=zeros, length=zeros + 1, limit=zeros, key=key, stop_state=zeros)


def make_slots(num_slots: int) -> Slots:
    """`num_slots` free slots."""
    return Slots(**_no_sequences(num_slots), active=jnp.zeros(num_slots, bool))


def make_queue(num_entries: int) -> Queue:
    """`num_entries` empty entries."""
    no, source = jnp.zeros(num_entries, bool), jnp.zeros(num_entries, jnp.int32)
    return Queue(source=source, **_no_sequences(num_entries), waiting=no, ready=no)
