"""What C++ libraries print, and their abort.

JAX's coordination client reacts to another process's end by printing some forty lines and calling abort(), which no
Python handler can prevent. While `taken`, file descriptor 2 is a pipe. A thread passes on what comes through it, but
holds back a report of the coordination service; and a C handler of SIGABRT is called before the process dies.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

_REPORT = re.compile(
    rb"^[IWEF]\d{4} .*\b(coordination_service|coordination_service_agent|preemption_sync_manager|client)\.(cc|h):\d+\]",
    re.MULTILINE,
)
_HOLD = 10.0  # seconds, after which a report that no abort followed is passed on


class _Pipe:
    """File descriptor 2, taken; Python's own messages keep going where they went."""

    def __init__(self) -> None:
        self.original = os.dup(2)
        self._end, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        self.held = b""
        self._since: float | None = None
        self._old, self.python = sys.stderr, os.fdopen(os.dup(self.original), "w", 1, errors="backslashreplace")
        self._turn(self._old, self.python)
        self._thread = threading.Thread(target=self._pass_on, name="ibtpo-messages", daemon=True)
        self._thread.start()

    @staticmethod
    def _turn(old, new) -> None:
        """Everything of Python that writes to `old` writes to `new`."""
        sys.stderr = new
        loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
        for handler in {handler for logger in loggers for handler in logger.handlers}:
            part: Any
            for part in (handler, getattr(handler, "python_handler", None)):  # absl's wraps another
                if getattr(part, "stream", None) is old:
                    part.stream = new
        if faulthandler.is_enabled():
            faulthandler.enable(new)

    def _pass_on(self) -> None:
        while True:
            if not select.select([self._end], [], [], None if self._since is None else 1.0)[0]:
                if self._since is not None and time.monotonic() - self._since > _HOLD:
                    self.release()
                continue
            data = os.read(self._end, 65536)
            if not data:
                return
            self.held += data
            report = _REPORT.search(self.held)
            if self._since is None and report is None:
                self.release()
            elif self._since is None:
                self._since = time.monotonic()

    def release(self) -> None:
        """Passes on what is held back."""
        data, self.held, self._since = self.held, b"", None
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.original, data) :]

    def close(self) -> None:
        """Gives file descriptor 2 back."""
        os.dup2(self.original, 2)  # the only writing end of the pipe: its reader ends
        self._thread.join(5)
        self.release()
        self._turn(self.python, self._old)
        self.python.close()
        os.close(self._end)
        os.close(self.original)


@contextlib.contextmanager
def taken(on_abort: Callable[[str], None]) -> Iterator[None]:
    """Within it, on_abort(report) is called before the process aborts where JAX's coordination service has given the
    run up; it should end the process. Any other abort keeps its messages."""
    sys.stderr.flush()
    pipe = _Pipe()
    c = ctypes.CDLL(None)

    def aborted(number: int) -> None:
        time.sleep(0.2)  # the thread takes what has been written
        if b"distributed service detected fatal errors" in pipe.held:
            on_abort(pipe.held.decode(errors="replace"))
        pipe.release()
        c.signal(number, None)  # the default; abort() goes on with it

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    c.signal(int(signal.SIGABRT), handler)

    def give_back() -> None:
        c.signal(int(signal.SIGABRT), None)
        pipe.close()

    atexit.register(give_back)
    yield
    atexit.unregister(give_back)  # after an error only then: an abort may still come
    give_back()
