"""Updates that were skipped since their loss or gradient was not finite."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ibtpo import parallel
from ibtpo.metrics.step import Update
from ibtpo.packing import TokenBatch


class SkippedUpdates:
    """Counts them, and keeps the batch of the last.

    in_a_row: how many have been skipped since the last that was not. batch: that of the last of them, None
    where the last update was not skipped.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.batch: TokenBatch | None = None

    def count(self, updates: Sequence[Update]) -> None:
        """Takes note of a step's updates, in their order; waits until they are done."""
        for update in updates:
            skipped = bool(jax.device_get(update.metrics["skipped_updates"][0]))
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            self.batch = update.batch if skipped else None

    def save(self, path: str | os.PathLike, *, write: bool = True) -> None:
        """Writes the fields of the last one's batch that are there, as a NumPy archive. Every host has to call it, the
        first alone with `write`."""
        arrays: dict[str, Any] = {name: parallel.to_host(x) for name, x in vars(self.batch).items() if x is not None}
        if write:
            np.savez_compressed(path, **arrays)
