"""What a reward starts, or does to its worker, ends with its answer: other answers keep their rewards, and nothing is
left alive. The hazards are those of the campaign (benchmarks/faults)."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.faults import harness, hostile_rewards
from benchmarks.faults import rewards as campaign
from ibtpo.errors import UserError
from ibtpo.rewards import KINDS
from ibtpo.rewards.pool import Grader

QUICK = [name for name, (_, outcome) in hostile_rewards.HAZARDS.items() if outcome != "timeout" and name != "flood"]
RIGHT = ("a", "a")


@pytest.fixture
def hostile(monkeypatch):
    """The kind "hostile" alone, whose workers start at once."""
    monkeypatch.syspath_prepend(str(harness.ROOT))
    kinds = dict(KINDS)
    KINDS.clear()
    KINDS["hostile"] = hostile_rewards
    yield
    KINDS.clear()
    KINDS.update(kinds)  # in their order


def children(pid: int) -> set[int]:
    try:
        return set(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return {-1}  # it has just ended


def server_of(grader: Grader) -> int:
    """Its process id; 0 where there is none at the moment."""
    return getattr(grader._pool._process, "pid", 0)


def eventually(test) -> bool:
    end = time.monotonic() + 30
    while not test() and time.monotonic() < end:
        time.sleep(0.02)
    return test()


def test_every_hazard_has_its_outcome_and_harms_no_other_answer(hostile):
    """Of those that take no time: by `campaign.try_hazards` in a program of their own, all of them after one another
    on the same workers."""
    wrong, _ = campaign.try_hazards(QUICK, 1)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(hostile_rewards.HAZARDS) - set(QUICK)))
def test_every_slow_hazard(name):
    assert campaign.try_hazards([name], 1)[0] == []


@pytest.mark.parametrize("names", [["daemon", "sleep"], ["fork bomb"]])
def test_nothing_outlives_a_program_that_is_killed(names):
    assert campaign.kill_amid(names) == []


@pytest.mark.parametrize("name", ["child", "child in a session", "daemon", "fork that returns twice"])
def test_what_an_answer_started_ends_while_the_grader_goes_on(hostile, name):
    with Grader("hostile", workers=2, timeout=60.0) as grader:
        assert grader.grade([(name, ""), RIGHT]) == [0.25, 1.0]
        server = grader._pool._process.pid
        # The worker that was left with a child has gone, and its child with it.

        def clean() -> bool:
            workers = grader._pool.pids
            return len(workers) == 2 and children(server) == set(workers) and not any(map(children, workers))

        assert eventually(clean)
        assert grader.grade([RIGHT] * 4) == [1.0] * 4
        assert grader.counts["crashed"] == grader.counts["timeout"] == 0


def test_a_worker_that_exits_as_if_all_were_well_is_a_crash_at_once(hostile):
    """An answer that waited for its time limit would be a timeout."""
    with Grader("hostile", workers=1, timeout=600.0) as grader:
        assert grader.grade([("exit 0", ""), RIGHT] * 10) == [0.0, 1.0] * 10
        assert grader.counts == {"graded": 20, "fast": 0, "slow": 10, "timeout": 0, "crashed": 10}


def test_workers_ignore_interrupts_and_lead_sessions_of_their_own(hostile):
    with Grader("hostile", workers=2, timeout=60.0) as grader:
        assert grader.grade([RIGHT]) == [1.0]
        assert eventually(lambda: len(grader._pool.pids) == 2)
        workers, server = grader._pool.pids, server_of(grader)
        assert eventually(lambda: [os.getsid(pid) for pid in workers] == workers)
        assert os.getsid(server) == server
        for pid in [*workers, server]:
            os.kill(pid, signal.SIGINT)
        assert grader.grade([RIGHT] * 4) == [1.0] * 4
        assert grader._pool.pids == workers and grader._pool._process.pid == server


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_killed_is_replaced_and_its_answers_are_asked_again(hostile, number):
    with Grader("hostile", workers=2, timeout=60.0) as grader:
        for _ in range(3):
            assert grader.grade([RIGHT] * 3) == [1.0] * 3
            workers, server = grader._pool.pids, server_of(grader)
            os.kill(server, number)
            assert eventually(lambda old=server: grader.grade([RIGHT]) == [1.0] and server_of(grader) not in (old, 0))
            assert eventually(lambda pids=workers: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids))
        assert grader.counts["graded"] == grader.counts["slow"]


def test_an_answer_that_takes_the_server_down_each_time_is_wrong_in_the_end(hostile):
    with Grader("hostile", workers=1, timeout=60.0) as grader:
        assert grader.grade([RIGHT]) == [1.0]
        assert grader.grade([("kill the server", ""), RIGHT]) == [0.0, 1.0]
        assert grader.counts["crashed"] == 1


def test_a_memory_limit_below_the_imports_is_said(hostile):
    message = r"reward\.memory_mb=8 is less than the \d+ MiB that a worker with its imports needs; raise it"
    with Grader("hostile", workers=1, memory_mb=8) as grader:
        for _ in range(2):  # and again
            with pytest.raises(UserError, match=message):
                grader.submit("a", "a").result(timeout=60)


def test_rewards_print_to_standard_error_and_read_nothing(tmp_path):
    """The program's output is its own."""
    script = tmp_path / "program.py"
    script.write_text(
        "import json, sys\n"
        f"sys.path.insert(0, {str(harness.ROOT)!r})\n"
        "from benchmarks.faults import hostile_rewards\n"
        "sys.argv[1:] = [json.dumps(dict(hazards=['flood'], times=1, workers=1, timeout=60.0, wait=0))]\n"
        "hostile_rewards.main()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()][1]["wrong"] == []
    assert len(done.stderr) > 2 * 2**20
