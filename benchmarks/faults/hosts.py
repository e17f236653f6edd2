"""Two hosts as two processes: one is lost, fails or is asked to stop. And two runs in one folder."""

import pathlib
import re
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from benchmarks.faults.harness import Ended, Process, folder, train_command
from benchmarks.goals import make_goal

TIMEOUT = 10.0  # train.host_timeout, seconds
CHANGES = {
    "train.steps": 400,
    "train.host_timeout": TIMEOUT,
    "train.rows_per_step": 4,
    "sampling.slots": 4,
    "eval.every": 0,
    "checkpoint.every": 100,
    "log.tensorboard": False,
}
_GONE = re.compile(r"error: process \d \(host .*\) is gone.*; run the same command on all hosts to continue.*")
# What happens to the process of a number, once both have done an update.
LOSSES = [("killed", 1, signal.SIGKILL), ("killed", 0, signal.SIGKILL), ("stopped", 1, signal.SIGSTOP)]


class Job:
    """A training run of two processes with a device each. own: changes of each one's configuration."""

    def __init__(self, place: pathlib.Path, changes: dict[str, Any], own: tuple[dict, dict] = ({}, {})):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            Process(
                train_command(place / f"run-{i}", CHANGES | {"checkpoint.dir": place / "saved"} | changes | own[i]),
                {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(i),
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
                },
            )
            for i in (0, 1)
        ]

    def wait_for_updates(self) -> None:
        until = time.monotonic() + 400
        while time.monotonic() < until and all(p.running for p in self.processes):
            if all("updates " in p.output() for p in self.processes):
                return
            time.sleep(0.05)
        raise RuntimeError(f"no update: {[p.output()[-1000:] for p in self.processes]}")

    def finish(self, seconds: float) -> list[Ended]:
        return [p.finish(time.monotonic() - p.began + seconds) for p in self.processes]


def _lines(ended: Ended, after: str = "updates ") -> list[str]:
    """What a process said after its progress, but for Gloo's greetings."""
    lines = [line for line in ended.lines if "[Gloo]" not in line]
    last = max((i for i, line in enumerate(lines) if line.startswith(after)), default=-1)
    return lines[last + 1 :]


def lose(place: pathlib.Path, lost: int, number: signal.Signals) -> tuple[float, bool, list[str]]:
    """(seconds until the other has ended, whether as it should, its last lines)."""
    job = Job(place, {})
    job.wait_for_updates()
    job.processes[lost].send(number)
    sent = time.monotonic()
    other = job.processes[1 - lost]
    ended = other.finish(sent - other.began + TIMEOUT + 60)
    seconds = time.monotonic() - sent
    job.processes[lost].kill()
    job.processes[lost].finish(1e4)
    lines = _lines(ended)
    return seconds, ended.code == 1 and len(lines) == 1 and bool(_GONE.fullmatch(lines[0])) and not ended.left, lines


def fail(place: pathlib.Path, failing: int) -> tuple[bool, list]:
    """An error of one process alone, which has other inputs. Whether both ended as they should."""
    own: list[dict] = [{}, {}]
    own[failing] = {"model.path": place / "nowhere"}
    ends = Job(place, {}, (own[0], own[1])).finish(200)
    lines = [_lines(end) for end in ends]
    right = all(end.code == 2 and len(said) == 1 and "nowhere" in said[0] for end, said in zip(ends, lines))
    return right, lines


def stop(place: pathlib.Path, asked: int) -> tuple[bool, list]:
    """SIGTERM to one process: both save the same update, once, and end with 0."""
    job = Job(place, {})
    job.wait_for_updates()
    job.processes[asked].send(signal.SIGTERM)
    ends = job.finish(100)
    lines = [_lines(end) for end in ends]
    saved = [path.name for path in (place / "saved").iterdir() if path.name.isdigit()]
    found = re.match(r"SIGTERM on process \d \(host .*\): saved update (\d+) in", lines[0][-1]) if lines[0] else None
    right = [end.code for end in ends] == [0, 0] and lines[0] == lines[1] and found and saved == [found[1]]
    return bool(right), lines


def share(place: pathlib.Path) -> list[tuple[str, bool, str]]:
    """Runs in one folder: [(what, whether it ended as it should, its last line)]."""
    changes, found = {"train.steps": 4000, "eval.every": 0}, []

    def second(what: str, command: list[str], words: str) -> None:
        with Process(command) as process:
            ended = process.finish(100)
        right = ended.code == 2 and len(ended.lines) == 1 and words in ended.lines[0]
        found.append((what, right, ended.lines[-1] if ended.lines else ""))

    with Process(train_command(place / "one", changes)) as first:
        while first.running and "updates " not in first.output():
            time.sleep(0.05)
        second("a second run in the workdir", train_command(place / "one", changes), "is in use by process")
        shared = changes | {"checkpoint.dir": place / "one" / "checkpoints"}
        second("another workdir, the same checkpoints", train_command(place / "two", shared), "is in use by process")
        first.kill()
        first.finish(1e4)
    with Process(train_command(place / "one", changes)) as third:
        while third.running and "updates " not in third.output():
            time.sleep(0.05)
        third.send(signal.SIGTERM)
        ended = third.finish(200)
    taken = [line for line in ended.lines if "took over the lock" in line]
    found.append(("after kill -9 at once", ended.code == 0 and len(taken) == 1, ended.lines[-1]))
    return found


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    """The campaign; `quick`: one loss and the runs in one folder."""
    longest, right, found = 0.0, [], []
    for what, index, number in LOSSES[:1] if quick else LOSSES:
        with folder() as place:
            seconds, good, lines = lose(place, index, number)
        longest = max(longest, seconds)
        right.append(good)
        found.append((f"process {index} {what}", seconds, lines))
        say(f"process {index} {what}: the other ended {seconds:.1f} s later: {lines}")
    others = [] if quick else [("fails", fail, 0), ("fails", fail, 1), ("is asked to stop", stop, 1)]
    together = []
    for what, action, index in others:
        with folder() as place:
            good, said = action(place, index)
        together.append(good)
        say(f"process {index} {what}: {'right' if good else said}")
    with folder() as place:
        shared = share(place)
    for what, good, line in shared:
        say(f"{what}: {'right' if good else 'WRONG'}: {line}")
    goals = [
        make_goal("a lost host ends the other in one line", sum(right) / len(right), 1.0, at_least=True),
        make_goal(f"seconds until then, host_timeout {TIMEOUT:g}", longest, TIMEOUT + 2, at_least=False),
        make_goal("two runs in one folder, right", sum(g for _, g, _ in shared) / len(shared), 1.0, at_least=True),
    ]
    if together:
        share_right = sum(together) / len(together)
        goals.append(make_goal("an error or a signal of one host ends both", share_right, 1.0, at_least=True))
    return {"goals": goals, "figures": {"lost": found, "shared": shared}}
