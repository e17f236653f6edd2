"""A device without a model, whose sequences are known beforehand."""

import numpy as np

from ibtpo.sampling.device import Chunk
from ibtpo.sampling.pages import NO_ROW, pages_for

VOCAB, STOP = 8, 0


def draw(question, response, position):
    """The token at a position of a response's sequence."""
    return (question * 7 + response * 5 + position * 3 + position * position // 5) % VOCAB


class ScriptedDevice:
    """Answers with `draw`. A row is a number of cached tokens, in pages of its own, of which there is no end."""

    def __init__(self, capacity):
        self.capacity = capacity
        shards = range(capacity.num_shards)
        self.cached = [{} for _ in shards]  # row -> tokens
        self.slots = [{} for _ in shards]  # slot -> [Start, length]
        self.queues = [[] for _ in shards]

    def prefill(self, prompts):
        for cached, of_shard in zip(self.cached, prompts, strict=True):
            for prompt in of_shard:
                assert prompt.row not in cached
                cached[prompt.row] = len(prompt.tokens)

    def start(self, sequences):
        for cached, queue, of_shard in zip(self.cached, self.queues, sequences, strict=True):
            for start in of_shard:
                assert cached[start.source] >= start.length - 1
                cached[start.row] = start.length - 1
                queue.append([start, start.length])

    def decode(self, steps, sequences):
        shards, slots = self.capacity.num_shards, self.capacity.num_slots
        assert sequences >= max(len(s) + len(q) for s, q in zip(self.slots, self.queues))
        owner = np.full((slots * shards, steps), NO_ROW, np.int32)
        tokens, stopped = np.zeros_like(owner), np.zeros(owner.shape, bool)
        for step in range(steps):
            for shard, (slot, queue) in enumerate(zip(self.slots, self.queues)):
                for i in set(range(slots)) - set(slot):
                    if queue:
                        slot[i] = queue.pop(0)
                for i, (start, length) in list(slot.items()):
                    place = (shard * slots + i, step)
                    owner[place] = start.row
                    tokens[place] = draw(start.question, start.response, length)
                    stopped[place] = tokens[place] == STOP
                    slot[i][1] += 1
                    self.cached[shard][start.row] = length
                    if stopped[place] or length + 1 >= start.limit:
                        del slot[i]
        used = [sum(pages_for(n, self.capacity.page_size) for n in cached.values()) for cached in self.cached]
        log_probs = np.full(owner.shape, -1.0, np.float32)
        starved = np.zeros(shards, bool)
        return lambda: Chunk(owner, tokens, log_probs, stopped, np.int32(steps), np.array(used), starved)

    def recompute(self, shard, source, row, tokens, start):
        raise AssertionError("nothing is preempted where there are pages")

    def release(self, blocks):
        for cached, of_shard in zip(self.cached, blocks, strict=True):
            for row in (row for block in of_shard for row in block):
                cached.pop(row, None)

    def pages_in_use(self):
        return sum(map(len, self.cached))
