"""The order in which questions are trained on, resumable at any step, whole or a part for each host."""

from collections.abc import Sequence

import grain

from ibtpo.data.problems import Problem
from ibtpo.errors import UserError


class ProblemIterator:
    """Endless batches of problems: every epoch is shuffled anew, then cut into batches.

    Batch k depends on (seed, k) and the problems alone, so the position is two numbers: the batch, and how many of its
    problems are taken. A batch never crosses epochs, hence holds no problem twice; the len(problems) % batch_size
    problems left over differ from epoch to epoch.

    shard: (index, count), to hand each of `count` hosts its own part: problems index, index + count, ... of every
    batch, whose parts together are the whole batch. `state()` is that of the whole, the same on every host, so
    another number of hosts can go on from it. `ibtpo.train` wants whole batches on every host (docs/data.md).

    Raises:
      UserError: batch_size is not between 1 and the number of problems, or no multiple of count.
      ValueError: no such shard.
    """

    def __init__(self, problems: Sequence[Problem], batch_size: int, seed: int, *, shard: tuple[int, int] = (0, 1)):
        if not 1 <= batch_size <= len(problems):
            raise UserError(
                f"batch_size {batch_size} must be between 1 and the number of problems, {len(problems)}: "
                "lower train.questions_per_step or raise data.limit"
            )
        self._index, self._count = shard
        if not 0 <= self._index < self._count:
            raise ValueError(f"shard {shard} is not (index, count) with 0 <= index < count")
        if batch_size % self._count:
            raise UserError(
                f"batch_size {batch_size} cannot be dealt out to {self._count} hosts: set it to a multiple, "
                f"e.g. {-(-batch_size // self._count) * self._count}"
            )
        self._identity = {"seed": seed, "batch_size": batch_size, "num_problems": len(problems)}
        self._batches = (
            grain.MapDataset.source(problems)
            .shuffle(seed=seed)
            .batch(batch_size, drop_remainder=True, batch_fn=list)
            .repeat()
        )
        self._next = self._taken = 0

    def next_batch(self) -> list[Problem]:
        """As many problems as (this shard of) a batch has."""
        return self.take(self._identity["batch_size"] // self._count)

    def take(self, number: int) -> list[Problem]:
        """The next `number` problems (of this shard), of as many batches as it takes."""
        taken: list[Problem] = []
        while len(taken) < number:
            part = self._batches[self._next][self._taken + self._index :: self._count][: number - len(taken)]
            taken += part
            self._taken += len(part) * self._count
            if self._taken == self._identity["batch_size"]:
                self._next, self._taken = self._next + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """The position, and the data and shard it refers to; JSON-able."""
        return {"batch": self._next, "taken": self._taken, **self._identity}

    def restore(self, state: dict[str, int]) -> None:
        """Continues where `state()` was taken.

        Raises:
          UserError: the state belongs to another seed, batch size or number of problems, or lies
            within a batch, after a number of problems that is no multiple of the number of hosts.
        """
        for key, value in self._identity.items():
            if state[key] != value:
                raise UserError(
                    f"the data position was saved with {key}={state[key]}, this run has {value}: "
                    "restore the setting, or start anew in another workdir"
                )
        taken = int(state.get("taken", 0))
        if taken % self._count:
            raise UserError(
                f"the data position is {taken} problems into a batch, which {self._count} hosts cannot have taken "
                "equally: continue with the number of hosts that saved it"
            )
        self._next, self._taken = int(state["batch"]), taken
