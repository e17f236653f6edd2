"""Grading workers, seen from the program: who is idle, who is at which call, who has overrun or died.

One thread hands the calls out and waits for whatever happens next. Every worker has a connection of its own, so that
none can harm another, and its end is reported by the server (`server.py`): which call took a worker down is always
known. Only where the whole server dies are the calls under way asked again.
"""

import contextlib
import functools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ibtpo.errors import one_line
from ibtpo.rewards import server, worker

START_SECONDS = 120.0  # a server imports sympy in about a second; a loaded machine is far slower
_STOP_SECONDS = 10.0
_SEND_SECONDS = 5.0  # for an idle worker to take a call off its connection
_STARTS = 3  # servers in a row that die before they are ready, or workers before they take a call
_ATTEMPTS = 3  # servers that a call may see die
_MARGIN = 32 * 2**20  # bytes that a worker needs besides the imports


class CannotStart(Exception):
    """No worker can be started; the message says why."""


@dataclass(eq=False)
class Call:
    """function: [module, name, text, reference, timeout, whether it is a reward], see `worker.serve`. done(outcome,
    value): called once, by the thread of `Workers`: ("slow", the result), ("timeout", None), ("crashed", None) or
    ("failed", a CannotStart)."""

    function: list
    done: Callable[[str, Any], None]
    servers: int = 0  # that died under it


@dataclass(eq=False)
class _Worker:
    pid: int
    connection: socket.socket
    call: Call | None = None
    taken: bool = False
    deadline: float = float("inf")
    overran: bool = False


class Workers:
    """number: of processes. timeout: seconds of a call, from the moment a worker takes it. memory_mb: address space of
    a worker in MiB, imports included. The server starts when there is a call for it."""

    def __init__(self, number: int, modules: Callable[[], tuple[str, ...]], memory_mb: int, timeout: float):
        self._number, self._modules, self._memory_mb, self._timeout = number, modules, memory_mb, timeout
        self._lock = threading.Lock()  # guards the two below
        self._new: deque[Call] = deque()
        self._closed = False
        self._wake, self._woken = socket.socketpair()
        # All else belongs to the thread.
        self._waiting: deque[Call] = deque()
        self._workers: dict[int, _Worker] = {}
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._ready, self._deadline = False, 0.0  # of the server's start
        self._failed_starts = 0
        self._barren = 0  # workers in a row that ended before they took a call
        self._thread = threading.Thread(target=self._run, name="ibtpo-grader", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are there."""
        return sorted(self._workers.copy())

    def ask(self, call: Call) -> None:
        """Has a call answered; never waits. Calls still open when the workers are closed get no answer."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._new.append(call)
        if closed:
            call.done("failed", CannotStart("they were closed"))
        self._notify()

    def close(self) -> None:
        """Ends the server, the workers and all that they started."""
        with self._lock:
            self._closed = True
        self._notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _notify(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"x", socket.MSG_DONTWAIT)  # a full buffer wakes it as well

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # a fault of this file: nobody waits for ever
            with self._lock:
                self._closed = True
                self._waiting.extend(self._new)
            self._waiting.extend(each.call for each in self._workers.values() if each.call is not None)
            self._give_up(f"the thread that hands out the answers failed ({one_line(error)})")
        finally:
            self._stop()

    def _serve(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                self._waiting.extend(self._new)
                self._new.clear()
            if self._waiting and self._process is None:
                self._start()
            self._hand_out()
            self._wait()
            self._overran()

    def _wait(self) -> None:
        """Takes in whatever happens until the next deadline."""
        poll = select.poll()
        sources: dict[int, Callable[[], Any]] = {self._woken.fileno(): lambda: self._woken.recv(4096)}
        if self._control is not None:
            sources[self._control.fileno()] = self._read_report
        for each in self._workers.values():
            if each.call is not None and each.connection.fileno() >= 0:
                sources[each.connection.fileno()] = functools.partial(self._read_answer, each)
        for descriptor in sources:
            poll.register(descriptor, select.POLLIN)
        deadlines = [each.deadline for each in self._workers.values()]
        nearest = min([*deadlines, float("inf") if self._ready or self._process is None else self._deadline])
        left = None if nearest == float("inf") else max(0.0, nearest - time.monotonic()) * 1000 + 1
        for descriptor, _ in poll.poll(left):
            sources[descriptor]()

    # The server.

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        path = [os.path.abspath(folder) for folder in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                server.command(path, theirs.fileno(), self._modules(), self._memory_mb),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what rewards print is no output of the program
                start_new_session=True,  # Ctrl-C in a terminal is for the program
            )
        self._control.settimeout(_SEND_SECONDS)
        self._ready, self._deadline = False, time.monotonic() + START_SECONDS

    def _read_report(self) -> None:
        if self._control is None:  # lost a moment ago
            return
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, server.REPORT.size, 1)
            while 0 < len(data) < server.REPORT.size:
                data += self._control.recv(server.REPORT.size - len(data)) or b"\0" * server.REPORT.size
            kind, number, code = server.REPORT.unpack(data)
        except (OSError, struct.error):  # the end of the connection too
            self._server_died()
            return
        if kind == server.READY:
            self._is_ready(number)
        elif kind == server.FAILED:
            self._give_up(f"importing {', '.join(self._modules())} failed: {self._message(number)}")
        elif kind == server.STARTED:
            connection = socket.socket(fileno=descriptors[0])
            connection.settimeout(_SEND_SECONDS)
            self._workers[number] = _Worker(number, connection)
        elif kind == server.ENDED:
            self._worker_ended(number, code)

    def _message(self, length: int) -> str:
        assert self._control is not None
        with contextlib.suppress(OSError):
            return self._control.recv(length, socket.MSG_WAITALL).decode(errors="replace")
        return ""

    def _is_ready(self, address_space: int) -> None:
        needed = -(-(address_space + _MARGIN) // 2**20)
        if worker.IS_LINUX and self._memory_mb < needed:
            self._give_up(
                f"reward.memory_mb={self._memory_mb} is less than the {needed} MiB that a worker with its imports "
                "needs; raise it"
            )
            return
        self._ready, self._failed_starts = True, 0
        for _ in range(self._number):
            self._request(server.FORK)

    def _request(self, kind: bytes, pid: int = 0) -> None:
        if self._control is None:
            return
        try:
            self._control.sendall(server.REQUEST.pack(kind, pid))
        except OSError:  # gone, or it does not listen
            self._server_died()

    def _server_died(self) -> None:
        """Whatever the reason. The calls under way are asked again, for which of them did it is not known."""
        self._failed_starts += not self._ready
        again = [each.call for each in self._workers.values() if each.call is not None]
        self._stop()
        for call in reversed(again):
            call.servers += 1
            if call.servers >= _ATTEMPTS:
                call.done("crashed", None)
            else:
                self._waiting.appendleft(call)
        if self._failed_starts >= _STARTS:
            self._give_up(
                f"{_STARTS} processes in a row died while importing {', '.join(self._modules())}; see their messages "
                "above"
            )

    def _give_up(self, reason: str) -> None:
        self._stop()
        self._failed_starts = self._barren = 0
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.done("failed", CannotStart(reason))

    def _stop(self) -> None:
        process, control, workers, ready = self._process, self._control, self._workers, self._ready
        self._process, self._control, self._workers, self._ready = None, None, {}, False
        for each in workers.values():
            each.connection.close()
        if process is None:
            return
        assert control is not None
        control.close()
        if not ready:  # it would finish its imports first
            process.kill()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode:  # it cannot have ended its workers
            for pid in workers:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    # The workers.

    def _hand_out(self) -> None:
        idle = [each for each in self._workers.values() if each.call is None]
        for each in idle:
            if not self._waiting:
                return
            each.call, each.taken = self._waiting.popleft(), False
            each.deadline = time.monotonic() + self._timeout + _SEND_SECONDS
            try:
                worker.send(each.connection, each.call.function)
            except OSError:  # it died idle, which the server will report, or it does not read
                self._request(server.KILL, each.pid)

    def _read_answer(self, each: _Worker) -> None:
        if each.call is None:
            return
        try:
            answer = worker.receive(each.connection)
            if answer is None:
                each.taken, each.deadline, self._barren = True, time.monotonic() + self._timeout, 0
                return
            if not isinstance(answer, list) or len(answer) > 1:
                raise ValueError("no answer")
        except (EOFError, OSError, ValueError, RecursionError):
            # Its end is reported by the server; one that closed the connection or wrote nonsense comes to it here.
            each.connection.close()
            self._request(server.KILL, each.pid)
            return
        call, each.call, each.deadline = each.call, None, float("inf")
        call.done(*(("slow", answer[0]) if answer else ("crashed", None)))

    def _overran(self) -> None:
        now = time.monotonic()
        if self._process is not None and not self._ready and now > self._deadline:
            self._process.kill()
            self._give_up(f"importing {', '.join(self._modules())} took more than {START_SECONDS:.0f} s")
        for each in list(self._workers.values()):
            if now > each.deadline:
                if each.overran and self._process is not None:
                    self._process.kill()  # a server that does not do what it is asked for
                each.overran, each.deadline = True, now + _STOP_SECONDS
                self._request(server.KILL, each.pid)

    def _worker_ended(self, pid: int, code: int) -> None:
        each = self._workers[pid]
        while each.call is not None and _readable(each.connection):  # its last words may lie there still
            self._read_answer(each)
        del self._workers[pid]
        each.connection.close()
        if each.call is not None and each.taken:
            each.call.done("timeout" if each.overran or code == -signal.SIGALRM else "crashed", None)
        elif each.call is not None:
            self._waiting.appendleft(each.call)
        self._barren += not each.taken
        if self._barren >= _STARTS * (1 + self._number):
            self._give_up(f"{self._barren} processes in a row ended before they took an answer (exit code {code})")
        else:
            self._request(server.FORK)


def _readable(connection: socket.socket) -> bool:
    if connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
