"""Who is in flight: questions enter by the pages they are expected to need, and leave finished or for want of pages."""

from collections import deque
from collections.abc import Sequence

from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import AHEAD, Chunks
from ibtpo.sampling.device import Device, Prompt
from ibtpo.sampling.growth import Growing
from ibtpo.sampling.interface import Question, SamplerStats
from ibtpo.sampling.shard import Shard


class Admission:
    """The questions that wait for their turn, and those in flight.

    A question enters the shard with the fewest sequences, as long as the device has fewer than can stand by and the
    shard has room: for the question's need at once, and for the expected need of all in flight in the end. If
    pages run out nevertheless, the youngest question of the shard leaves and waits to come back.
    """

    def __init__(
        self,
        device: Device,
        capacity: Capacity,
        chunks: Chunks,
        questions: Sequence[Question],
        stats: SamplerStats,
        *,
        initial: int,
    ):
        self.device, self.capacity, self.chunks, self.stats, self.initial = device, capacity, chunks, stats, initial
        self.shards = [Shard(index, capacity) for index in range(capacity.num_shards)]
        self.pending = deque(Growing(order, question) for order, question in enumerate(questions))
        self._finished, self._finished_pages = 0, 0
        self._left: deque[tuple[int, int]] = deque()  # (chunks dispatched when it left, tokens it had cached)
        self._generated, self._fruitless = 0, 0  # tokens when one starved last, and how often since with no more

    def admit(self) -> list[Growing]:
        """Lets as many questions enter as keep the slots busy and rows and pages allow, and gives the device their
        prompts, and the responses that they have from before."""
        capacity, admitted = self.capacity, []
        planned = [shard.planned() for shard in self.shards]
        while self.pending:
            q = self.pending[0]
            need, expected = q.pages_to_enter(capacity.page_size), self._expected_pages()
            room = [
                shard
                for shard in self.shards
                if planned[shard.index] < capacity.queue_size
                and shard.has_room(need, expected, all_read=not self.chunks)
            ]
            if not room:
                break
            shard = min(room, key=lambda shard: (planned[shard.index], len(shard.in_flight), shard.index))
            self.pending.popleft()
            shard.enter(q, need, self.chunks.dispatched)
            planned[shard.index] += sum(d.wanted for d in q.drafts) or self.initial
            admitted.append(q)
        self._prefill(admitted)
        for q in admitted:
            self._restore(q)
        return admitted

    def _expected_pages(self) -> float:
        """Pages that a question takes in the end: the mean of those that have finished, half the worst before."""
        return self._finished_pages / self._finished if self._finished else self.capacity.least / 2

    def _prefill(self, questions: list[Growing]) -> None:
        if not questions:
            return
        self.chunks.busy()
        self.device.prefill(
            [
                [Prompt(q.prompt_row, q.question.tokens) for q in questions if q.shard == shard.index]
                for shard in self.shards
            ]
        )
        self.stats.prompt_tokens += sum(len(q.question.tokens) for q in questions)

    def _restore(self, q: Growing) -> None:
        """Computes the keys and values of a preempted question's responses again, each after the one it forked from."""
        for draft in q.drafts:
            if draft.has_row:
                tokens, start = q.sequence(draft), q.cached_from_source(draft)
                self.chunks.busy()
                self.device.recompute(q.shard, q.source_row(draft), q.row(draft), tokens, start)
                self.stats.recomputed_tokens += len(tokens) - 1 - start

    def starved(self) -> bool:
        """Whether a sequence could not go on for want of a page, by the last chunk that was read."""
        return any(shard.starved for shard in self.shards)

    def preempt(self) -> None:
        """Where sequences starve, the youngest question gives its pages back, unless others just have. All chunks must
        have been read: tokens they decoded of it belong to it."""
        for shard in self.shards:
            if shard.starved and len(shard.in_flight) > 1:
                q = shard.in_flight[-1]
                self._note_left(q)
                shard.evict(q)
                self.pending.appendleft(q)
                self.stats.preemptions += 1
                self._fruitless = 0
            shard.starved = False
        # A chunk's report may be older than the last release; more than 2 * AHEAD reports in a row are not.
        self._fruitless = self._fruitless + 1 if self.stats.generated_tokens == self._generated else 0
        self._generated = self.stats.generated_tokens
        if self._fruitless > 2 * AHEAD:
            raise RuntimeError(
                f"no page is free for the only question in flight, although {self.capacity.total_pages} should hold "
                "any: a fault of the sampler; a larger sampling.pages avoids it"
            )

    def finish(self, q: Growing) -> None:
        """Lets a finished question leave."""
        shard = self.shards[q.shard]
        self._finished += 1
        self._finished_pages += q.pages_to_enter(self.capacity.page_size)
        shard.most_in_flight += 1
        self._note_left(q)
        shard.leave(q)

    def release(self) -> None:
        """Lets the device have back the rows of the questions that have left."""
        if any(shard.leaving for shard in self.shards):
            self.device.release([shard.leaving for shard in self.shards])
            for shard in self.shards:
                shard.leaving = []

    def _note_left(self, q: Growing) -> None:
        self._left.append((self.chunks.dispatched, q.cached_tokens()))

    def note_peak(self, number: int) -> None:
        """Chunk `number` has been read: counts whether more pages are in use than ever, and the tokens they hold."""
        while self._left and self._left[0][0] < number:
            self._left.popleft()
        if (pages := sum(shard.pages_read for shard in self.shards)) > self.stats.peak_pages:
            alive = sum(q.cached_tokens() for shard in self.shards for q in shard.in_flight if q.entered < number)
            self.stats.peak_pages = pages
            self.stats.tokens_at_peak = alive + sum(tokens for _, tokens in self._left)
