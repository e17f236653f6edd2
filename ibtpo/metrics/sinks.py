"""Services that get a run's numbers beside its files: Weights & Biases and Trackio.

A run writes metrics.jsonl and TensorBoard itself, and fails where it cannot (`writers`). A service is a copy, and never
the reason why a run stops: each has a thread of its own behind a bounded queue, and what it fails at is said once and
counted. The workdir keeps the run's name at the service and what it was sent last, so that a resumed run goes on there,
sends what a kill left unsent, and sends nothing twice.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ibtpo.errors import UserError, one_line
from ibtpo.whole_files import write_text

SERVICES = {"wandb": "ibtpo.metrics.wandb_sink", "trackio": "ibtpo.metrics.trackio_sink"}
_TITLES = {"wandb": "Weights & Biases", "trackio": "Trackio"}
_WAITING = 10_000  # rows and texts that may wait for a service
_CLOSE_SECONDS = 30.0  # that a service may take at the end of a run to send what waits


class Sink(Protocol):
    """One run at a service. What its methods raise is counted, and no end of the run. where: its page or folder."""

    where: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a row."""

    def text(self, step: int, name: str, text: str) -> None:
        """A text to look at."""

    def close(self) -> None:
        """Sends what is left."""


class Note:
    """workdir/<service>.json: the run's id at the service, and what it was sent last.

    Rows are sent in the order of their steps, and those of a step are told apart by their kinds, so the last step and
    its kinds say all.
    """

    def __init__(self, workdir: str | os.PathLike, service: str):
        self._path = pathlib.Path(workdir) / f"{service}.json"
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self.id, self._step, self._kinds = str(found["id"]), int(found["step"]), {str(k) for k in found["kinds"]}
            self.is_new = not self.id.isalnum()
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            self.is_new = True
        if self.is_new:
            self.id, self._step, self._kinds = secrets.token_hex(4), -1, set()

    def has(self, step: int, kind: str) -> bool:
        """Whether it was sent."""
        return step < self._step or (step == self._step and kind in self._kinds)

    def add(self, step: int, kind: str) -> None:
        """Notes that it was sent."""
        self._kinds = {kind} | (self._kinds if step == self._step else set())
        self._step = step
        self.save()

    def save(self) -> None:
        """Writes the file."""
        write_text(self._path, json.dumps({"id": self.id, "step": self._step, "kinds": sorted(self._kinds)}))


class Guarded:
    """A sink whose calls return at once, in the order in which they were made, each sent once. See the module.

    Args:
      service: its name in a warning.
      sink: what it calls, in one thread of its own.
      note: of what was sent.
      say: prints a line.
      close_seconds: how long `close` waits.
    """

    def __init__(
        self,
        service: str,
        sink: Sink,
        note: Note,
        *,
        say: Callable[[str], None] | None = None,
        close_seconds: float = _CLOSE_SECONDS,
    ):
        self.failures = 0
        self._service, self._sink, self._note = service, sink, note
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._close_seconds = close_seconds
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"ibtpo-{service}", daemon=True)
        self._thread.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands a row over."""
        values = dict(values)
        kind = "eval" if any(name.startswith("eval/") for name in values) else "train"
        self._put(lambda: self._send(step, kind, lambda: self._sink.write(step, values)))

    def text(self, step: int, name: str, text: str) -> None:
        """Hands a text over."""
        self._put(lambda: self._send(step, f"text {name}", lambda: self._sink.text(step, name, text)))

    def close(self) -> None:
        """Waits for what is left to be sent, `close_seconds` at most."""
        self._put(self._sink.close)
        self._put(None)
        self._thread.join(self._close_seconds)
        title = _TITLES.get(self._service, self._service)
        if self._thread.is_alive():
            self._say(f"warning: {title} did not take everything in {self._close_seconds:g} s; metrics.jsonl has it")
        elif self.failures > 1:
            self._say(f"warning: {title} did not take {self.failures} rows and texts; metrics.jsonl has every row")

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self._failed("it answers too slowly")

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except Exception as error:
                self._failed(one_line(error))

    def _send(self, step: int, kind: str, send: Callable[[], None]) -> None:
        if not self._note.has(step, kind):
            send()
            self._note.add(step, kind)

    def _failed(self, why: str) -> None:
        self.failures += 1
        if self.failures == 1:
            title = _TITLES.get(self._service, self._service)
            self._say(f"warning: {title} did not take a row ({why}); the run goes on, and metrics.jsonl has every row")


def wanted(log: Any) -> list[str]:
    """The services that the `log` section of a config asks for."""
    return [service for service in SERVICES if log.get(service, False)]


def check_installed(log: Any) -> None:
    """Raises a UserError, before anything is loaded, where the package of a service is missing."""
    for service in wanted(log):
        if importlib.util.find_spec(service) is None:
            raise UserError(
                f'log.{service}=True: the package {service} is not installed: pip install "ibtpo[{service}]", or leave '
                "it False"
            )


@contextlib.contextmanager
def opened(config: Any, workdir: str, *, active: bool = True, anew: bool = False) -> Iterator[Sequence[Guarded]]:
    """The run at each service that `config.log` asks for, continued where the workdir knows one.

    active: False opens none: on every host of a run but the first. anew: of a program that never resumes: another run
    at the service each time.

    Raises:
      UserError: a service cannot be used: its package is missing, no key is known, it does not answer.
    """
    check_installed(config.log)
    with contextlib.ExitStack() as stack:
        sinks = []
        for service in wanted(config.log) if active else []:
            if anew:
                (pathlib.Path(workdir) / f"{service}.json").unlink(missing_ok=True)
            os.makedirs(workdir, exist_ok=True)
            note = Note(workdir, service)
            name = config.log.run_name or pathlib.Path(workdir).resolve().name
            try:
                open_run = importlib.import_module(SERVICES[service]).open_run
                sink = open_run(config.log.project, name, note.id, workdir, config.to_dict())
            except Exception as error:
                raise UserError(
                    f"log.{service}=True: {_TITLES[service]} cannot be used ({one_line(error)}): log in or see to the "
                    "connection, record offline with WANDB_MODE=offline (wandb), or set it False"
                ) from error
            note.save()
            print(f"{_TITLES[service]}: {sink.where}", flush=True)
            sinks.append(Guarded(service, sink, note))
            stack.callback(sinks[-1].close)
        yield sinks
