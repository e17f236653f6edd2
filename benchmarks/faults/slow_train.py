"""`python -m ibtpo.train` with grades that come after a random time, as those of a slow grader do; part `repeat`."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from ibtpo import config as config_lib
from ibtpo.rewards.pool import Grader
from ibtpo.train import train

SECONDS = 0.02  # at most; a chunk of the tiny model takes a few milliseconds


@contextmanager
def delayed_grades(seconds: float = SECONDS) -> Iterator[None]:
    """Within it every grader of this process holds back its rewards for up to so many seconds."""
    submit, rng = Grader.submit, random.Random()

    def slowly(self: Grader, text: str, reference: str, kind: str | None = None) -> Future[float]:
        graded, late = submit(self, text, reference, kind), Future[float]()
        threading.Timer(rng.uniform(0, seconds), lambda: late.set_result(graded.result())).start()
        return late

    Grader.submit = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        Grader.submit = submit  # type: ignore[method-assign]


if __name__ == "__main__":
    with delayed_grades():
        config_lib.run(train)
