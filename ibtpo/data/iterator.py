"""The order in which questions are trained on, resumable at any step."""

from collections.abc import Sequence

import grain

from ibtpo.data.problems import Problem


class ProblemIterator:
    """Endless batches of problems: every epoch is shuffled anew, then cut into batches.

    Batch k depends on (seed, k) and the problems alone, so the position is two numbers: the batch, and how many of its
    problems are taken. A batch never crosses epochs, hence holds no problem twice; the len(problems) % batch_size
    problems left over differ from epoch to epoch.
    """

    def __init__(self, problems: Sequence[Problem], batch_size: int, seed: int):
        if not 1 <= batch_size <= len(problems):
            raise ValueError(
                f"batch_size {batch_size} must be between 1 and the number of problems, {len(problems)}: "
                "lower train.questions_per_step or raise data.limit"
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
        """As many problems as a batch has."""
        return self.take(self._identity["batch_size"])

    def take(self, number: int) -> list[Problem]:
        """The next `number` problems, of as many batches as it takes."""
        taken: list[Problem] = []
        while len(taken) < number:
            part = self._batches[self._next][self._taken :][: number - len(taken)]
            taken += part
            self._taken += len(part)
            if self._taken == self._identity["batch_size"]:
                self._next, self._taken = self._next + 1, 0
        return taken

    def state(self) -> dict[str, int]:
        """The position and what it refers to; JSON-able."""
        return {"batch": self._next, "taken": self._taken, **self._identity}

    def restore(self, state: dict[str, int]) -> None:
        """Continues where `state()` was taken.

        Raises:
          ValueError: the state belongs to another seed, batch size or number of problems.
        """
        for key, value in self._identity.items():
            if state[key] != value:
                raise ValueError(
                    f"the data position was saved with {key}={state[key]}, this run has {value}: "
                    "restore the setting, or start anew in another workdir"
                )
        self._next, self._taken = int(state["batch"]), int(state.get("taken", 0))
