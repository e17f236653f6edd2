"""Grades responses in worker processes with hard limits on time and memory per answer.

Responses are hostile input: `9^{9^{9^9}}` never ends, other texts exhaust memory or the C stack.
Each answer the fast path leaves open goes to a `pebble.ProcessPool` worker, which is killed and
replaced when it overruns. Three points are not obvious:

- Workers are spawned, never forked (JAX's threads are alive in the parent), and do not import the
  parent's main module: `python -m ibtpo.train` would otherwise import JAX in every worker.
- SIGTERM ends a worker at once: with a Python handler, a worker inside one long C call would hold
  up the whole pool until the kill that follows seconds later.
- Pebble gives up the pool when a worker dies between taking a task and reporting it. A watcher
  thread then starts a new pool and grades the unfinished answers again, at most `_ATTEMPTS` times
  each.
"""

import atexit
import contextlib
import functools
import importlib
import multiprocessing.context
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import spawn

import pebble

from ibtpo.rewards import FAST_PATHS, REWARDS, get_reward

_STARTS = 3  # pools in a row without a working worker before giving up
_ATTEMPTS = 10  # pools an answer may see break; which answer broke them is not always known
_START_SECONDS = 120.0  # a worker imports sympy in about a second; a loaded machine is far slower
_WATCH_SECONDS = 0.2

# ---------------------------------------------------------------------------------- inside a worker


def _initialise(modules: tuple[str, ...], memory_mb: int) -> None:
    """Limits the worker and imports the modules of all rewards, so that no answer's time goes to that."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS refuses this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    for module in modules:
        _load(module)


@functools.cache
def _load(module: str):
    """The module, imported, with the heavy imports that its `load` makes."""
    loaded = importlib.import_module(module)
    getattr(loaded, "load", lambda: None)()
    return loaded


def _ready() -> bool:
    return True


def _call(module: str, name: str, text: str, reference: str, timeout: float) -> float:
    # The parent enforces the limit; the alarm ends a worker whose parent was killed and cannot.
    signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 1)
    try:
        return float(getattr(_load(module), name)(text, reference))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# --------------------------------------------------------------------------------- starting workers

_launching = threading.Lock()


@contextlib.contextmanager
def _without_main_module():
    """Makes this thread's next spawned process skip the parent's main module (other threads' are
    not affected)."""
    thread, original = threading.get_ident(), spawn.get_preparation_data

    def preparation_data(name: str) -> dict:
        data = original(name)
        if threading.get_ident() == thread:
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    with _launching:
        spawn.get_preparation_data = preparation_data
        try:
            yield
        finally:
            spawn.get_preparation_data = original


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process):
        with _without_main_module():
            return multiprocessing.context.SpawnProcess._Popen(process)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


# ----------------------------------------------------------------------------------------- the pool


def _importable(function: Callable) -> bool:
    return function.__module__ != "__main__" and "." not in function.__qualname__


@dataclass(eq=False)
class _Job:
    function: Callable[[str, str], float]
    text: str
    reference: str
    future: Future = field(default_factory=Future)
    attempts: int = 0


class Grader:
    """Rewards of responses, computed in worker processes with hard limits per answer.

    One pool serves all kinds: its workers, which start when the first answer needs one, import every module of
    `ibtpo.rewards.REWARDS`. Every result is a float: an answer that overruns
    its time or memory, or takes its worker down, gets 0.0 and is counted. Use as a context manager,
    or call `close`; an open grader does not keep the interpreter from exiting.

    Args:
      kind: key of `ibtpo.rewards.REWARDS`, of the answers that are submitted without one.
      workers: number of worker processes.
      timeout: seconds per answer, from the moment a worker takes it.
      memory_mb: address space of a worker in MiB, imports included. Not enforced on macOS.

    Raises:
      ValueError: unknown kind (names the nearest), limits that are not positive, or a reward
        function that workers cannot import.
    """

    def __init__(self, kind: str = "math", *, workers: int = 2, timeout: float = 5.0, memory_mb: int = 2048):
        for name, value in (("workers", workers), ("timeout", timeout), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ValueError(f"reward.{name} must be positive, got {value!r}")
        self._kind = kind
        self._function(kind)
        self._workers, self._timeout, self._memory_mb = workers, float(timeout), int(memory_mb)
        self._counts = dict.fromkeys(("graded", "fast", "slow", "timeout", "crashed"), 0)
        self._lock = threading.RLock()  # guards everything below
        self._jobs: set[_Job] = set()  # handed to the current pool, unfinished
        self._pool: pebble.ProcessPool | None = None
        self._probe: Future | None = None  # done once the current pool's first worker is up
        self._progress = 0.0  # time of the last finished answer
        self._failed_starts = 0
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()

    @property
    def counts(self) -> dict[str, int]:
        """Answers so far: graded (all finished) = fast (no worker) + slow + timeout + crashed."""
        with self._lock:
            return dict(self._counts)

    @staticmethod
    def _function(kind: str) -> Callable[[str, str], float]:
        function = get_reward(kind)
        if not _importable(function):
            raise ValueError(
                f"reward {kind!r} is {function.__module__}.{function.__qualname__}, which a worker "
                "process cannot import: define it at the top level of a module"
            )
        return function

    def submit(self, text: str, reference: str, kind: str | None = None) -> Future:
        """Grades one response asynchronously; never waits for a worker.

        Args:
          text: the whole response.
          reference: what the reward of its kind compares it with.
          kind: key of `ibtpo.rewards.REWARDS`; None: the grader's own.

        Returns:
          A future of the reward. It holds a float whatever the text does to its worker; it raises
          RuntimeError only if no worker can be started at all, and is cancelled by `close`.

        Raises:
          RuntimeError: the grader is closed.
          ValueError: unknown kind, or a reference that its fast path finds unusable.
        """
        kind = self._kind if kind is None else kind
        if self._closed.is_set():
            raise RuntimeError(f"this {self._kind} grader is closed: create a new Grader")
        job = _Job(self._function(kind), text, str(reference))
        fast = FAST_PATHS.get(kind)
        value = None if fast is None else fast(job.text, job.reference)
        if value is None:
            self._schedule(job)
        else:
            self._resolve(job, float(value), "fast")
        return job.future

    def grade(self, pairs: Iterable[tuple[str, str]]) -> list[float]:
        """Rewards of (response text, reference) pairs, in order; blocks until all are graded."""
        futures = [self.submit(text, reference) for text, reference in pairs]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Stops the workers at once and cancels the futures that are not done; idempotent."""
        with self._lock:
            self._closed.set()
            pool, self._pool = self._pool, None
            jobs, self._jobs = self._jobs, set()
        atexit.unregister(self.close)
        for job in jobs:
            job.future.cancel()
        if pool is not None:
            _stop(pool)
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> None:
        """Starts a pool (lock held)."""
        self._pool = pebble.ProcessPool(
            max_workers=self._workers,
            initializer=_initialise,
            initargs=(self._modules(), self._memory_mb),
            context=_Context(),
        )
        self._probe = self._pool.schedule(_ready)
        self._progress = time.monotonic()
        if self._watcher is None:
            # Runs before pebble's own exit hook, which was registered earlier.
            atexit.register(self.close)
            self._watcher = threading.Thread(target=self._watch, name="ibtpo-grader", daemon=True)
            self._watcher.start()

    def _schedule(self, job: _Job) -> None:
        with self._lock:
            if self._closed.is_set():
                job.future.cancel()
                return
            if self._pool is None:
                self._start()
            pool = self._pool
            job.attempts += 1
            self._jobs.add(job)
            try:
                arguments = job.function.__module__, job.function.__name__, job.text, job.reference, self._timeout
                task = pool.schedule(_call, args=arguments, timeout=self._timeout)
            except RuntimeError:  # the pool broke just now: the watcher hands the job to the next
                return
        task.add_done_callback(lambda task: self._finish(pool, job, task))

    def _finish(self, pool: pebble.ProcessPool, job: _Job, task: Future) -> None:
        with self._lock:
            if pool is not self._pool or task.cancelled():
                return  # given up; the job was handed to another pool or cancelled
            error = task.exception()
            if isinstance(error, BrokenProcessPool):
                return  # left to the watcher
            self._jobs.discard(job)
            self._progress = time.monotonic()
        if error is None:
            self._resolve(job, task.result(), "slow")
        elif isinstance(error, TimeoutError) or getattr(error, "exitcode", None) == -signal.SIGALRM:
            self._resolve(job, 0.0, "timeout")
        else:
            self._resolve(job, 0.0, "crashed")

    def _resolve(self, job: _Job, value: float, outcome: str) -> None:
        with self._lock:
            self._counts["graded"] += 1
            self._counts[outcome] += 1
        with contextlib.suppress(InvalidStateError):  # the caller cancelled the future
            job.future.set_result(value)

    def _watch(self) -> None:
        """Replaces a pool that broke, never started, or hangs (a worker died holding its lock)."""
        while not self._closed.wait(_WATCH_SECONDS):
            with self._lock:
                pool, probe = self._pool, self._probe
                if pool is None or not self._jobs:
                    self._progress = time.monotonic()
                    continue
                started = probe.done() and not probe.cancelled() and probe.exception() is None
                if started:
                    self._failed_starts = 0
                limit = _START_SECONDS + 2 * self._timeout
                if pool.active and time.monotonic() - self._progress < limit:
                    continue
                self._failed_starts += not started
                self._pool, jobs, self._jobs = None, self._jobs, set()
            _stop(pool)
            for job in jobs:
                if self._failed_starts >= _STARTS:
                    with contextlib.suppress(InvalidStateError):
                        job.future.set_exception(RuntimeError(self._cannot_start()))
                elif job.attempts >= _ATTEMPTS:
                    self._resolve(job, 0.0, "crashed")
                else:
                    self._schedule(job)

    def _modules(self) -> tuple[str, ...]:
        """What a worker imports, the grader's own kind first."""
        functions = [get_reward(self._kind), *REWARDS.values()]
        return tuple(dict.fromkeys(f.__module__ for f in functions if _importable(f)))

    def _cannot_start(self) -> str:
        return (
            f"no grading worker could be started in {_STARTS} attempts: importing {', '.join(self._modules())} "
            f"fails within reward.memory_mb={self._memory_mb}; raise the limit, or see the workers' "
            "messages above"
        )


def _stop(pool: pebble.ProcessPool) -> None:
    """Stops a pool without waiting for its tasks."""
    pool.stop()
    with contextlib.suppress(RuntimeError):  # a pool that broke on its own
        pool.join()
