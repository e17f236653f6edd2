"""One run at a time in a folder: a file that names the run which has it.

The file `run.lock` holds host, process and start time of its run. While the run lives, it renews the file's time
stamp; so the file works where flock does not, on storage that several hosts share. A lock is stale if its process is
gone (told by process id and start time, on the same machine), or if it has not been renewed for some time (elsewhere).
Ages are told by the storage's own clock: that of a file written just now.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from ibtpo.errors import UserError, one_line

NAME = "run.lock"
_GONE = "its process is gone"


@dataclass(frozen=True)
class Times:
    """Seconds. renew: between signs of life. stale: without one, after which the run of another machine is gone."""

    renew: float
    stale: float


LOCAL = Times(10.0, 60.0)  # a folder, which may be on a network
REMOTE = Times(60.0, 300.0)  # a URL: every sign of life is a request


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. machine: where `pid` and `started` mean this process and no other; since: for readers."""

    host: str
    pid: int
    machine: str
    started: str
    since: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return cls(socket.gethostname(), pid, _machine(), _started(pid) or "", since, uuid.uuid4().hex)

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """None where the text is not a whole lock."""
        try:
            fields = json.loads(text)
            owner = cls(**{name: kind(fields[name]) for name, kind in cls.__annotations__.items()})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return owner if owner.pid > 0 else None

    def is_gone(self) -> bool | None:
        """Whether its process has ended; None: it is of another machine."""
        if self.machine != _machine():
            return None
        started = _started(self.pid)
        return started != self.started if started else started is None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _machine() -> str:
    """The running system, and the name space of its process ids: containers of one host have their own."""
    found = []
    for read in (
        lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        with contextlib.suppress(OSError):
            found.append(read())
    return " ".join(found) or socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process started, as its system tells it, so that another one of the same id has another start; None where
    there is none, or only a zombie; "" where this is not told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # of another user
    if sys.platform != "linux":
        return subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    try:
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""  # /proc may hide the processes of other users
    return None if state in "ZX" else fields[18]


class FolderLock:
    """The lock of one folder, made if missing; a path or a URL.

    Args:
      folder: its path or URL.
      say: prints one line, where a stale lock is taken over.
      on_lost: called by a thread if another run has taken the lock while this one could not renew it.

    `acquire` raises UserError if a run that lives holds it, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        say: Callable[[str], None] = print,
        on_lost: Callable[[str], None] | None = None,
    ):
        self._store = _Remote(folder) if "://" in os.fspath(folder) else _Local(folder)
        self._say, self._on_lost = say, on_lost
        self._owner: Owner | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        owner = Owner.this_process()
        text = json.dumps(asdict(owner))
        try:
            for _ in range(20):  # others may take or release it at the same time
                if self._store.create(text):
                    time.sleep(self._store.settle)
                if self._store.read() == text:
                    self._owner = owner
                    break
                self._clear(text)
            else:
                raise UserError(f"{self._store}: several runs start at once: start one alone")
        except OSError as error:
            raise UserError(
                f"the folder {self._store.folder} cannot be written ({error.strerror or one_line(error)}): choose "
                "another, or make it writable"
            ) from error
        self._thread = threading.Thread(target=self._renew, name="ibtpo-lock", daemon=True)
        self._thread.start()

    def _clear(self, own: str) -> None:
        """Puts a stale lock away; raises UserError if the one that is there is not stale."""
        text = self._store.read()
        if text is None or text == own:
            return  # released just now, or given back by another run that looked at it
        owner, age = Owner.parse(text), self._store.age()
        if age is None:
            return
        gone, limit = owner.is_gone() if owner else None, self._store.times.stale
        if gone is False or (gone is None and age < limit):
            raise UserError(self._refusal(owner, gone, age))
        if self._store.remove(text):
            what = f"the lock of {owner}" if owner else f"the damaged lock {self._store}"
            why = _GONE if gone else f"it gave no sign of life for {age:.0f} seconds"
            self._say(f"{self._store.folder}: took over {what}: {why}")

    def _refusal(self, owner: Owner | None, gone: bool | None, age: float) -> str:
        what = f"is in use by {owner}" if owner else f"is locked by {NAME}, which is damaged"
        if gone is False:
            return f"{self._store.folder} {what}: wait for that run to end, or choose another --workdir"
        return (
            f"{self._store.folder} {what} (last sign of life {max(age, 0):.0f} seconds ago): wait for that run to end; "
            f"one without a sign of life for {self._store.times.stale:.0f} seconds is taken to be gone"
        )

    def _is_ours(self) -> bool:
        text = self._store.read()
        return text is not None and Owner.parse(text) == self._owner

    def _renew(self) -> None:
        while not self._ended.wait(self._store.times.renew):
            with contextlib.suppress(Exception):  # storage that is away for a while: the next time may do
                if self._is_ours():
                    self._store.touch()
                elif not self._ended.is_set() and self._on_lost is not None:
                    text = self._store.read()
                    other = Owner.parse(text) if text else None
                    self._on_lost(f"{self._store}: another run has taken this lock" + f" ({other})" * bool(other))
                    return

    def release(self) -> None:
        """Gives the lock back, if it is still this run's; safe to call twice."""
        self._ended.set()
        owner, thread = self._owner, self._thread
        if owner is None:
            return
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)  # it may wait for storage that is away
        with contextlib.suppress(Exception):
            if self._is_ours():
                self._store.delete()
        self._owner = None

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()


class _Local:
    """A lock file in a folder that this system has mounted, perhaps over a network."""

    times = LOCAL
    settle = 0.05  # seconds after which a run that took a stale lock for this one's has put it back

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._path = os.path.join(self.folder, NAME)

    def __str__(self) -> str:
        return self._path

    def create(self, text: str) -> bool:
        """False if there is one. The file appears with all that is in it: a link is made of it, which no two can."""
        os.makedirs(self.folder, exist_ok=True)
        draft = self._draft(text)
        try:
            return self._appear(draft, text)
        finally:
            os.unlink(draft)
            self._tidy()

    def _appear(self, draft: str, text: str) -> bool:
        try:
            os.link(draft, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(file, "w") as opened:
                opened.write(text)
        return True

    def _tidy(self) -> None:
        """Deletes the drafts of runs that were killed as they began."""
        for path in pathlib.Path(self.folder).glob(f"{NAME}.*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > self.times.stale:
                    path.unlink()

    def _draft(self, text: str) -> str:
        path = f"{self._path}.{uuid.uuid4().hex}"
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return path

    def read(self) -> str | None:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def age(self) -> float | None:
        """Seconds since the last sign of life; None: there is no lock."""
        draft = self._draft("")
        try:
            return os.stat(draft).st_mtime - os.stat(self._path).st_mtime
        except FileNotFoundError:
            return None
        finally:
            os.unlink(draft)

    def touch(self) -> None:
        os.utime(self._path)

    def delete(self) -> None:
        os.unlink(self._path)

    def remove(self, text: str) -> bool:
        """Deletes the lock with this text; False if another one is there. Of two that try, one gets the file."""
        grave = f"{self._path}.{uuid.uuid4().hex}"
        try:
            os.rename(self._path, grave)
        except FileNotFoundError:
            return False
        try:
            with open(grave, encoding="utf-8", errors="replace") as file:
                found = file.read()
            if found != text:  # a new one, taken in the meantime: it goes back
                self._appear(grave, found)
            return found == text
        finally:
            os.unlink(grave)


class _Remote:
    """A lock object under a URL. Object stores have no file that only one can make: who finds its own text there a
    moment after writing has the lock."""

    times = REMOTE
    settle = 2.0  # seconds until the text that was written last is what all read

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._folder = epath.Path(self.folder)
        self._path = self._folder / NAME

    def __str__(self) -> str:
        return f"{self.folder.rstrip('/')}/{NAME}"

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except FileNotFoundError:
            return None
        except Exception as error:
            raise OSError(one_line(error)) from error

    def create(self, text: str) -> bool:
        if self.read() is not None:
            return False
        self._guarded(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        self._guarded(lambda: self._path.write_text(text))
        return True

    def read(self) -> str | None:
        return self._guarded(self._path.read_text)

    def age(self) -> float | None:
        draft = self._folder / f"{NAME}.{uuid.uuid4().hex}"
        self._guarded(lambda: draft.write_text("now"))
        try:
            now, then = self._guarded(lambda: draft.stat().mtime), self._guarded(lambda: self._path.stat().mtime)
        finally:
            self._guarded(draft.unlink)
        return None if now is None or then is None else now - then

    def touch(self) -> None:
        self._path.write_text(self._path.read_text())

    def delete(self) -> None:
        self._path.unlink()

    def remove(self, text: str) -> bool:
        if self.read() != text:
            return False
        self._guarded(self._path.unlink)
        return True


@contextlib.contextmanager
def locked(
    folders: list[str], *, say: Callable[[str], None] = print, on_lost: Callable[[str], None] | None = None
) -> Iterator[Callable[[], None]]:
    """The locks of several folders, those that are the same once; see `FolderLock`. Yields a function that gives them
    back, for an end without leaving the context."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        """A run that is gone has left all of its locks: the first line says so."""
        owner = line.partition(": took over ")[2] or line
        if owner not in said:
            said.add(owner)
            say(line)

    different = {f if "://" in f else os.path.realpath(f): f for f in folders}
    locks = [FolderLock(folder, say=say_once, on_lost=on_lost) for folder in different.values()]

    def release() -> None:
        for lock in locks:
            lock.release()

    try:
        for lock in locks:
            lock.acquire()
        yield release
    finally:
        release()
