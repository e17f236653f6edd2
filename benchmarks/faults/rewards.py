"""The part "rewards": answers and rewards that attack their worker, the grader and the machine.

Each hazard of `hostile_rewards` is graded several times among right answers: those keep their reward, the counts are
exact, and nothing that a reward has started is alive afterwards: while the grader goes on, when it is closed, and when
its program is killed.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.faults import harness
from benchmarks.faults.hostile_rewards import HAZARDS, STARTING
from benchmarks.goals import make_goal

WORKERS, TIMEOUT = 2, 3.0  # seconds per answer
DEATHS = ("exit 0", "exit 3", "kill", "abort", "segfault")  # that end the worker
_WAIT = 1.0  # seconds that what was started has to end while the grader goes on


def grade(hazards: list[str], times: int, linger: float = 0.0) -> list[str]:
    options = {"hazards": hazards, "times": times, "workers": WORKERS, "timeout": TIMEOUT, "wait": _WAIT}
    return ["-m", "benchmarks.faults.hostile_rewards", json.dumps(options | {"linger": linger})]


def last_object(output: str) -> dict[str, Any]:
    """The last line that is a JSON object; {} without one."""
    for line in reversed(output.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def try_hazards(hazards: list[str], times: int) -> tuple[list[str], float]:
    """(what is wrong, seconds of grading) of a program that grades them and ends."""
    wrong: list[str] = []
    with harness.Process(grade(hazards, times, linger=1.0)) as process:
        until = time.monotonic() + 120 + len(hazards) * times * TIMEOUT
        while process.running and "wrong" not in last_object(process.output()) and time.monotonic() < until:
            time.sleep(0.02)
        found = last_object(process.output())
        alive = len(process.descendants())
        if "wrong" in found and alive > found["workers"] + 1:
            wrong.append(f"{alive} processes, of which {found['workers']} are workers, while the grader is open")
        ended = process.finish(until - time.monotonic() + 30)
    if ended.code != 0 or "wrong" not in found:
        return [*wrong, f"exit code {ended.code}: {ended.output[-300:]}"], ended.seconds
    if ended.left:
        wrong.append(f"{len(ended.left)} processes outlived the grader")
    return [*wrong, *found["wrong"]], found["seconds"]


def kill_amid(hazards: list[str]) -> list[str]:
    """What is wrong after kill -9 of a program that is grading them."""
    with harness.Process(grade(hazards, 2, linger=60)) as process:
        until = time.monotonic() + 60
        while process.running and "up" not in process.output() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(2.0)
        process.kill()
        ended = process.finish(70, grace=5)
    return [f"{len(ended.left)} processes outlived a killed program"] if ended.left else []


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    wrong: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    times, names = (2, ["exit 0", "segfault", "stop", "daemon", "NaN"]) if quick else (3, list(HAZARDS))
    for name in names:
        found, took = try_hazards([name], times)
        seconds[name] = took / times
        say(f"{name}: {seconds[name]:.3f} s each{': ' * bool(found)}{'; '.join(found)}")
        if found:
            wrong[name] = found
    together, _ = ([], 0.0) if quick else try_hazards(list(HAZARDS), 2)
    killed = {name: found for name in (STARTING[:2] if quick else STARTING) if (found := kill_amid([name]))}
    slowest = max(seconds[name] for name in DEATHS if name in seconds)
    goals = [
        make_goal("share of hazards after which all is right", 1 - len(wrong) / len(names), 1.0, at_least=True),
        make_goal("faults with all hazards at once", len(together), 0, at_least=False),
        make_goal("programs killed amid a reward that leave a process", len(killed), 0, at_least=False),
        make_goal("seconds of an answer that ends its worker, the slowest kind", slowest, 1.0, at_least=False),
    ]
    figures = {"hazards": len(names), "times": times, "seconds_each": seconds, "wrong": wrong}
    return {"goals": goals, "figures": figures | {"together": together, "killed": killed}}
