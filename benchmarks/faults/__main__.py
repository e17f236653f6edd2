"""Kills, damaged files, hostile rewards, lost hosts and bad input, done to real runs: `make faults`.

    python -m benchmarks.faults [--parts=inputs,damage] [--quick] [--json]

Each part is a module of this package with `run(quick=..., say=...)`, which returns its goals and what was measured.
docs/reliability.md says what a run promises, with the figures of the last campaign. Exit code 1: a goal is missed.
"""

import argparse
import functools
import importlib
import json
import sys
import time

PARTS = {
    "inputs": "a table of bad inputs: each ends in its one line",
    "damage": "every file of a checkpoint damaged in turn",
    "rewards": "answers and rewards that attack their grader",
    "kills": "runs ended by signals at random times, and resumed",
    "hosts": "two hosts, one of which is lost; two runs in one folder",
    "repeat": "two runs, and a killed one, bit by bit",
    "soak": "2,000 updates of one run: memory, compilations, files",
}


def _say(part: str, began: float, text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    print(f"[{part} {minutes}:{seconds:02}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    parser.add_argument("--json", action="store_true", help="end in one object with `goals` and the figures")
    arguments = parser.parse_args()
    names = arguments.parts.split(",")
    for name in names:
        if name not in PARTS:
            parser.error(f"--parts: {name!r} is none of {', '.join(PARTS)}")
    goals, figures = [], {}
    for number, name in enumerate(names, 1):
        say = functools.partial(_say, f"{number}/{len(names)} {name}", time.monotonic())
        say(PARTS[name])
        found = importlib.import_module(f"benchmarks.faults.{name}").run(quick=arguments.quick, say=say)
        goals += [goal | {"name": f"{name}: {goal['name']}"} for goal in found["goals"]]
        figures[name] = found["figures"]
    if arguments.json:
        print(json.dumps({"goals": goals, "figures": figures}))
    else:
        for goal in goals:
            print(f"{'met' if goal['met'] else 'MISSED':6}  {goal['name']}: {goal['value']} (goal {goal['goal']})")
    return 0 if all(goal["met"] is not False for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
