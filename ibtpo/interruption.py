"""A run that is asked to end: signals, the time that is left, and where the run may stop.

SIGTERM and SIGINT ask a run to end. It finishes the update under way, or, where that would take longer than the grace,
gives up its sampling; then it saves and ends. Where nothing is to be saved yet, and at a second signal, it ends at
once. A thread listens, since the main thread may be in one long call of JAX, where Python's handlers wait.

The main thread passes points that it counts: between two chunks of decoding, between two updates. To stop means to
stop at the first suitable point from a number on, so that several processes that count alike can agree on one
(`ibtpo.hosts`). Nothing here loads JAX: a signal may come while the command still loads it.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

STOP, GIVE_UP = "stop", "give up"  # at the next update's end; in the middle of sampling
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MOST = 10.0  # seconds that an end at once may take
_ONE = 0.1  # seconds within which a signal that comes twice, from a terminal and from a launcher, is one


class GivenUp(Exception):
    """Sampling ends here, since the run is to end; what it has sampled of this batch is lost."""


class Interruption:
    """Whether a run is to stop. Without `listening` or a request it never is."""

    def __init__(self) -> None:
        self.grace = 30.0  # seconds (checkpoint.grace_seconds)
        self.reason = ""  # in a few words, once it is asked to stop
        self.request: Callable[[str, str], None] = self._settle  # (STOP or GIVE_UP, reason); of one process or of all
        self.lock = threading.Lock()  # held while the processes agree on a number
        self.count = 0  # of points passed
        self.early = True  # nothing to save yet
        self.done = False  # everything is saved
        self._listening = False
        self._from: dict[str, int] = {}  # the number of the point from which to stop, and to give up
        self._updates: deque[float] = deque(maxlen=5)  # seconds of the last ones
        self._began: float | None = None  # of the update under way
        self._save_seconds = 0.0
        self._asked: float | None = None
        self._give_up: float | None = None  # the time after which sampling is given up

    # The main thread.

    def sampling(self) -> None:
        """A point between two chunks of decoding. Raises GivenUp where the sampling is to be given up."""
        if self._passed(GIVE_UP):
            raise GivenUp

    def evaluating(self) -> None:
        """The same in an evaluation, which is always given up: a resumed run does it again."""
        if self._passed(STOP):
            raise GivenUp

    def between_updates(self) -> bool:
        """A point at which everything can be saved. Whether to stop here."""
        return self._passed(STOP)

    def _passed(self, kind: str) -> bool:
        with self.lock:
            self.count += 1
            return self.count >= self._from.get(kind, self.count + 1)

    @contextlib.contextmanager
    def update(self) -> Iterator[None]:
        """Around an update, which has something to save when it is done."""
        self._began = time.monotonic()
        try:
            yield
            self._updates.append(time.monotonic() - self._began)
            with self.lock:
                self.early = False
        finally:
            self._began = None

    @contextlib.contextmanager
    def save(self) -> Iterator[None]:
        """Around a save, to know how long one takes."""
        began = time.monotonic()
        yield
        self._save_seconds = time.monotonic() - began

    # Whoever decides.

    def settle(self, kind: str, number: int, reason: str) -> None:
        """From point `number` on the run is to stop, or to give up. `lock` must be held."""
        self.reason = self.reason or reason
        self._from.setdefault(kind, number)

    def _settle(self, kind: str, reason: str) -> None:
        with self.lock:
            self.settle(kind, self.count + 1, reason)

    def seconds_left(self) -> float:
        """How long the update under way and a save will take, from the updates before it."""
        began = self._began
        if began is None or not self._updates:
            return self._save_seconds
        left = statistics.median(self._updates) - (time.monotonic() - began)
        return max(left, 0.0) + self._save_seconds

    # The signals.

    @contextlib.contextmanager
    def listening(self, *, to_the_end: bool = False) -> Iterator["Interruption"]:
        """Hears the signals within it; in the main thread.

        to_the_end: nothing but the end of the process follows it. Signals are ignored then: the exit code is the run's.
        """
        end, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        fd = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._listening = True
        self.keep()
        thread = threading.Thread(target=self._listen, args=(end,), name="ibtpo-signals", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if to_the_end else handler)
            signal.set_wakeup_fd(fd)
            os.write(wakeup, b"\0")
            thread.join()
            os.close(wakeup)
            os.close(end)

    def keep(self) -> None:
        """Takes the signals back from a library that has taken them (jax.distributed, a TPU's runtime), if it listens.
        Python's handler has nothing to do: the number of each signal goes to the listening thread."""
        for number in _SIGNALS if self._listening else ():
            signal.signal(number, lambda number, frame: None)

    def _listen(self, end: int) -> None:
        while True:
            wait = None if self._give_up is None else max(0.0, self._give_up - time.monotonic())
            if not select.select([end], [], [], wait)[0]:
                self._give_up = None
                self.request(GIVE_UP, self.reason)
                continue
            for number in os.read(end, 64):
                if number == 0:
                    return
                if number in _SIGNALS:
                    self._heard(signal.Signals(number))

    def _heard(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._asked is not None:
            if now - self._asked > _ONE:
                end_now(128 + number, f"{number.name} again: ended at once; what was saved is intact")
            return
        self._asked = now
        if self.done:
            return
        if self.early:
            end_now(0, f"{number.name}: nothing new to save yet; run the same command to begin again where it stood")
        self.ask(number.name)

    def ask(self, reason: str) -> None:
        """Asks the run to stop within its grace."""
        if sys.stderr.isatty():
            print(f"\n{reason}: the run saves and ends; a second one ends it at once", file=sys.stderr, flush=True)
        self.request(STOP, reason)
        left = self.seconds_left()
        self._give_up = time.monotonic() + max(0.0, self.grace - self._save_seconds if left <= self.grace else 0.0)


# The end of a process from any of its threads.

on_end: list[Callable[[int, str], None]] = []  # called with exit code and line by `end_now`, each in a thread
_ending = threading.Lock()


def folder_lost(line: str) -> None:
    """Ends a run whose folder another one has taken (`workdir_lock`)."""
    end_now(1, f"error: {line}: this run ends, so that two do not write the same files")


def end_now(code: int, line: str) -> None:
    """Ends the process at once, from any thread: prints the line, calls `on_end`, kills the workers. Never returns."""
    if not _ending.acquire(blocking=False):
        time.sleep(3600)  # another thread ends it
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        stream = sys.stderr if code else sys.stdout
        print(line, file=stream, flush=True)
    kill_workers()
    until = time.monotonic() + _MOST
    actions = [threading.Thread(target=action, args=(code, line), daemon=True) for action in on_end]
    threading.excepthook = lambda *_: None  # one line, and that is said
    for thread in actions:
        thread.start()
    for thread in actions:
        thread.join(max(0.0, until - time.monotonic()))
    os._exit(code)


@contextlib.contextmanager
def at_end(action: Callable[[int, str], None]) -> Iterator[None]:
    """Has `end_now` call the action within it."""
    on_end.append(action)
    try:
        yield
    finally:
        on_end.remove(action)


def kill_workers() -> None:
    """Ends the worker processes of this one, with those they have started where a worker leads a group."""
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():
            with contextlib.suppress(OSError):
                pid = child.pid or 0
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
