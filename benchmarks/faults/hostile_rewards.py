"""A reward that does what the answer says, to its worker and beyond; and a program that grades such answers.

    python -m benchmarks.faults.hostile_rewards '{"hazards": ["exit 0"], "times": 3, "workers": 2, "wait": 0}'

It prints one JSON object a line: when the workers are up, and at the end. Workers import this module by name.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_LONG = "3600"
_BOMB = 40  # processes of the fork bomb


def _sleep() -> None:
    time.sleep(float(_LONG))


def _fork_bomb() -> None:
    depth = 0
    while depth < _BOMB and os.fork() == 0:
        os.setsid()
        depth += 1
    _sleep()


def _daemon() -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            _sleep()
        os._exit(0)
    os.wait()


def _shot_later() -> None:
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(0.2)
        os.kill(parent, signal.SIGKILL)
        os._exit(0)


def _deaf_spin() -> None:
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def _write_everywhere() -> None:
    for descriptor in range(3, 64):
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, b"\xff" * 1000)
        except OSError:
            continue


def _flood() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * 2**20 + "\n")


def _raise(error: BaseException) -> None:
    raise error


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _overflow_the_stack() -> None:
    sys.setrecursionlimit(10**9)
    threading.stack_size(64 * 2**10)
    nested: Any = ()
    for _ in range(10**6):
        nested = (nested,)
    hash(nested)


# What is done, and what the answer is then: its value, an outcome of `Grader.counts`, or "refused".
HAZARDS: dict[str, tuple[Callable[[], Any], float | str]] = {
    "exit 0": (lambda: os._exit(0), "crashed"),
    "exit 3": (lambda: os._exit(3), "crashed"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed"),
    "terminate": (lambda: os.kill(os.getpid(), signal.SIGTERM), "crashed"),
    "abort": (os.abort, "crashed"),
    "segfault": (lambda: ctypes.string_at(0), "crashed"),
    "kill the group": (lambda: os.killpg(0, signal.SIGKILL), "crashed"),
    "overflow the stack": (_overflow_the_stack, "crashed"),
    "kill the server": (lambda: os.kill(os.getppid(), signal.SIGKILL), "crashed"),
    "sleep": (_sleep, "timeout"),
    "stop": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "timeout"),
    "deaf spin": (_deaf_spin, "timeout"),
    "big number": (lambda: 9 ** (9**9), "timeout"),
    "memory": (lambda: bytearray(2**40), "crashed"),
    "many pieces of memory": (lambda: [mmap.mmap(-1, 2**26) for _ in range(2**12)], "crashed"),
    "recursion": (_recurse, "crashed"),
    "SystemExit": (lambda: _raise(SystemExit(0)), "crashed"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), "crashed"),
    "BaseException": (lambda: _raise(BaseException("odd")), "crashed"),
    "GeneratorExit": (lambda: _raise(GeneratorExit()), "crashed"),
    "close all files": (lambda: os.closerange(0, 4096), "crashed"),
    "write into all files": (_write_everywhere, "crashed"),
    "no more files": (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)) or 0.25, 0.25),
    "flood": (lambda: _flood() or 0.25, 0.25),
    "elsewhere": (lambda: os.chdir("/proc") or os.environ.clear() or 0.25, 0.25),
    "NaN": (lambda: float("nan"), "refused"),
    "infinity": (lambda: 10.0**308 * 10, "refused"),
    "two": (lambda: 2, "refused"),
    "huge": (lambda: 10**400, "crashed"),
    "text": (lambda: "right", "crashed"),
    "nothing": (lambda: None, "crashed"),
    "list": (lambda: [1.0], "crashed"),
    "yes": (lambda: True, 1.0),
    "child": (lambda: subprocess.Popen(["sleep", _LONG]) and 0.25, 0.25),
    "child in a session": (lambda: subprocess.Popen(["sleep", _LONG], start_new_session=True) and 0.25, 0.25),
    "daemon": (lambda: _daemon() or 0.25, 0.25),
    "daemon, then exit": (lambda: _daemon() or os._exit(0), "crashed"),
    "daemon, then sleep": (lambda: _daemon() or _sleep(), "timeout"),
    "fork that returns twice": (lambda: os.fork() and 0.25, 0.25),
    "fork bomb": (_fork_bomb, "timeout"),
    "thread": (lambda: threading.Thread(target=_sleep, daemon=True).start() or 0.25, 0.25),
    "shot later": (lambda: _shot_later() or 0.25, 0.25),
}
# Those that leave or take a process of their own.
STARTING = [name for name in HAZARDS if any(word in name for word in ("child", "daemon", "fork", "shot"))]


def reward(text: str, reference: str) -> float:
    return HAZARDS[text][0]() if text in HAZARDS else float(text == reference)


def main() -> None:
    from benchmarks.faults import hostile_rewards
    from ibtpo.errors import UserError
    from ibtpo.rewards import KINDS
    from ibtpo.rewards.pool import Grader

    options = json.loads(sys.argv[1])
    KINDS.clear()
    KINDS["hostile"] = hostile_rewards  # not __main__, which workers cannot import
    wrong: list[str] = []
    with Grader("hostile", workers=options["workers"], timeout=options["timeout"], memory_mb=1024) as grader:
        grader.grade([("a", "a")])
        print(json.dumps({"up": True}), flush=True)
        began = time.monotonic()
        asked = [text for text in options["hazards"] for _ in range(options["times"])]
        futures = [(text, grader.submit(text, ""), grader.submit("a", "a")) for text in asked]
        expected = dict.fromkeys(grader.counts, 0) | {"graded": 1, "slow": 1}
        for text, hostile, good in futures:
            outcome = HAZARDS[text][1]
            try:
                value = hostile.result(options["timeout"] * len(asked) + 60)
            except UserError:
                value = "refused"
            if value != (0.0 if outcome in ("crashed", "timeout") else outcome):
                wrong.append(f"{text}: {value}")
            if good.result(60) != 1.0:
                wrong.append(f"a right answer beside {text}: {good.result()}")
            kind = outcome if outcome in ("crashed", "timeout") else "slow"
            for name in () if outcome == "refused" else ("graded", kind):
                expected[name] += 1
            for name in ("graded", "slow"):
                expected[name] += 1
        seconds = time.monotonic() - began
        if grader.counts != expected:
            wrong.append(f"counts {grader.counts}, not {expected}")
        time.sleep(options["wait"])
        workers = len(grader._pool.pids) if grader._pool else 0
        print(json.dumps({"wrong": wrong, "seconds": seconds, "workers": workers}), flush=True)
        time.sleep(options.get("linger", 0))


if __name__ == "__main__":
    main()
