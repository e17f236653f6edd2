"""The process that grading workers are forked from.

It imports the rewards once; a fork of it is a worker that is ready in milliseconds, so that an answer which takes its
worker down costs no imports. It is spawned, never forked from the program (JAX's threads are alive there), and does
not import the program's main module.

Nothing that a reward starts outlives its worker: when that has ended, the server kills its process group, and every
process that was left without a parent. On Linux these come to the server, also those that made a session of their own
(it is their "subreaper"). The end of its control connection, also by SIGKILL of the program, ends the server and all
below it.

Control messages, of fixed size: `Request` from the program, `Report` to it.
"""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

from ibtpo.errors import one_line
from ibtpo.rewards import worker

REQUEST = struct.Struct("<cq")  # kind, process id
REPORT = struct.Struct("<cqi")  # kind, process id or size, exit code
FORK, KILL = b"F", b"K"
READY, FAILED, STARTED, ENDED = b"R", b"E", b"W", b"D"
# READY: the bytes of address space in use. FAILED: the bytes of the message that follows. STARTED: with the worker's
# connection. ENDED: with its exit code, minus the signal as in `subprocess`.

_PR_SET_CHILD_SUBREAPER = 36
_ORPHAN_SECONDS = 5.0
_LOOK_SECONDS = 0.5
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ibtpo.rewards.server import main; main()"


def command(path: list[str], descriptor: int, modules: tuple[str, ...], memory_mb: int) -> list[str]:
    """The command line of a server. path: of imports. descriptor: its end of the control connection."""
    return [sys.executable, "-c", BOOT, json.dumps(path), str(descriptor), json.dumps(modules), str(memory_mb)]


def main() -> None:
    """The server; its arguments are those of `command`."""
    descriptor, modules, memory_mb = int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    sys.argv[1:] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if worker.IS_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        for module in modules:
            worker.load(module)
    except BaseException as error:
        message = one_line(error).encode()
        control.sendall(REPORT.pack(FAILED, len(message), 0) + message)
        return
    gc.collect()
    gc.freeze()  # what was imported is shared by all workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # by way of `run`'s end
    with contextlib.suppress(OSError):  # the program is gone
        control.sendall(REPORT.pack(READY, _address_space(), 0))
        _Server(control, memory_mb).run()


class _Server:
    def __init__(self, control: socket.socket, memory_mb: int):
        self.control, self.memory_mb = control, memory_mb
        self.workers: set[int] = set()
        self.children, wakeup = os.pipe()
        for end in (self.children, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serves until the program closes the connection, and leaves no process behind."""
        try:
            while True:
                # A daemon comes here without a signal, so that the timeout counts.
                ready, _, _ = select.select([self.control.fileno(), self.children], [], [], _LOOK_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    while os.read(self.children, 4096):
                        pass
                self.bury()
                if self.control.fileno() in ready:
                    request = self.control.recv(REQUEST.size, socket.MSG_WAITALL)
                    if len(request) < REQUEST.size:
                        return
                    kind, pid = REQUEST.unpack(request)
                    if kind == FORK:
                        self.fork()
                    elif pid in self.workers:
                        _kill_group(pid)
        finally:
            for pid in self.workers:
                _kill_group(pid)
            self.workers = set()
            until = time.monotonic() + _ORPHAN_SECONDS
            while self.kill_orphans() and time.monotonic() < until:
                time.sleep(0.001)

    def fork(self) -> None:
        ours, theirs, own = *socket.socketpair(), os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                self.control.close()
                theirs.close()
                worker.serve(ours, self.memory_mb, own)
            finally:
                os._exit(1)  # whatever was raised: this is no second server
        ours.close()
        self.workers.add(pid)
        socket.send_fds(self.control, [REPORT.pack(STARTED, pid, 0)], [theirs.fileno()])
        theirs.close()

    def bury(self) -> None:
        """Reports the workers that have ended, and ends what belonged to them."""
        for pid in sorted(self.workers):
            # It is left a zombie until its group is killed, so that its number cannot be another's.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill_group(pid)
                _, status = os.waitpid(pid, 0)
                self.workers.discard(pid)
                self.control.sendall(REPORT.pack(ENDED, pid, os.waitstatus_to_exitcode(status)))
        self.kill_orphans()

    def kill_orphans(self) -> bool:
        """Kills every child that is no worker, and says whether there were any: what one leaves behind comes here when
        it has ended, which is a signal."""
        orphans = set(_children()) - self.workers
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return bool(orphans)


def _kill_group(pid: int) -> None:
    """Kills a worker and its process group; the worker is a child that has not been waited for."""
    for kill in (os.killpg, os.kill):  # it may not yet lead a group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _children() -> Iterator[int]:
    """The process ids of this process's children; none where there is no /proc."""
    own = os.getpid()
    try:
        yield from map(int, pathlib.Path(f"/proc/self/task/{own}/children").read_text().split())
        return
    except OSError:
        pass
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(file.read_text().rpartition(")")[2].split()[1]) == own:
                yield int(file.parent.name)


def _address_space() -> int:
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()
