"""Keeps many questions in flight in one decode batch and grows each one's tree.

The host side of the sampler. A question owns a block of page-table rows: one for its prompt, one for
each response. Its rounds are its own: as soon as the last response of a round is graded the strategy
chooses the next forks, which stand by on the device for a slot. Nothing waits for another question, and
since every random draw depends on (key, question id, response index, position) alone, nothing about a
question depends on the others either.

The device is always one chunk ahead: while it decodes, the host reads the chunk before, has its responses
graded, chooses forks and prefills new prompts. Questions are admitted by their expected need of pages. When
the pool runs out the youngest question gives its pages back and keeps its tokens; later their keys and
values are computed again, and its responses come out the same (but for the rounding of bfloat16).

Under a mesh a question lives on one shard of the logical axis "rows": its pages, rows and slots are there.
With several processes each of them runs this same plan: the device's answers reach all of them, and a
response is graded by one, which tells the others.
"""

import math
from collections.abc import Callable, Sequence

from ibtpo.errors import UserError
from ibtpo.profiling import phase
from ibtpo.sampling.admission import Admission
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.chunks import AHEAD, Chunks
from ibtpo.sampling.device import Device, Start
from ibtpo.sampling.grades import Grades
from ibtpo.sampling.growth import Draft, Growing, Growth
from ibtpo.sampling.interface import Question, SampledTree, SamplerStats

OnFinished = Callable[[SampledTree], None]
BetweenChunks = Callable[[], None]


class Run:
    """The mutable state of one call of the sampler: the place of each sequence, on whatever device."""

    def __init__(
        self,
        device: Device,
        capacity: Capacity,
        growth: Growth,
        grades: Grades,
        chunks: Chunks,
        questions: Sequence[Question],
        on_finished: OnFinished | None = None,
        between_chunks: BetweenChunks | None = None,
    ):
        self.device, self.capacity, self.growth, self.grades, self.chunks = device, capacity, growth, grades, chunks
        self.on_finished, self.between_chunks = on_finished, between_chunks
        self.results: dict[int, SampledTree] = {}  # by order
        self.stats = SamplerStats(questions=len(questions))
        initial = growth.tree.initial
        self.admission = Admission(device, capacity, chunks, questions, self.stats, initial=initial)
        self.shards = self.admission.shards

    def run(self) -> tuple[list[SampledTree], SamplerStats]:
        """The trees in the order of the questions, and their cost (but for `seconds`)."""
        with self.chunks:
            while self.admission.pending or any(shard.in_flight for shard in self.shards):
                if self.between_chunks:
                    self.between_chunks()
                self.admission.release()
                self._admit()
                self._start()
                on_device = any(shard.on_device for shard in self.shards)
                if on_device:
                    self._dispatch()
                if len(self.chunks) == AHEAD or (self.chunks and not on_device):
                    self._read()
                elif not self.chunks and not any(shard.queue for shard in self.shards):
                    with phase("wait for grades"):
                        self.grades.wait()
                self._collect_grades()
                if self.admission.starved():
                    self._preempt()
            while self.chunks:
                self._read()
        self.admission.release()
        self.stats.pages_left = self.device.pages_in_use()
        self.stats.stall_seconds = self.chunks.stall_seconds
        return [self.results[order] for order in range(len(self.results))], self.stats

    def _admit(self) -> None:
        for q in self.admission.admit():
            self.shards[q.shard].queue.extend((q, draft) for draft in q.drafts if draft.wanted)
            self._advance(q)

    def _preempt(self) -> None:
        while self.chunks:
            self._read()
        self.admission.preempt()
        self._collect_grades()

    def _start(self) -> None:
        """Moves sequences from the host's queues to the device's; the device forks them."""
        starts = []
        for shard in self.shards:
            chosen = shard.to_start(more_to_come=bool(self.admission.pending))
            starts.append([self._sequence(q, draft) for q, draft in chosen])
            shard.take_pages(self.chunks.dispatched, len(chosen))
        self.device.start(starts)

    def _sequence(self, q: Growing, draft: Draft) -> Start:
        prompt, row = q.question.tokens, q.row(draft)
        source, draft.has_row = row if draft.has_row else q.source_row(draft), True
        return Start(
            source=source,
            row=row,
            token=draft.tokens[-1] if draft.tokens else prompt[-1],
            length=len(prompt) + len(draft.tokens),
            limit=len(prompt) + draft.limit,
            stop_state=self.growth.codec.stops.after(draft.tokens),
            question=q.question.id,
            response=draft.index,
        )

    def _dispatch(self) -> None:
        """Lets the device decode the next chunk."""
        capacity = self.capacity
        most = max(len(shard.on_device) for shard in self.shards)
        steps = capacity.chunk
        if most < capacity.num_slots and any(
            len(q.drafts) < capacity.group_size for shard in self.shards for q in shard.in_flight
        ):
            steps = max(1, capacity.chunk // 4)  # free slots wait for the host's choices: look sooner
        for shard in self.shards:
            shard.take_pages_to_decode(self.chunks.dispatched, steps)
        with phase("dispatch decode"):
            self.chunks.dispatch(lambda: self.device.decode(steps, most), tail=not self.admission.pending)

    def _read(self) -> None:
        """Waits for the oldest chunk and hands its tokens to their responses."""
        with phase("wait for tokens"):
            number, tail, chunk = self.chunks.next()
        slots = len(chunk.owner)
        self.stats.decode_steps += int(chunk.steps)
        self.stats.slot_steps += int(chunk.steps) * slots
        self.stats.tail_slot_steps += int(chunk.steps) * slots * tail
        stopped = []
        for slot, row, first, last in chunk.pieces():
            on_device = self.shards[slot * len(self.shards) // slots].on_device
            q, draft = on_device[row]
            draft.tokens.extend(chunk.tokens[slot, first:last].tolist())
            draft.log_probs.extend(chunk.log_probs[slot, first:last].tolist())
            self.stats.generated_tokens += last - first
            if chunk.stopped[slot, last - 1]:
                draft.finish = "stop"
            if draft.finish or len(draft.tokens) == draft.limit:
                del on_device[row]
                stopped.append((q, draft))
        for shard, pages, starved in zip(self.shards, chunk.pages_in_use.tolist(), chunk.starved.tolist()):
            shard.read(number, pages, starved)
        self.admission.note_peak(number)
        for q, draft in stopped:
            self._stopped(q, draft)

    def _stopped(self, q: Growing, draft: Draft) -> None:
        """A sequence left its slot: it ended, ran out of tokens, or paused at a segment's end."""
        if not self.growth.stopped(draft):
            self._done(q, draft)
            return
        if any(map(math.isnan, draft.log_probs)):
            raise UserError(
                f"response {draft.index} of question {q.question.id} has a log-probability of NaN: the parameters are "
                "not finite, or too large for model.dtype: set it to float32; if they were trained here, go on from an "
                "older checkpoint with a lower optimizer.learning_rate, and if they came so, fetch model.path again"
            )
        self.stats.responses += 1
        self.stats.response_tokens += len(draft.tokens)
        if self.grades.ask(q, draft):
            self._done(q, draft)

    def _collect_grades(self) -> None:
        for q, draft in self.grades.collect():
            self._done(q, draft)

    def _done(self, q: Growing, draft: Draft) -> None:
        q.done(draft)
        if q.shard >= 0:  # one that has been preempted goes on when it is back
            self._advance(q)

    def _advance(self, q: Growing) -> None:
        """Opens the rounds of the question that may begin, or hands over its tree."""
        while drafts := self.growth.next_round(q):
            self.shards[q.shard].queue.extend((q, draft) for draft in drafts)
        if not q.waiting:
            self.admission.finish(q)
            result = self.results[q.order] = self.growth.result(q)
            if self.on_finished:
                self.on_finished(result)
