"""The part "inputs": each row of bad_inputs.jsonl is refused in one line, at once, and leaves nothing behind.

A row: command, arguments ("{tmp}" is a new folder), setup (a function of `bad_folders` that fills it, or null),
expected (a regular expression of the line behind "error: "), why, and in_process: whether it can be run in this
process. All that can are. As processes of their own, as a user runs them: all whose fault is in more than a value of
the configuration, and each fourth of the others; quick, ten.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import harness
from benchmarks.faults.bad_folders import SETUPS
from benchmarks.goals import make_goal

TABLE = pathlib.Path(__file__).with_name("bad_inputs.jsonl")
SECONDS = 120.0  # after which a command hangs; on a busy machine the imports alone can take twenty
QUICK_PROCESSES = 10
WITH_CONFIG = ("train", "evaluate", "export", "compile_check", "sft")
OWN_CONFIG = {"sft": "configs/tiny_sft.py"}
SHORT_SFT = ("train.steps=2", "optimizer.warmup_steps=0")


@dataclass(frozen=True)
class Case:
    command: str
    arguments: list[str]
    setup: str | None
    expected: str
    why: str
    in_process: bool = True

    def fill(self, folder: pathlib.Path) -> list[str]:
        """The arguments for a new folder, which is made ready, with what the command needs besides."""
        if self.setup:
            SETUPS[self.setup](folder)
        given = [argument.replace("{tmp}", str(folder)) for argument in self.arguments]
        if self.command not in WITH_CONFIG or any(argument.startswith("--compare") for argument in given):
            return given
        added = []
        if not any(argument.startswith("--config=") for argument in given):
            added.append(f"--config={OWN_CONFIG.get(self.command, 'configs/tiny.py')}")
            if self.command != "sft":
                added += [f"--config.{key}={value}" for key, value in harness.SMALL.items()]
            else:
                added += [f"--config.{change}" for change in (f"output={folder}/out", *SHORT_SFT)]
        if self.command in ("train", "sft", "export") and not any(a.startswith("--workdir") for a in given):
            added.append(f"--workdir={folder}/work")
        return added + given


def cases() -> list[Case]:
    """The table."""
    return [Case(**json.loads(line)) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def fault(case: Case, code: int | None, stderr: str, before: set[str], after: set[str]) -> str:
    """What is wrong with the end of a command; "" if nothing is. before, after: the files in its folder."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    if code is None:
        return "it hung"
    if code != 2:
        return f"exit code {code}: {' | '.join(lines[-3:])}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines: {' | '.join(lines[:3])}"
    if not re.fullmatch(case.expected, lines[0].removeprefix("error: ")):
        return f"another line: {lines[0]}"
    left = sorted(name for name in after - before if not name.endswith("error.log"))
    return f"it left {', '.join(left)}" if left else ""


def files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def as_process(case: Case) -> tuple[str, float]:
    """(what is wrong, seconds) of a row, as a user runs it."""
    with harness.folder() as folder:
        arguments = case.fill(folder)
        before, began = files(folder), time.monotonic()
        environment = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": str(harness.CACHE)}
        process = subprocess.Popen(
            [sys.executable, "-m", f"ibtpo.{case.command}", *arguments],
            cwd=harness.ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        code: int | None
        try:
            _, stderr = process.communicate(timeout=SECONDS)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            _, stderr = process.communicate()
            code = None
        seconds = time.monotonic() - began
        return fault(case, code, stderr, before, files(folder)), seconds


def here(case: Case, folder: pathlib.Path) -> str:
    """What is wrong with a row that is run in this process, in a new folder."""
    from absl import flags

    arguments = case.fill(folder)
    before, stderr = files(folder), io.StringIO()
    for name in list(flags.FLAGS):
        flags.FLAGS[name].unparse()
    argv, sys.argv = sys.argv, [case.command, *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            _call(case.command)
    except SystemExit as ended:
        code = ended.code
    except Exception as error:  # a traceback
        return f"{type(error).__name__}: {error}"
    finally:
        sys.argv = argv
    return fault(case, code, stderr.getvalue(), before, files(folder))


def _call(command: str) -> None:
    """A command as its module calls it, with the arguments of sys.argv."""
    from ibtpo import compile_check, config, evaluate, export, report, sft, train

    if command == "report":
        report.main(sys.argv[1:])
    elif command == "evaluate" and any(argument.startswith("--compare") for argument in sys.argv):
        evaluate.compare(sys.argv[1:])
    elif command == "evaluate":
        config.run(evaluate.main, resolve=lambda c: config.resolve(c, training=False), needs_workdir=False)
    elif command == "export":
        config.run(export.main, writes_workdir=False)
    elif command == "compile_check":
        config.run(compile_check.main, needs_workdir=False, writes_workdir=False)
    elif command == "sft":
        config.run(sft.main, resolve=config.resolve_by(config.SFT_RULES, "configs/tiny_sft.py"))
    else:
        config.run(train.train)


def spread(rows: list[Case], number: int) -> Iterator[Case]:
    """Some of the rows, evenly over the table."""
    for index in range(number):
        yield rows[index * len(rows) // number]


def try_here(rows: list[Case], say: Callable[[str], None]) -> list[list[str]]:
    """What is wrong, row by row, of those that can be run in this process."""
    wrong = []
    for case in rows:
        with harness.folder() as folder:
            if case.in_process and (found := here(case, folder)):
                wrong.append([case.why, found])
                say(f"{case.command} {case.arguments}: {found}")
    return wrong


def in_processes(rows: list[Case]) -> list[Case]:
    """Those of the long form."""
    values = [case for case in rows if case.setup is None and all(a.startswith("--config.") for a in case.arguments)]
    return [case for case in rows if case not in values] + values[::4]


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    rows, slowest = cases(), 0.0
    wrong = try_here(rows, say)
    tried = sum(case.in_process for case in rows)
    say(f"{tried} in one process, {len(wrong)} of them wrong")
    processes = list(spread(rows, QUICK_PROCESSES)) if quick else in_processes(rows)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for number, (case, (found, seconds)) in enumerate(zip(processes, threads.map(as_process, processes)), 1):
            slowest = max(slowest, seconds)
            if found:
                wrong.append([case.why, found])
                say(f"{case.command} {case.arguments}: {found}")
            if number % 50 == 0:
                say(f"{number} of {len(processes)} processes")
    tried += len(processes)
    goals = [
        make_goal("share of bad inputs that end in their one line", (tried - len(wrong)) / tried, 1.0, at_least=True),
        make_goal("bad inputs in the table", len(rows), 300, at_least=True),
    ]
    figures = {"rows": len(rows), "processes": len(processes), "tried": tried, "right": tried - len(wrong)}
    return {"goals": goals, "figures": figures | {"slowest_s": slowest, "wrong": wrong}}
