"""Small training runs as processes: started, watched, killed, compared."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "jax_cache"
# Over configs/tiny.py: an update takes a fifth of a second, and every phase of a run comes soon.
SMALL: dict[str, Any] = {
    "model.path": ROOT / "assets" / "qwen3-tiny",
    "data.dir": ROOT / "build" / "tfds",
    "data.limit": 64,
    "tree.initial": 3,
    "tree.rounds": 3,
    "sampling.max_new_tokens": 48,
    "sampling.slots": 3,
    "sampling.questions_in_flight": 4,
    "train.steps": 6,
    "train.questions_per_step": 4,
    "train.row_tokens": 320,
    "train.rows_per_step": 2,
    "eval.every": 3,
    "eval.questions": 6,
    "eval.samples": 2,
    "checkpoint.every": 2,
    "reward.workers": 1,
}
_MARK = "IBTPO_FAULTS_MARK"  # an environment variable that all descendants of a process inherit


@dataclass
class Ended:
    """A process that is over. code: its exit code, None where it hung and was killed. left: its descendants that were
    still alive, and were killed."""

    code: int | None
    seconds: float
    output: str
    left: list[int] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Of its output, without the empty ones."""
        return [line for line in self.output.splitlines() if line.strip()]


class Process:
    """A command that runs in a session of its own. Use `finish`, or leave the context, to have all of it ended.

    Args:
      arguments: after the interpreter, e.g. ["-m", "ibtpo.train", ...].
      environment: variables to set beside those of this process.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None):
        self._mark = uuid.uuid4().hex
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        variables = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "HF_HUB_OFFLINE": "1",
            _MARK: self._mark,
        }
        self.began = time.monotonic()
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=variables | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        if not self._output.closed:
            self.kill()
            self.finish(10)

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """What it has printed so far."""
        self._output.flush()
        with open(f"/proc/self/fd/{self._output.fileno()}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def send(self, number: int) -> None:
        """Sends the main process a signal; nothing happens where it has ended."""
        if self.running:
            self.popen.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the whole group."""
        if self.running:
            os.killpg(self.popen.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the main process alone."""
        self.send(signal.SIGKILL)

    def descendants(self) -> list[int]:
        """Those alive, in whatever session they are now."""
        return [pid for pid in _marked(self._mark) if pid != self.popen.pid]

    def finish(self, timeout: float, grace: float = 3.0) -> Ended:
        """Waits for its end; one that takes longer hung, and is killed with all that it started.

        grace: seconds that its descendants have to end after it.
        """
        try:
            code: int | None = self.popen.wait(max(0.0, self.began + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
            self.popen.kill()
            self.popen.wait()
        seconds, until = time.monotonic() - self.began, time.monotonic() + grace
        while (left := self.descendants()) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        output = self.output()
        self._output.close()
        return Ended(code, seconds, output, left)


def _marked(mark: str) -> Iterator[int]:
    """The processes whose environment has the mark, zombies left out."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{_MARK}={mark}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                yield int(entry.name)
        except OSError:
            continue  # it ended meanwhile


def train_command(workdir: pathlib.Path | str, changes: dict[str, Any] | None = None) -> list[str]:
    """The training command of a small run; changes: dotted keys of its configuration."""
    flags = [f"--config.{key}={value}" for key, value in (SMALL | (changes or {})).items()]
    return ["-m", "ibtpo.train", "--config=configs/tiny.py", f"--workdir={workdir}", *flags]


def run(arguments: list[str], timeout: float = 300.0, environment: dict[str, str] | None = None) -> Ended:
    """A command, from its start to its end."""
    with Process(arguments, environment) as process:
        return process.finish(timeout)


@contextmanager
def folder() -> Iterator[pathlib.Path]:
    """A temporary folder."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="ibtpo-faults-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def rows(workdir: pathlib.Path) -> list[dict]:
    """What a run has written of itself, without the times."""
    from ibtpo import metrics

    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in metrics.read(workdir)]


def arrays(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Every parameter of a checkpoint (default: the newest) as a NumPy array, by name."""
    import jax
    import numpy as np

    from ibtpo import checkpoints, config, policy

    saved = config.resolve(config.load(str(workdir / "config.json")))
    like = policy.load_policy(saved).params
    found = jax.tree_util.tree_leaves_with_path(checkpoints.load_params(workdir, like, step))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """In words, what two runs that should be equal differ in, bit by bit: rows of metrics and newest parameters."""
    import numpy as np

    found, (a, b) = [], (rows(one), rows(other))
    steps = [[row["step"] for row in each] for each in (a, b)]
    if steps[0] != steps[1]:
        return [f"rows of the steps {steps[0]} and {steps[1]}"]
    for x, y in zip(a, b):
        names = [n for n in x.keys() | y.keys() if not np.array_equal(x.get(n), y.get(n), equal_nan=_number(x.get(n)))]
        if names:
            found.append(f"step {x['step']}: {', '.join(sorted(names))}")
    left, right = arrays(one), arrays(other)
    return found + [name for name in left if not np.array_equal(left[name], right[name])]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))
