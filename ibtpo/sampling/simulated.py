"""`Device` without a model: the responses of a stated process, real page accounting, and a clock.

It does step by step what `decode.py` does: who takes a slot, who gets a page, who starves, where a chunk ends. The
scheduler runs on it unchanged, at the sizes of a pod, in seconds. What a step costs is the business of a `Price`.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.device import CHECK_EVERY, RELEASE_BATCH, Chunk, Prompt, Start, chunk_widths, prefill_batches
from ibtpo.sampling.pages import NO_ROW, pages_for
from ibtpo.sampling.process import Plan, Process


class Price(Protocol):
    """Seconds of the device's work; sizes are of one shard."""

    def prefill(self, prompts: int, width: int) -> float:
        """Of a batch of prompts, padded to `width` tokens."""

    def start(self, forks: int) -> float:
        """Of putting sequences into the queue, of which `forks` copy a page."""

    def step(self, slots: int, live_tokens: float) -> float:
        """Of one decode step of `slots` slots whose sequences have `live_tokens` tokens in the cache together."""

    def recompute(self, tokens: int) -> float:
        """Of one call that computes keys and values of up to `tokens` tokens again."""

    def release(self) -> float:
        """Of giving back pages."""


@dataclasses.dataclass
class Clock:
    """Seconds of the device since the call began, by what they went to."""

    by_kind: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))

    def add(self, kind: str, seconds: float) -> None:
        self.by_kind[kind] += seconds

    @property
    def seconds(self) -> float:
        return sum(self.by_kind.values())


@dataclasses.dataclass
class _Sequence:
    """What a slot or an entry of the queue decodes: `length` tokens, of which the last is not cached, up to `limit`;
    `end` is the length with which its response ends by itself. tokens, log_probs: its own, the first of which is the
    sequence's token number `first`."""

    row: int
    source: int
    length: int
    limit: int
    end: int
    ready: bool
    first: int
    tokens: np.ndarray
    log_probs: np.ndarray

    @property
    def left(self) -> int:
        """Tokens until it stops."""
        return min(self.limit, self.end) - self.length


class _Shard:
    """The pages, slots and queue of one shard."""

    def __init__(self, capacity: Capacity):
        self.page_size = capacity.page_size
        self.free = capacity.num_pages
        self.references: dict[int, int] = {}  # of a page
        self.table: dict[int, list[int]] = {}  # pages of a row
        self.slots: list[_Sequence | None] = [None] * capacity.num_slots
        self.queue: list[_Sequence] = []
        self.prompts: dict[int, int] = {}  # tokens of the prompt in a row
        self._unused: list[int] = []  # ids of pages given back
        self._new = itertools.count()

    # Pages.

    def take(self, row: int) -> bool:
        """Gives the row one page more."""
        if not self.free:
            return False
        self.free -= 1
        page = self._unused.pop() if self._unused else next(self._new)
        self.references[page] = 1
        self.table[row].append(page)
        return True

    def share(self, source: int, row: int, tokens: int) -> bool:
        """Lets an empty row begin with the first cached tokens of another: whole pages shared, a partial one copied."""
        if tokens % self.page_size and not self.free:
            return False
        shared = self.table[source][: tokens // self.page_size]
        for page in shared:
            self.references[page] += 1
        self.table[row] = list(shared)
        return not tokens % self.page_size or self.take(row)

    def drop(self, row: int) -> None:
        """Gives back the pages of a row."""
        for page in self.table.pop(row, ()):
            self.references[page] -= 1
            if not self.references[page]:
                del self.references[page]
                self._unused.append(page)
                self.free += 1

    def fill(self, row: int, tokens: int) -> None:
        """Gives a row the pages that it lacks for so many tokens.

        Raises:
          RuntimeError: there are not enough; whoever asks should have known.
        """
        while len(self.table[row]) < pages_for(tokens, self.page_size):
            if not self.take(row):
                raise RuntimeError(f"no page is free for row {row}")

    def missing(self, sequence: _Sequence, steps: int) -> int:
        """Pages that it needs more, to take so many steps."""
        return max(0, pages_for(sequence.length - 1 + steps, self.page_size) - len(self.table[sequence.row]))

    def missing_for_all(self, steps: int) -> int:
        """Pages that all in slots need more, to take so many steps."""
        return sum(self.missing(s, steps) for s in self.slots if s)

    # Slots and queue.

    def fork(self) -> int:
        """Forks those of the queue that are not ready, as far as there are pages; how many were."""
        forked = 0
        for sequence in self.queue:
            if not sequence.ready and self.share(sequence.source, sequence.row, sequence.length - 1):
                sequence.ready, forked = True, forked + 1
        return forked

    def busy(self) -> bool:
        """Whether anything is in a slot, or could be."""
        return any(self.slots) or any(sequence.ready for sequence in self.queue)

    def adopt(self, width: int) -> None:
        """Free slots take the first sequences of the queue that are ready."""
        free = [i for i in range(width) if self.slots[i] is None]
        if not free or not self.queue:
            return
        kept = []
        for sequence in self.queue:
            if sequence.ready and free:
                self.slots[free.pop(0)] = sequence
            else:
                kept.append(sequence)
        self.queue = kept

    def narrow(self) -> None:
        """The active slots first, neighbours by row."""
        active = sorted((s for s in self.slots if s), key=lambda s: s.row)
        self.slots = [*active, *[None] * (len(self.slots) - len(active))]

    def starved(self, width: int) -> bool:
        """Whether a sequence waits for a page of an empty pool, after a chunk of `width` slots."""
        short = any(s and self.missing(s, 1) > 0 for s in self.slots)
        idle = any(not s.ready for s in self.queue) and not all(self.slots[:width])
        return not self.free and (short or idle)


class SimulatedDevice:
    """Draws what `process` says. price: of its work; None: the clock stands still. mesh: whether several devices look
    after one another; as for the real one, several shards always have one."""

    def __init__(self, capacity: Capacity, process: Process, price: Price | None = None, *, mesh: bool = False):
        longest = pages_for(capacity.max_new_tokens, process.unit_tokens)
        self.capacity, self.process, self.price = capacity, dataclasses.replace(process, longest=longest), price
        self.clock = Clock()
        self._check_every = CHECK_EVERY if mesh or capacity.num_shards > 1 else 1
        self._shards = [_Shard(capacity) for _ in range(capacity.num_shards)]
        self._plans: dict[tuple[int, int], Plan] = {}  # by question and response

    def prefill(self, prompts: Sequence[Sequence[Prompt]]) -> None:
        for shard, of_shard in zip(self._shards, prompts, strict=True):
            for prompt in of_shard:
                if prompt.row in shard.table:
                    raise RuntimeError(f"row {prompt.row} is given a prompt and is not empty")
                shard.prompts[prompt.row], shard.table[prompt.row] = len(prompt.tokens), []
                shard.fill(prompt.row, len(prompt.tokens))
        if self.price:
            for per_shard, width, _ in prefill_batches(prompts):
                self.clock.add("prefill", self.price.prefill(per_shard, width))

    def start(self, sequences: Sequence[Sequence[Start]]) -> None:
        forks = 0
        for shard, of_shard in zip(self._shards, sequences, strict=True):
            shard.queue += [self._sequence(shard, s) for s in of_shard]
            forks = max(forks, shard.fork())
        if self.price:
            self.clock.add("start", self.price.start(forks))

    def _sequence(self, shard: _Shard, s: Start) -> _Sequence:
        process, block = self.process, self.capacity.block_rows
        prompt = shard.prompts[s.row - s.row % block]
        plan = self._plans.get((s.question, s.response))
        if plan is None:
            # A block has the prompt's row and then one for each response.
            parent = self._plans.get((s.question, s.source % block - 1))
            shared = (s.length - prompt) // process.unit_tokens
            prefix = parent.prefix(shared) if parent else [process.begin(s.question)]
            plan = self._plans[s.question, s.response] = process.respond(s.question, s.response, prefix)
        tokens, log_probs = process.draw(plan)
        return _Sequence(
            row=s.row,
            source=s.source,
            length=s.length,
            limit=s.limit,
            end=prompt + process.length(plan),
            ready=s.row == s.source,
            first=prompt + plan.first * process.unit_tokens,
            tokens=tokens,
            log_probs=log_probs,
        )

    def decode(self, steps: int, sequences: int) -> Callable[[], Chunk]:
        slots, shards = self.capacity.num_slots, self._shards
        width = next(w for w in chunk_widths(slots) if w >= min(sequences, slots))
        shape = len(shards) * width, steps
        chunk = Chunk(
            owner=np.full(shape, NO_ROW, np.int32),
            tokens=np.zeros(shape, np.int32),
            log_probs=np.zeros(shape, np.float32),
            stopped=np.zeros(shape, bool),
            steps=np.array(0, np.int32),
            pages_in_use=np.zeros(len(shards), np.int32),
            starved=np.zeros(len(shards), bool),
        )
        for shard in shards:
            shard.narrow()
        going, index = any(shard.busy() for shard in shards), 0
        while going and index < steps:
            taken, running = self._steps(chunk, index, steps - index, width)
            index += taken
            if (index - 1) % self._check_every == self._check_every - 1:
                going = running and any(shard.busy() for shard in shards)
        used = np.array([self.capacity.num_pages - shard.free for shard in shards], np.int32)
        starved = np.array([shard.starved(width) for shard in shards])
        chunk = chunk._replace(steps=np.array(index, np.int32), pages_in_use=used, starved=starved)
        return lambda: chunk

    def _steps(self, chunk: Chunk, index: int, most: int, width: int) -> tuple[int, bool]:
        """Takes one decode step, or as many at once as change nothing but lengths: (how many, whether any sequence went
        on)."""
        slots: list[tuple[int, _Shard, _Sequence]] = []
        for number, shard in enumerate(self._shards):
            shard.adopt(width)
            slots += [(number * width + i, shard, s) for i, s in enumerate(shard.slots[:width]) if s]
        steps = min([most, *(s.left for _, _, s in slots)]) if slots else 1
        if any(shard.missing_for_all(steps) > shard.free for shard in self._shards):
            steps = 1
        live, running = [0] * len(self._shards), False
        for place, shard, s in slots:
            if not all(shard.take(s.row) for _ in range(shard.missing(s, steps))):
                continue
            first, span = s.length - s.first, slice(index, index + steps)
            chunk.owner[place, span] = s.row
            chunk.tokens[place, span] = s.tokens[first : first + steps]
            chunk.log_probs[place, span] = s.log_probs[first : first + steps]
            live[place // width] += steps * s.length + steps * (steps - 1) // 2
            s.length, running = s.length + steps, True
            chunk.stopped[place, index + steps - 1] = s.length == s.end
            if not s.left:
                shard.slots[place % width] = None
        if self.price:
            self.clock.add("decode", steps * self.price.step(width, max(live) / steps))
        return steps, running

    def recompute(self, shard: int, source: int, row: int, tokens: Sequence[int], start: int) -> None:
        mine, slots = self._shards[shard], self.capacity.num_slots
        if not mine.share(source, row, start):
            raise RuntimeError(f"no page is free to compute row {row} again")
        mine.fill(row, len(tokens) - 1)
        if self.price:
            calls = max(1, pages_for(len(tokens) - 1 - start, slots))
            self.clock.add("recompute", calls * self.price.recompute(slots))

    def release(self, blocks: Sequence[Sequence[range]]) -> None:
        for shard, leaving in zip(self._shards, blocks, strict=True):
            rows = {row for block in leaving for row in block}
            shard.slots = [None if s and s.row in rows else s for s in shard.slots]
            shard.queue = [s for s in shard.queue if s.row not in rows]
            for row in rows:
                shard.drop(row)
                shard.prompts.pop(row, None)
        if self.price:
            calls = pages_for(max(map(len, blocks)), RELEASE_BATCH)
            self.clock.add("release", calls * self.price.release())

    def pages_in_use(self) -> int:
        return sum(self.capacity.num_pages - shard.free for shard in self._shards)
