"""The decode chunks that are under way, and how long the device had nothing to do."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ibtpo.sampling.device import Chunk

AHEAD = 2  # decode chunks dispatched and not yet read: the one that runs and the one after it


class Chunks:
    """Chunks from when they are dispatched until they are read, numbered from 1. A thread of its own waits for them.

    began: when the device began to have nothing to do (`time.perf_counter`). To be closed, as a context manager.
    """

    def __init__(self, began: float):
        self.dispatched = 0
        self.stall_seconds = 0.0
        self._unread: deque[tuple[int, bool, Future[Chunk]]] = deque()
        self._reader = ThreadPoolExecutor(1)
        self._idle_since: float | None = began  # None: it has something to do

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._reader.shutdown()

    def __len__(self) -> int:
        """How many are not yet read."""
        return len(self._unread)

    def busy(self) -> None:
        """To be called when the device is given work that takes time."""
        if self._idle_since is not None:
            self.stall_seconds += time.perf_counter() - self._idle_since
            self._idle_since = None

    def dispatch(self, decode: Callable[[], Callable[[], Chunk]], *, tail: bool) -> None:
        """Lets the device decode the next chunk, by `decode`, which returns a function that waits for it. tail: whether
        the last question has been admitted."""
        self.dispatched += 1  # first, so that no chunk that is read meanwhile thinks itself the last
        self.busy()
        self._unread.append((self.dispatched, tail, self._reader.submit(self._wait, decode(), self.dispatched)))

    def next(self) -> tuple[int, bool, Chunk]:
        """Waits for the oldest chunk: (its number, tail, its `Chunk`)."""
        number, tail, future = self._unread.popleft()
        return number, tail, future.result()

    def _wait(self, fetch: Callable[[], Chunk], number: int) -> Chunk:
        chunk = fetch()
        if number == self.dispatched:
            self._idle_since = time.perf_counter()
        return chunk
