"""The inside of a grading worker: a process that answers one call after the other.

It is a fork of the server (`server.py`), which has imported the rewards. It leads a session of its own, so that what a
reward starts can be ended with it, and it is killed by the kernel where the server dies. A message is its length in
four bytes and JSON; nothing is pickled.
"""

import contextlib
import ctypes
import functools
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from types import ModuleType
from typing import Any

IS_LINUX = sys.platform == "linux"
_LENGTH = struct.Struct("<I")
_MOST_BYTES = 2**28  # of a message
_PR_SET_PDEATHSIG = 1


def send(connection: socket.socket, message: Any) -> None:
    """Sends a value that JSON can hold."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """The next message.

    Raises:
      EOFError: the other side is gone.
      ValueError: this is no message.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if length > _MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(length - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


@functools.cache
def load(module: str) -> ModuleType:
    """The module, imported, with the heavy imports that its `load` makes."""
    loaded = importlib.import_module(module)
    getattr(loaded, "load", lambda: None)()
    return loaded


def serve(connection: socket.socket, memory_mb: int, server: int) -> None:
    """Answers calls until the connection ends. server: the process id of the parent.

    A call is [module, name, text, reference, timeout, whether it is a reward]. It is answered twice: by null when it
    was taken, and by [result], or [] where the function failed. A worker that is left with threads, children or other
    surroundings ends, so that the next answer has a clean one.
    """
    own = os.getpid()
    _prepare(memory_mb)
    before = _surroundings()
    if os.getppid() != server:  # it died before this process asked to be told
        return
    while True:
        module, name, text, reference, timeout, is_reward = receive(connection)
        send(connection, None)
        # The parent enforces the limit; the alarm ends a worker whose parent cannot.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout + 1)
        try:
            value = getattr(load(module), name)(text, reference)
            outcome = [float(value) if is_reward else value]  # anything but a number is a reward's failure
        except BaseException:  # SystemExit and KeyboardInterrupt are a reward's failure too
            outcome = []
        if os.getpid() != own:  # the reward forked, and this is the other one
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        send(connection, outcome)
        if _surroundings() != before:
            return


def _prepare(memory_mb: int) -> None:
    os.setsid()
    if IS_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if IS_LINUX:  # macOS refuses this limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)


def _surroundings() -> list[Any]:
    """What a function should leave as it was, as far as it is cheap to tell."""
    try:
        place = os.getcwd()
    except OSError:  # it was removed
        place = ""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD)]
    limits = [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    here = [place, dict(os.environ), sys.getrecursionlimit()]
    return [threading.active_count(), _has_children(), here, handlers, limits]


def _has_children() -> bool:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return bool(file.read(1))
    except OSError:  # not Linux, or a kernel without this file
        return False
