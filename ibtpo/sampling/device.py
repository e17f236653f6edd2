"""The device, as the scheduler sees it: rows, pages and chunks, never arrays of the model.

`programs.DecoderDevice` is the real one. Whatever answers the same calls can stand in for it.

A *row* of the page table names a sequence: a prompt, or one response of a question in flight. Rows and pages count
within a shard, and arguments for all shards are lists with an entry for each.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ibtpo.sampling.pages import NO_ROW

Array = jax.Array | np.ndarray

CHECK_EVERY = 4  # decode steps on a mesh between two looks at whether any device has something to do
RELEASE_BATCH = 8  # questions of each shard whose pages one call gives back
PREFILL_BATCH = 8  # prompts per prefill call, or one per shard: two programs for each length
SMALLEST_PREFILL = 32  # prompt lengths are rounded up to this times a power of two


class Prompt(NamedTuple):
    """A prompt to be put into an empty row."""

    row: int
    tokens: Sequence[int]


class Start(NamedTuple):
    """A sequence to be decoded: `length` tokens, of which the last one, `token`, is not in the cache yet.

    source: the row that has the others in the cache, to be forked into `row`; `row` itself where that has them.
    limit: the length at which it stops. stop_state: its state in the `StopTable`.
    question, response: its random draws depend on these and the position.
    """

    source: int
    row: int
    token: int
    length: int
    limit: int
    stop_state: int
    question: int
    response: int


class Chunk(NamedTuple):
    """The result of one decode chunk: NumPy arrays, for S slots (equally many of each shard) and C steps. A sequence
    stays in its slot as long as the chunk takes.

    owner: [S, C] int32, the row whose next token a slot drew in a step, NO_ROW where it drew none.
    tokens: [S, C] int32 and log_probs: [S, C] float32, real where there is an owner.
    stopped: [S, C] bool, whether the token ended its response, by `StopTable`.
    steps: int32 scalar, steps taken.
    pages_in_use: int32 [shards].
    starved: bool [shards], whether a sequence could not go on, or start, for want of a page.
    """

    owner: Array
    tokens: Array
    log_probs: Array
    stopped: Array
    steps: Array
    pages_in_use: Array
    starved: Array

    def pieces(self) -> Iterator[tuple[int, int, int, int]]:
        """(slot, row, first step, step behind the last) of the tokens that a slot drew for one row without a pause."""
        steps = int(self.steps)
        for slot in range(len(self.owner)):
            owners = self.owner[slot, :steps]
            cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), steps]
            for first, last in itertools.pairwise(cuts):
                if first < last and owners[first] != NO_ROW:
                    yield slot, int(owners[first]), first, last


class Device(Protocol):
    """The state of one call of the sampler, and the operations on it.

    Calls take effect in the order in which they are made, and none waits for its work to be done, but for
    `pages_in_use` and the function that `decode` returns.
    """

    def prefill(self, prompts: Sequence[Sequence[Prompt]]) -> None:
        """Puts the prompts of each shard into the cache."""

    def start(self, sequences: Sequence[Sequence[Start]]) -> None:
        """Lets sequences of each shard stand by for a slot, first come first served, and forks those that stand by
        into their rows as far as there are pages."""

    def decode(self, steps: int, sequences: int) -> Callable[[], Chunk]:
        """Takes up to `steps` decode steps of all sequences; fewer when nothing can go on. A slot that falls free
        takes the next that stands by. sequences: no shard has more, in slots or standing by.

        Returns: a function that waits for the chunk, to be called once, from any thread.
        """

    def recompute(self, shard: int, source: int, row: int, tokens: Sequence[int], start: int) -> None:
        """Puts all but the last of the `tokens` of a sequence, decoded before, into its empty `row` again: the first
        `start` of them are those that row `source` has in the cache, the others are computed."""

    def release(self, blocks: Sequence[Sequence[range]]) -> None:
        """Takes the rows of questions of each shard out of the slots and the queue and gives back their pages."""

    def pages_in_use(self) -> int:
        """Pages, of all shards, that some row refers to."""


def prefill_batches(prompts: Sequence[Sequence[Prompt]]) -> Iterator[tuple[int, int, dict[int, Prompt]]]:
    """The calls that put the prompts of each shard into the cache: (prompts of a shard, width in tokens, the prompts by
    their place in the batch)."""
    waiting = [list(of_shard) for of_shard in prompts]
    while any(waiting):
        per_shard = _most_per_shard(len(waiting)) if max(map(len, waiting)) > 1 else 1
        batch: dict[int, Prompt] = {}
        for shard, of_shard in enumerate(waiting):
            batch |= {shard * per_shard + i: prompt for i, prompt in enumerate(of_shard[:per_shard])}
            del of_shard[:per_shard]
        yield per_shard, prefill_width(max(len(prompt.tokens) for prompt in batch.values())), batch


def prefill_width(num_tokens: int) -> int:
    """Tokens of the program that prefills prompts of `num_tokens`."""
    width = SMALLEST_PREFILL
    while width < num_tokens:
        width *= 2
    return width


def prefill_sizes(lengths: Iterable[int], num_shards: int, at_once: int) -> list[tuple[int, int]]:
    """Every (width in tokens, prompts of a shard) of `prefill_batches`, ascending, for prompts of these lengths, of
    which at most `at_once` enter a shard together."""
    batches = {1, _most_per_shard(num_shards) if at_once > 1 else 1}
    return [(width, batch) for width in sorted(set(map(prefill_width, lengths))) for batch in sorted(batches)]


def _most_per_shard(num_shards: int) -> int:
    return max(1, PREFILL_BATCH // num_shards)


def chunk_widths(num_slots: int) -> list[int]:
    """The numbers of a shard's slots that a chunk can be run with; it is run by the fewest that hold its sequences."""
    return sorted({max(1, num_slots // n) for n in (1, 2, 4, 8)})
