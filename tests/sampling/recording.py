"""Devices that note what the scheduler asks of them."""

import numpy as np

from ibtpo.sampling.pages import NO_ROW


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
