"""Whatever a text does to its worker, it gets a float, and the next text is graded."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import types
from concurrent.futures import CancelledError

import pytest

import ibtpo.rewards
from ibtpo.errors import UserError
from ibtpo.rewards import KINDS, find_kind
from ibtpo.rewards.pool import Grader

SLOW_RIGHT = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")  # right, and only Math-Verify can tell
SLOW_WRONG = (r"\boxed{\sqrt{8}}", r"3\sqrt{2}")


@pytest.fixture
def hazards(monkeypatch):
    """Registers the kind "hazard" from a module that workers can import."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    import hazards

    monkeypatch.setitem(KINDS, "hazard", hazards)
    return hazards


def test_fast_answers_start_no_worker():
    with Grader() as grader:
        assert grader.grade([(r"\boxed{18}", "18"), ("#### 19", "18"), ("no answer", "18")]) == [
            1.0,
            0.0,
            0.0,
        ]
        assert grader._pool is None
        assert grader.counts == {"graded": 3, "fast": 3, "slow": 0, "timeout": 0, "crashed": 0}


def test_order_futures_counts_and_closing():
    with Grader(workers=2) as grader:
        assert grader.grade([SLOW_RIGHT, (r"\boxed{2}", "2"), SLOW_WRONG, SLOW_RIGHT] * 20) == [1.0, 1.0, 0.0, 1.0] * 20
        future = grader.submit(*SLOW_RIGHT)
        assert isinstance(future.result(timeout=30), float)
        assert grader.counts == {"graded": 81, "fast": 20, "slow": 61, "timeout": 0, "crashed": 0}
        assert grader.submit("x" * 20_000 + r" \boxed{7}", "7").result() == 1.0
    with pytest.raises(RuntimeError, match="closed"):
        grader.submit("1", "1")
    grader.close()


def test_endless_answers_are_limited_and_the_pool_goes_on():
    endless = [
        r"9^{9^{9^9}}",
        r"\sum_{n=1}^{10^{10}} \frac{1}{n^n}",
        "{" * 4000 + "5" + "}" * 4000,
    ]
    with Grader(workers=2, timeout=2.0) as grader:
        start = time.monotonic()
        pairs = [pair for text in endless for pair in ((rf"\boxed{{{text}}}", r"\sqrt{5}"), SLOW_RIGHT)]
        assert grader.grade(pairs) == [0.0, 1.0] * 3
        assert time.monotonic() - start < 60
        counts = grader.counts
        assert counts["timeout"] >= 2 and counts["graded"] == 6
        assert grader.grade([("{" * 100_000, "5"), (r"\boxed{" * 20_000, "5"), SLOW_RIGHT]) == [
            0.0,
            0.0,
            1.0,
        ]


def test_workers_that_die_or_fail_give_zero_and_the_pool_goes_on(hazards):
    with Grader("hazard", workers=2, timeout=1.0, memory_mb=512) as grader:
        bad = [("kill", ""), ("exit", "3"), ("memory", "4096"), ("recurse", ""), ("raise", "a")]
        good = ("a", "a")
        assert grader.grade([pair for text in bad for pair in (text, good)]) == [0.0, 1.0] * 5
        assert grader.counts == {"graded": 10, "fast": 0, "slow": 5, "timeout": 0, "crashed": 5}
        assert grader.grade([("sleep", "60"), ("alarm", ""), good]) == [0.0, 0.0, 1.0]
        assert grader.counts["timeout"] == 2
        assert grader.grade([("kill", "")] * 6 + [good] * 6) == [0.0] * 6 + [1.0] * 6
        assert grader.counts["graded"] == 25


def test_an_idle_worker_killed_from_outside_is_replaced(hazards):
    """The answers that follow must not notice."""
    with Grader("hazard", workers=1, timeout=2.0) as grader:
        for _ in range(3):
            assert grader.grade([("a", "a")]) == [1.0]
            (worker,) = grader._pool.pids
            os.kill(worker, signal.SIGKILL)
            futures = [grader.submit("a", "a") for _ in range(5)]
            assert [future.result(timeout=30) for future in futures] == [1.0] * 5
        assert grader.counts["crashed"] == 0


def test_closing_cancels_what_is_not_done(hazards):
    grader = Grader("hazard", workers=1, timeout=60.0)
    futures = [grader.submit("sleep", "60") for _ in range(3)]
    start = time.monotonic()
    grader.close()
    assert time.monotonic() - start < 15
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=1)


def test_workers_that_cannot_start_are_an_error_not_a_reward(hazards, monkeypatch):
    monkeypatch.setenv("IBTPO_TEST_BROKEN_IMPORT", "1")
    message = r"^no grading worker can be started: importing hazards, .* failed: ImportError: broken on purpose$"
    with Grader("hazard", workers=1) as grader, pytest.raises(UserError, match=message):
        grader.submit("a", "a").result(timeout=60)


def test_errors_name_the_way_out():
    with pytest.raises(UserError, match="'maths'; did you mean 'math'"):
        Grader("maths")
    with pytest.raises(UserError, match=r"reward\.timeout must be positive, got 0"):
        Grader(timeout=0)
    assert find_kind("math").reward is ibtpo.rewards.math.reward


def test_a_reward_workers_cannot_import_is_refused(monkeypatch):
    local = types.ModuleType("local")
    local.reward = lambda text, reference: 1.0
    monkeypatch.setitem(KINDS, "local", local)
    with pytest.raises(UserError, match="cannot import"):
        Grader("local")


def run_script(tmp_path, body: str, **kwargs) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    paths = [
        str(pathlib.Path(ibtpo.rewards.__file__).parents[2]),
        str(pathlib.Path(__file__).parent),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=env, **kwargs)


def test_rewards_are_light_and_workers_do_not_import_the_main_module(tmp_path):
    done = run_script(
        tmp_path,
        """
        import sys
        import ibtpo, ibtpo.rewards, ibtpo.rewards.math, ibtpo.rewards.pool
        loaded = {"jax", "numpy", "sympy", "math_verify", "torch"} & set(sys.modules)
        assert not loaded, loaded

        import numpy  # stands for JAX: a worker must not import what the main module does
        import hazards
        ibtpo.rewards.KINDS.clear()
        ibtpo.rewards.KINDS["hazard"] = hazards
        # No __name__ guard is needed either.
        with ibtpo.rewards.pool.Grader("hazard", workers=1) as grader:
            assert grader.grade([("modules", "")]) == [1.0], grader.counts
        """,
    )
    assert done.returncode == 0, done.stderr


# A job in the background of a shell begins with interrupts ignored.
INTERRUPT = "import os, signal; signal.signal(2, signal.default_int_handler); os.kill(os.getpid(), 2)"


@pytest.mark.parametrize("ending", ["pass", "raise KeyboardInterrupt", INTERRUPT])
def test_the_interpreter_exits_with_an_open_busy_grader(tmp_path, ending):
    start = time.monotonic()
    done = run_script(
        tmp_path,
        f"""
        import time
        import hazards
        import ibtpo.rewards
        from ibtpo.rewards.pool import Grader
        ibtpo.rewards.KINDS["hazard"] = hazards
        grader = Grader("hazard", workers=2, timeout=100.0)
        assert grader.grade([("a", "a")]) == [1.0]
        futures = [grader.submit("sleep", "90") for _ in range(4)]
        time.sleep(0.3)
        print("pids", *grader._pool.pids, flush=True)
        {ending}
        """,
    )
    assert time.monotonic() - start < 30
    assert (done.returncode == 0) == (ending == "pass"), done.stderr
    workers = [int(pid) for pid in done.stdout.split()[1:]]
    assert len(workers) == 2
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_pool_grades_all_kinds(hazards):
    with Grader(workers=1) as grader:
        futures = [
            grader.submit("a", "a", kind="hazard"),
            grader.submit(*SLOW_RIGHT),
            grader.submit("a", "b", kind="hazard"),
            grader.submit(*SLOW_WRONG, kind=None),
            grader.submit(r"\boxed{3}", "3", kind="math"),
        ]
        assert [future.result(timeout=60) for future in futures] == [1.0, 1.0, 0.0, 0.0, 1.0]
        assert grader.counts == {"graded": 5, "fast": 1, "slow": 4, "timeout": 0, "crashed": 0}
        with pytest.raises(UserError, match="'hazrd'; did you mean 'hazard'"):
            grader.submit("a", "a", kind="hazrd")


def test_submitting_waits_for_no_worker(hazards):
    """The sampler submits between two chunks of decoding: busy, dying or missing workers must not hold it up."""
    with Grader("hazard", workers=1, timeout=60.0) as grader:
        slow = [grader.submit("sleep", "50"), *(grader.submit("a", "a") for _ in range(2000))]
        fast = [grader.submit(r"\boxed{3}", "3", kind="math") for _ in range(100)]
        assert all(future.done() for future in fast) and not any(future.done() for future in slow)


@pytest.mark.parametrize("value", ["1.5", "-0.25", "NaN", "Infinity", "1.0000001"])
def test_a_reward_that_is_no_probability_is_refused_by_name(hazards, value):
    with Grader("hazard", workers=1) as grader:
        for text, name in (("return", "reward"), ("return at once", "fast_reward")):
            message = rf"^reward kind 'hazard' \(hazards\.{name}\) returned {float(value)}: a reward lies in \[0, 1\]$"
            with pytest.raises(UserError, match=message):
                grader.submit(text, value).result(timeout=30)
        assert grader.grade([("return", "0"), ("return at once", "1"), ("return", "0.5")]) == [0.0, 1.0, 0.5]
        assert grader.counts == {"graded": 3, "fast": 1, "slow": 2, "timeout": 0, "crashed": 0}


def test_another_function_has_the_same_limits_and_a_verdict_of_its_own_beyond_them(hazards):
    bad = [("sleep", "60"), ("kill", ""), ("memory", "4096"), ("raise", "a"), ("alarm", "")]
    with Grader("hazard", workers=2, timeout=1.0, memory_mb=512) as grader:
        start = time.monotonic()
        futures = [grader.call(hazards.check, *pair, otherwise=[False]) for pair in [*bad, ("a", "a"), ("return", "7")]]
        assert time.monotonic() - start < 1  # a worker was started, not waited for
        assert [future.result(timeout=60) for future in futures[:5]] == [[False]] * 5
        found = [future.result(timeout=60) for future in futures[5:]]
        assert found == [{"reward": 1.0, "text": "a"}, {"reward": 7, "text": "return"}]  # of this, any value
        assert grader.counts == {"graded": 7, "fast": 0, "slow": 2, "timeout": 2, "crashed": 3}
    with pytest.raises(RuntimeError, match="closed"):
        grader.call(hazards.check, "a", "a", otherwise=None)


def test_of_a_response_that_was_cut_off_only_what_it_stated_is_graded():
    with Grader("math", workers=1) as grader:
        for text, kind, whole, cut in (
            ("4 + 5 = 9", "math", 1, 0),
            ("The answer is 9. So", "math", 1, 1),
            ("The answer is 9", "math", 1, 0),
            ("The answer is C", "multiple_choice", 1, 0),
            (r"\boxed{9}", "math", 1, 1),
        ):
            reference = "C" if kind == "multiple_choice" else "9"
            assert grader.submit(text, reference, kind).result() == whole
            assert grader.submit(text, reference, kind, truncated=True).result() == cut
        a = '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}'
        assert grader.submit("No commas", a, "instructions", truncated=True).result() == 1  # it states no answer
