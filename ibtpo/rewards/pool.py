"""Grades responses in worker processes with hard limits on time and memory per answer.

Responses are hostile input: `9^{9^{9^9}}` never ends, other texts exhaust memory or the C stack. Each answer the fast
path leaves open goes to a worker (`workers.py`), which is killed and replaced when it overruns; what it started ends
with it.
"""

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ibtpo.errors import UserError
from ibtpo.rewards import KINDS, as_graded, find_kind, reward_name
from ibtpo.rewards.workers import Call, Workers


def _importable(module: ModuleType) -> bool:
    return module.__name__ != "__main__" and module.__spec__ is not None


@dataclass(eq=False)
class _Job:
    """One call of a worker. kind: of the reward that is asked for; "": another function. otherwise: its result where it
    overruns or crashes."""

    module: str
    name: str
    text: str
    reference: str
    kind: str = ""
    otherwise: Any = 0.0
    future: Future = field(default_factory=Future)


class Grader:
    """Rewards of responses, computed in worker processes with hard limits per answer.

    One pool serves all kinds: its workers, which start when the first answer needs one, import every module of
    `ibtpo.rewards.KINDS`. An answer that overruns its time or memory, or takes its worker down, gets 0.0 and is
    counted. Use as a context manager, or call `close`; an open grader does not keep the interpreter from exiting.

    Args:
      kind: key of `ibtpo.rewards.KINDS`, or module:function (`ibtpo.own_code`), of the answers that are submitted
        without one.
      workers: number of worker processes.
      timeout: seconds per answer, from the moment a worker takes it.
      memory_mb: address space of a worker in MiB, imports included. Not enforced on macOS.
      unevaluated: grade by the laxer `unevaluated_reward` of the kinds that have one.

    Raises:
      UserError: unknown kind (names the nearest), limits that are not positive, or a kind that workers cannot import.
    """

    def __init__(
        self,
        kind: str = "math",
        *,
        workers: int = 2,
        timeout: float = 5.0,
        memory_mb: int = 2048,
        unevaluated: bool = False,
    ):
        for name, value in (("workers", workers), ("timeout", timeout), ("memory_mb", memory_mb)):
            if not value > 0:
                raise UserError(f"reward.{name} must be positive, got {value!r}")
        self._kind, self._unevaluated = kind, unevaluated
        self._module(kind)
        self._workers, self._timeout, self._memory_mb = workers, float(timeout), int(memory_mb)
        self._counts = dict.fromkeys(("graded", "fast", "slow", "timeout", "crashed"), 0)
        self._lock = threading.RLock()  # guards everything below
        self._jobs: set[_Job] = set()  # handed to the workers, unfinished
        self._pool: Workers | None = None
        self._closed = threading.Event()

    @property
    def counts(self) -> dict[str, int]:
        """Answers so far, graded by `submit` or looked at by `call`: graded (all finished) = fast (no worker) + slow +
        timeout + crashed. One whose reward was refused is in none of them."""
        with self._lock:
            return dict(self._counts)

    @staticmethod
    def _module(kind: str) -> ModuleType:
        module = find_kind(kind)
        if not _importable(module):
            raise UserError(
                f"reward {kind!r} is the module {module.__name__!r}, which a worker process cannot import: save it as "
                "a file of its own"
            )
        return module

    def submit(
        self, text: str, reference: str, kind: str | None = None, *, truncated: bool = False
    ) -> Future[float]:
        """Grades one response asynchronously; never waits for a worker.

        Args:
          text: the whole response.
          reference: the answer the reward of its kind compares it with.
          kind: key of `ibtpo.rewards.KINDS`; None: the grader's own.
          truncated: whether the length limit cut the response off: what it stated before is graded (`before_cut`).

        Returns:
          A future of the reward. It holds a float in [0, 1] whatever the text does to its worker. It raises UserError
          if the reward function returns anything outside [0, 1] or no worker can be started at all, and is cancelled by
          `close`.

        Raises:
          RuntimeError: the grader is closed.
          UserError: unknown kind, or a reference that its fast path finds unusable.
        """
        kind = self._kind if kind is None else kind
        self._check_open()
        module = self._module(kind)
        name = reward_name(kind)
        name = f"unevaluated_{name}" if self._unevaluated and hasattr(module, f"unevaluated_{name}") else name
        job = _Job(module.__name__, name, as_graded(kind, text, truncated), str(reference), kind)
        fast = getattr(module, f"fast_{name}", None)
        value = None if fast is None else fast(job.text, job.reference)
        if value is None:
            self._schedule(job)
        else:
            job.name = f"fast_{name}"
            self._resolve(job, float(value), "fast")
        return job.future

    def call(self, function: Callable[[str, str], Any], text: str, reference: str, *, otherwise: Any) -> Future:
        """The result of another function on a response, computed under the same limits; never waits for a worker.

        Args:
          function: (text, reference) -> anything that JSON can hold, at the top level of a module.
          otherwise: the result where it overruns its time or memory, raises, or takes its worker down.

        Returns:
          A future of the result, like `submit`'s but for its value.

        Raises:
          RuntimeError: the grader is closed.
        """
        self._check_open()
        job = _Job(function.__module__, function.__name__, text, str(reference), otherwise=otherwise)
        self._schedule(job)
        return job.future

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError(f"this {self._kind} grader is closed: create a new Grader")

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
            pool.close()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _schedule(self, job: _Job) -> None:
        with self._lock:
            if self._closed.is_set():
                job.future.cancel()
                return
            if self._pool is None:
                self._pool = Workers(self._workers, self._modules, self._memory_mb, self._timeout)
                atexit.register(self.close)
            self._jobs.add(job)
            function = [job.module, job.name, job.text, job.reference, self._timeout, bool(job.kind)]
            self._pool.ask(Call(function, lambda outcome, value: self._finish(job, outcome, value)))

    def _finish(self, job: _Job, outcome: str, value: Any) -> None:
        with self._lock:
            self._jobs.discard(job)
        if outcome == "failed":
            with contextlib.suppress(InvalidStateError):
                job.future.set_exception(UserError(f"no grading worker can be started: {value}"))
            return
        self._resolve(job, value if outcome == "slow" else job.otherwise, outcome)

    def _resolve(self, job: _Job, value: Any, outcome: str) -> None:
        if job.kind and not 0 <= value <= 1:  # NaN neither
            error = UserError(
                f"reward kind {job.kind!r} ({job.module}.{job.name}) returned {value}: a reward lies in [0, 1]"
            )
            with contextlib.suppress(InvalidStateError):
                job.future.set_exception(error)
            return
        with self._lock:
            self._counts["graded"] += 1
            self._counts[outcome] += 1
        with contextlib.suppress(InvalidStateError):  # the caller cancelled the future
            job.future.set_result(value)

    def _modules(self) -> tuple[str, ...]:
        """The modules a worker imports, the grader's own kind first."""
        modules = [find_kind(self._kind), *KINDS.values()]
        return tuple(dict.fromkeys(module.__name__ for module in modules if _importable(module)))
