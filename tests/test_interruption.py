"""A run that is asked to end: what it saves, what it says, and that the resumed run equals an unbroken one."""

import copy
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.faults.harness import Process, train_command
from ibtpo import checkpoints, metrics
from ibtpo import train as train_lib
from ibtpo.interruption import GIVE_UP, STOP, GivenUp, Interruption


class AskedAt(Interruption):
    """Asked to stop at the given point of a kind: sampling or between_updates, counted from the first update's end,
    or evaluating."""

    def __init__(self, kind, number, *, grace=1000.0):
        super().__init__()
        self._kind, self._number, self._calls, self._grace_wanted = kind, number, 0, grace

    def _at(self, kind):
        if kind != self._kind or (self.early and kind != "evaluating"):
            return
        self._calls += 1
        if self._calls == self._number:
            self.grace = self._grace_wanted
            self.ask("SIGNAL")
            if self._give_up is not None and self._give_up <= time.monotonic():  # as the listening thread would
                self.request(GIVE_UP, self.reason)

    def sampling(self):
        self._at("sampling")
        super().sampling()

    def evaluating(self):
        self._at("evaluating")
        super().evaluating()

    def between_updates(self):
        self._at("between_updates")
        return super().between_updates()


def learning(workdir):
    """Its rows without the times."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics.read(workdir)]


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config(eval__every=2, checkpoint__every=3, log__tensorboard=True, train__steps=5)


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    train_lib.train(config, str(workdir))
    return learning(workdir)


# Where each start is asked to stop, from the checkpoint that the one before it left, and what it saves.
STOPS = [
    ("evaluating", 2, 1000, 0),  # the evaluation before the first update
    ("evaluating", 2, 1000, 0),  # once more: the run owes it
    ("sampling", 2, 0, 1),  # no time: the sampling of update 2 is given up
    ("sampling", 2, 1000, 3),  # update 3 is finished
    ("between_updates", 1, 1000, 4),
    ("evaluating", 2, 1000, 5),  # the evaluation after the last update
]


def test_a_run_that_was_stopped_again_and_again_ends_like_an_unbroken_one(config, unbroken, tmp_path, capsys):
    for kind, number, grace, saved in STOPS:
        train_lib.train(config, str(tmp_path), AskedAt(kind, number, grace=grace))
        [(step, folder)] = re.findall(
            r"SIGNAL: saved update (\d) in (.*); run the same command to continue", capsys.readouterr().out
        )
        assert checkpoints.latest_step(folder) == int(step) == saved
        done = learning(tmp_path)
        assert len(done) < len(unbroken) and done == unbroken[: len(done)]
        assert all(row["step"] <= saved for row in done)
    # In a new workdir, which has no row of an update, the evaluation that is owed is made up for as well.
    elsewhere = copy.deepcopy(config)
    elsewhere.checkpoint.dir = str(tmp_path / "checkpoints")
    train_lib.train(elsewhere, str(tmp_path / "new"))
    assert [(row["step"], "eval/k" in row) for row in learning(tmp_path / "new")] == [(5, True)]
    assert "report: " in capsys.readouterr().out
    train_lib.train(config, str(tmp_path))
    assert learning(tmp_path) == unbroken
    train_lib.train(config, str(tmp_path))  # which owes nothing any more
    assert "is finished: 5 of 5" in capsys.readouterr().out and learning(tmp_path) == unbroken


def test_points_are_counted_and_the_first_suitable_one_stops():
    interruption = Interruption()
    with interruption.update():
        interruption.sampling()
    assert not interruption.between_updates() and not interruption.early
    with interruption.lock:
        interruption.settle(STOP, interruption.count + 3, "another process")
    interruption.sampling()
    assert not interruption.between_updates()
    interruption.sampling()  # to stop is not to give up
    with pytest.raises(GivenUp):
        interruption.evaluating()
    assert interruption.between_updates() and interruption.reason == "another process"
    interruption.request(GIVE_UP, "later")
    with pytest.raises(GivenUp):
        interruption.sampling()


# The signals themselves, to a process whose main thread is in a call of C.
PROGRAM = """
import hashlib, sys, time
from ibtpo.interruption import GivenUp, Interruption
early, grace = sys.argv[1] == "early", float(sys.argv[2])
with Interruption().listening() as interruption:
    interruption.early, interruption.grace = early, grace
    interruption._updates.append(1.0)
    print("ready", flush=True)
    if grace < 0:
        hashlib.pbkdf2_hmac("sha512", b"", b"", 10**9)
    with interruption.update():
        try:
            for _ in range(600):
                interruption.sampling()
                time.sleep(0.1)
                if interruption.reason and grace > 1:
                    break
        except GivenUp:
            print("given up")
    print(f"{interruption.reason}: {interruption.between_updates()}")
"""


def signalled(repo_root, arguments, *numbers, pause=0.3):
    """(exit code, lines after "ready") of the program that gets the signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=repo_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(pause)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    return process.returncode, output.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_there_is_anything_to_save_a_signal_ends_at_once(repo_root, number):
    code, [line] = signalled(repo_root, ["early", "-1"], number)
    assert code == 0 and line.startswith(f"{number.name}: nothing new to save yet; run the same command")


@pytest.mark.parametrize("first, second", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_at_once(repo_root, first, second):
    code, [line] = signalled(repo_root, ["late", "-1"], first, second)
    assert code == 128 + second and line == f"{second.name} again: ended at once; what was saved is intact"


def test_a_signal_that_comes_twice_at_once_is_one(repo_root):
    """From a terminal and from a launcher."""
    code, lines = signalled(repo_root, ["late", "60"], signal.SIGINT, signal.SIGINT, pause=0.01)
    assert code == 0 and lines == ["SIGINT: True"]


@pytest.mark.parametrize("grace", ["0.2", "0.9"])
def test_the_grace_is_enforced(repo_root, grace):
    """By the estimate (an update took a second) or by the timer."""
    code, lines = signalled(repo_root, ["late", grace], signal.SIGTERM)
    assert code == 0 and lines == ["given up", "SIGTERM: True"]


def test_ctrl_c_of_the_command_saves_and_leaves_nobody(tmp_path):
    """As a terminal sends it, to the workers too; then the lock is free and the run goes on. Before, while it loads."""
    workdir = tmp_path / "run"
    command = train_command(workdir, {"train.steps": 4000, "eval.every": 0})
    with Process(command) as process:
        time.sleep(1.5)
        process.interrupt()
        ended = process.finish(60)
    assert ended.code == 0 and len(ended.lines) == 1 and not ended.left, ended
    last = 0
    for interrupt in (Process.interrupt, lambda p: p.send(signal.SIGTERM)):
        with Process(command) as process:
            until = time.monotonic() + 240
            while "updates " not in process.output() and process.running and time.monotonic() < until:
                time.sleep(0.05)
            interrupt(process)
            ended = process.finish(300)
        assert ended.code == 0 and not ended.left, ended
        found = re.fullmatch(r"SIG(?:INT|TERM): saved update (\d+) in .*/run/checkpoints; .*", ended.lines[-1])
        assert found and "Traceback" not in ended.output, ended.output
        assert int(found[1]) > last and (f"Continuing at update {last} of" in ended.output) == (last > 0)
        last = int(found[1])
        assert checkpoints.latest_step(workdir) == last
        assert not [name for name in os.listdir(workdir) if name.startswith("run.lock")]


def test_signals_are_taken_back_from_a_library(repo_root):
    """JAX's coordination service takes SIGTERM, in C."""
    program = (
        PROGRAM.split("with Interruption")[0]
        + """
import ctypes, signal
with Interruption().listening() as interruption:
    interruption.early = False
    ctypes.CDLL(None).signal(15, None)
    interruption.keep()
    print("ready", flush=True)
    while not interruption.reason:
        time.sleep(0.01)
    print(interruption.reason)
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "late", "1"], cwd=repo_root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "SIGTERM\n" and process.returncode == 0
    finally:
        process.kill()


AT_THE_END = """
import atexit, sys, time
from ibtpo.interruption import Interruption

class Late:
    def __del__(self):  # while the interpreter ends, when handlers of Python are gone
        print("ready", flush=True)
        time.sleep(1)

late = Late()
with Interruption().listening(to_the_end=True):
    pass
sys.exit(3)
"""


def test_a_signal_behind_the_end_of_a_run_changes_no_exit_code(repo_root):
    command = [sys.executable, "-c", AT_THE_END]
    with subprocess.Popen(command, cwd=repo_root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
