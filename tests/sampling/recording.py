"""Devices that note what the scheduler asks of them, and a call of the sampler on the simulated one."""

import dataclasses

import numpy as np

from ibtpo import parallel
from ibtpo.sampling.pages import NO_ROW
from ibtpo.sampling.process import Replay
from ibtpo.sampling.simulated import SimulatedDevice


def check_simulated(real, sampler, questions, grade, key, trees, stats, stop_ids):
    """That the simulated device, drawing what the sampler drew, is asked for the same and says the same, each chunk.

    real: the class of `recording` that the sampler ran on, without a wait for grades. trees, stats: what it returned.
    """
    simulated = recording(SimulatedDevice)
    replay = Replay(
        recorded={(t.question.id, r.index): r for t in trees for r in t.responses}, stop_ids=stop_ids
    )
    device = simulated(sampler.capacity, replay, mesh=parallel.current_mesh() is not None)
    again, same = sampler.run_on(device, questions, grade, key)
    for one, other in ((real.log, simulated.log), (real.chunks, simulated.chunks)):
        for number, (a, b) in enumerate(zip(one, other)):
            assert a == b, f"call or chunk {number}"
        assert len(one) == len(other) > 0
    assert [[r.tokens.tolist() for r in t.responses] for t in again] == [
        [r.tokens.tolist() for r in t.responses] for t in trees
    ]
    assert dataclasses.replace(same, seconds=0, stall_seconds=0) == dataclasses.replace(
        stats, seconds=0, stall_seconds=0
    )


def recording(device_class):
    """A device class that notes what it is asked for and what its chunks say."""

    class Recording(device_class):
        log: list = []
        chunks: list = []  # read in a thread of their own

        def prefill(self, prompts):
            self.log.append(("prefill", [[(p.row, len(p.tokens)) for p in of_shard] for of_shard in prompts]))
            super().prefill(prompts)

        def start(self, sequences):
            self.log.append(("start", sequences))
            super().start(sequences)

        def recompute(self, shard, source, row, tokens, start):
            self.log.append(("recompute", shard, source, row, list(tokens), start))
            super().recompute(shard, source, row, tokens, start)

        def release(self, blocks):
            self.log.append(("release", [list(of_shard) for of_shard in blocks]))
            super().release(blocks)

        def decode(self, steps, sequences):
            self.log.append(("decode", steps, sequences))
            fetch = super().decode(steps, sequences)

            def wait():
                chunk = fetch()
                n = int(chunk.steps)
                owner, drawn = np.asarray(chunk.owner)[:, :n], np.asarray(chunk.owner)[:, :n] != NO_ROW
                tokens, stopped = (np.where(drawn, np.asarray(x)[:, :n], 0) for x in (chunk.tokens, chunk.stopped))
                said = owner.tolist(), tokens.tolist(), stopped.tolist(), n
                self.chunks.append((*said, np.asarray(chunk.pages_in_use).tolist(), chunk.starved.tolist()))
                return chunk

            return wait

    return Recording
