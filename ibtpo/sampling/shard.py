"""A shard's pages and rows, and the sequences that wait for them, as the host knows them."""

from collections import deque
from dataclasses import dataclass, field

from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.growth import Draft, Growing
from ibtpo.sampling.pages import pages_for

Decoding = tuple[Growing, Draft]  # a question, and which of its responses


@dataclass
class Shard:
    """One shard of the logical axis "rows".

    Pages in use are known as far as the host has read (`pages_read`); of pages taken since, at most how many
    (`pages_taken`), with the number of the last chunk dispatched before: once a later one has been read, they are
    among those.
    """

    index: int
    capacity: Capacity
    free_blocks: list[int] = field(init=False)  # of rows, one for a question
    in_flight: list[Growing] = field(default_factory=list)  # oldest first
    queue: list[Decoding] = field(default_factory=list)  # waiting on the host
    on_device: dict[int, Decoding] = field(default_factory=dict)  # by row; in a slot or standing by
    leaving: list[range] = field(default_factory=list)  # rows of questions that have left
    pages_read: int = 0
    pages_taken: deque[tuple[int, int]] = field(default_factory=deque)  # (chunks dispatched, pages)
    most_in_flight: int = field(init=False)  # after a preemption fewer, one more for each question that finishes
    starved: bool = False  # whether a sequence could not go on for want of a page

    def __post_init__(self) -> None:
        self.free_blocks = list(range(self.capacity.num_blocks))[::-1]
        self.most_in_flight = self.capacity.num_blocks

    def planned(self) -> int:
        """Sequences to be decoded, on the device or waiting for it."""
        return len(self.on_device) + len(self.queue)

    def pages_bound(self) -> int:
        """The most pages that can be in use."""
        return self.pages_read + sum(pages for _, pages in self.pages_taken)

    def take_pages(self, dispatched: int, pages: int) -> None:
        self.pages_taken.append((dispatched, pages))

    def take_pages_to_decode(self, dispatched: int, steps: int) -> None:
        """Counts the pages that the sequences on the device can take in a chunk."""
        self.take_pages(dispatched, len(self.on_device) * (1 + pages_for(steps, self.capacity.page_size)))

    def read(self, number: int, pages: int, starved: bool) -> None:
        """Chunk `number` has been read, with its count of pages in use."""
        self.pages_read, self.starved = pages, starved
        while self.pages_taken and self.pages_taken[0][0] < number:
            self.pages_taken.popleft()

    def has_room(self, need: int, expected: float, *, all_read: bool) -> bool:
        """Whether a question can enter that takes `need` pages at once, when each is expected to take `expected` in
        the end. all_read: whether no chunk is under way."""
        if not self.in_flight:
            return all_read or self.pages_bound() + need <= self.capacity.num_pages
        if not self.free_blocks or len(self.in_flight) >= self.most_in_flight:
            return False
        within = (len(self.in_flight) + 1) * expected <= self.capacity.num_pages
        return within and self.pages_bound() + need <= self.capacity.num_pages

    def enter(self, q: Growing, need: int, dispatched: int) -> None:
        """Gives a question a block of rows, and the pages it needs at once."""
        q.shard, q.entered = self.index, dispatched
        q.prompt_row = self.free_blocks.pop() * self.capacity.block_rows
        self.in_flight.append(q)
        self.take_pages(dispatched, need)

    def leave(self, q: Growing) -> None:
        """Takes a question's rows back; the device learns of it before it gets more to do."""
        size = self.capacity.block_rows
        self.leaving.append(range(q.prompt_row, q.prompt_row + size))
        self.free_blocks.append(q.prompt_row // size)
        self.in_flight.remove(q)
        q.shard = -1

    def evict(self, q: Growing) -> None:
        """Lets a question leave unfinished."""
        self.leave(q)
        self.queue = [pair for pair in self.queue if pair[0] is not q]
        self.on_device = {row: pair for row, pair in self.on_device.items() if pair[0] is not q}
        self.most_in_flight = len(self.in_flight)

    def to_start(self, *, more_to_come: bool) -> list[Decoding]:
        """The waiting sequences that the device has room for, which are then on it."""
        room = self.capacity.queue_size - len(self.on_device)
        if len(self.queue) > room:
            # The oldest question first, which frees its pages. When no new ones come, the one with the most rounds
            # to go, so that all end together.
            left = 0 if more_to_come else 1
            self.queue.sort(key=lambda pair: (left * len(pair[0].drafts), pair[0].order, pair[1].index))
        chosen = self.queue[:room]
        del self.queue[:room]
        self.on_device |= {q.row(draft): (q, draft) for q, draft in chosen}
        return chosen
