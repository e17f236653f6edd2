"""Several processes of one run: one is lost, fails or is asked to stop; all end, with one line that says why."""

import os
import re
import signal
import socket
import time

import pytest

from benchmarks.faults.harness import Process
from ibtpo import parallel

GONE = r"error: process {} \(host \S+\) is gone.*; run the same command on all hosts to continue from the newest"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Job:
    """Two processes of tests/host_program.py."""

    def __init__(self, mode, folder, processes=(0, 1)):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            Process(
                ["-m", "tests.host_program", mode, str(folder)],
                {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(index),
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                },
            )
            for index in processes
        ]

    def wait_for(self, step, seconds=120):
        """Until both have done so many updates."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = [self.folder / str(i) for i in (0, 1)]
            if all(file.exists() and int(file.read_text() or 0) >= step for file in found):
                return
            assert all(process.running for process in self.processes), [p.output() for p in self.processes]
            time.sleep(0.02)
        pytest.fail(f"no update {step}: {[p.output() for p in self.processes]}")

    def ends(self, seconds=60):
        """(codes, lines of each but Gloo's)."""
        ends = [p.finish(time.monotonic() - p.began + seconds) for p in self.processes]
        assert not any(end.left for end in ends)
        return [end.code for end in ends], [[x for x in end.lines if "[Gloo]" not in x] for end in ends]


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.slow)],
)
def test_a_lost_process_ends_the_other_with_one_line(tmp_path, lost, number):
    """The first one holds JAX's coordination service; JAX aborts the others of one that is killed."""
    job = Job("forever", tmp_path)
    job.wait_for(3)
    job.processes[lost].send(number)
    other = 1 - lost
    code = job.processes[other].popen.wait(60)
    job.processes[lost].kill()
    codes, lines = job.ends()
    assert code == codes[other] == 1, lines
    [line] = lines[other]
    assert re.match(GONE.format(lost), line), line


@pytest.mark.parametrize("kind, failing", [("fails", 0), ("fails", 1), *(slow("crashes", i) for i in (0, 1))])
def test_an_error_of_one_process_ends_the_other(tmp_path, kind, failing):
    job = Job(f"{kind} on {failing}", tmp_path)
    codes, lines = job.ends(90)
    code, text = (2, "a file that only this host lacks") if kind == "fails" else (1, "a fault of the program")
    assert codes == [code, code], lines
    assert text in lines[failing][-1]
    [line] = lines[1 - failing]
    what = "" if code == 2 else "ZeroDivisionError: "
    assert re.fullmatch(rf"error: process {failing} \(host \S+\) failed: {what}{text}", line)


def test_an_error_of_both_is_told_by_both(tmp_path):
    codes, lines = Job("fails on both", tmp_path).ends(90)
    assert codes == [2, 2], lines
    assert lines == [["error: a file that all lack"]] * 2


@pytest.mark.parametrize(
    "mode, to",
    [
        ("finish", (0, 1)),
        ("give up", (1,)),
        slow("finish", (0,)),
        slow("finish", (1,)),
        slow("give up", (0,)),
        slow("give up", (0, 1)),
    ],
)
def test_all_stop_at_the_same_update(tmp_path, mode, to):
    job = Job(mode, tmp_path)
    job.wait_for(4)
    for index in to:
        job.processes[index].send(signal.SIGTERM)
    codes, lines = job.ends()
    assert codes == [0, 0], lines
    assert lines[0] == lines[1]
    [line] = lines[0]
    found = re.fullmatch(r"SIGTERM on process (\d) \(host \S+\): stopped at (\d+)", line)
    assert found and int(found[1]) in to and int(found[2]) >= 4


def test_before_the_first_update_all_end_at_once(tmp_path):
    job = Job("early", tmp_path)
    until = time.monotonic() + 60
    while time.monotonic() < until and not all("[Gloo]" in p.output() for p in job.processes):
        time.sleep(0.05)
    time.sleep(0.5)
    job.processes[1].send(signal.SIGTERM)
    codes, lines = job.ends()
    assert codes == [0, 0], lines
    for index, [line] in enumerate(lines):
        assert line.startswith("SIGTERM: nothing new to save yet")
        assert line.endswith("(on process 1 (host " + os.uname().nodename + "))") == (index == 0)


def test_a_run_that_ends_well_says_nothing_more(tmp_path):
    codes, lines = Job("to the end", tmp_path).ends(90)
    assert codes == [0, 0] and lines == [["done at 3"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_others_never_come_says_so(tmp_path, index):
    codes, lines = Job("alone", tmp_path, processes=(index,)).ends(90)
    assert codes == [1], lines
    [[line]] = lines
    assert line.startswith("error: the 2 processes of this job did not all connect to 127.0.0.1:")
    assert "within 3 seconds: start the same command on every host" in line


def test_one_process_is_not_watched(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    assert parallel.job() is None
