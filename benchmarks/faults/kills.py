"""Runs ended by signals at random times, in every phase, and resumed by the same command.

Several kills per run, one process at a time. In the end each run must equal an unbroken one bit by bit: metrics,
TensorBoard's rows and newest parameters. SIGKILL half of the time, else SIGTERM or Ctrl-C, which must end in code 0
with one line and leave no process behind.
"""

import pathlib
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable

from benchmarks.faults.harness import Ended, Process, differences, folder, train_command
from benchmarks.faults.harness import run as run_command
from benchmarks.goals import make_goal

CHANGES = {
    "train.steps": 24,
    "eval.every": 4,
    "checkpoint.every": 3,
    "log.tensorboard": True,
    "sampling.deterministic": True,
}
PHASES = ("start", "update", "metrics", "save", "evaluation", "end")
_WEIGHTS = (3, 5, 4, 5, 4, 1)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MOST_SECONDS = 300.0  # of one start; one that takes longer hangs
_LOADING = 1.0  # seconds in which Python itself loads, and a signal has its default effect
_POLITE = re.compile(
    r"SIG(TERM|INT): (saved update \d+ in .*; run the same command to continue|nothing new to save yet.*)"
)


def wait_for(phase: str, process: Process, workdir: pathlib.Path, rng: random.Random, seconds: float) -> None:
    """Waits for a moment of the phase, or the end of the process. seconds: that a start takes until its updates."""
    if phase == "start":
        moment = time.monotonic() + rng.uniform(0, seconds)
        _until(process, lambda: time.monotonic() > moment)
        return
    _until(process, lambda: "updates " in process.output())  # from here on it writes
    if phase == "end":
        _until(process, lambda: f"updates {CHANGES['train.steps']}/" in process.output())
    else:
        for _ in range(rng.randint(1, 4)):
            _next(phase, process, workdir)
    spread = {"update": 0.4, "metrics": 0.004, "save": 0.1, "evaluation": 0.15, "end": 2.0}[phase]
    time.sleep(rng.uniform(0, spread))


def _next(phase: str, process: Process, workdir: pathlib.Path) -> None:
    """Until the next sign on disk of a phase: a new folder of a checkpoint, which then fills; the row of a step that is
    evaluated now; any row."""
    metrics, saves = workdir / "metrics.jsonl", workdir / "checkpoints"
    names, step, size = _names(saves), _last_step(metrics), _size(metrics)
    if phase == "save":
        _until(process, lambda: _names(saves) != names)
    elif phase == "evaluation":
        _until(process, lambda: (now := _last_step(metrics)) != step and now % CHANGES["eval.every"] == 0)
    else:
        _until(process, lambda: _size(metrics) != size)


def _until(process: Process, done: Callable[[], bool]) -> None:
    while process.running and time.monotonic() - process.began < _MOST_SECONDS and not done():
        time.sleep(0.001)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _names(path: pathlib.Path) -> list[str]:
    return sorted(x.name for x in path.iterdir()) if path.is_dir() else []


def _last_step(path: pathlib.Path) -> int:
    lines = path.read_bytes().splitlines()[-1:] if path.exists() else []
    found = re.match(rb'\{"step": (\d+)', lines[0]) if lines else None
    return int(found[1]) if found else -1


def kill(workdir: pathlib.Path, phase: str, number: signal.Signals, rng: random.Random, seconds: float):
    """(the process, ended by a signal in a phase; when it was sent; whether it still ran then)."""
    with Process(train_command(workdir, CHANGES)) as process:
        wait_for(phase, process, workdir, rng, seconds)
        sent, running = time.monotonic() - process.began, process.running
        if number == signal.SIGINT:
            process.interrupt()
        else:
            process.send(number)
        return process.finish(sent + 60), sent, running


def is_right(ended: Ended, number: signal.Signals, sent: float) -> bool:
    """Whether a process has ended as it should after a signal."""
    if number == signal.SIGKILL:
        return ended.code == -signal.SIGKILL
    if sent < _LOADING:
        return ended.code in (0, -number, 130, 1)
    finished = "learning curve:" in ended.output or "is finished:" in ended.output
    return ended.code == 0 and (finished or _POLITE.fullmatch(ended.lines[-1]) is not None)


def events(workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's rows as it reads them, without the times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = [tag for tag in found.Tags()["scalars"] if not tag.startswith(("time/", "memory/"))]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


def compare(workdir: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """In words, what a run differs in from the unbroken one."""
    found, (mine, other) = differences(workdir, whole), (events(workdir), events(whole))
    names = [n for n in mine.keys() | other.keys() if repr(mine.get(n)) != repr(other.get(n))]
    return found + [f"TensorBoard: {', '.join(sorted(names))}"] * bool(names)


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    """The campaign; `quick` kills 8 times, else 200 times."""
    tried, per_run = (8, 8) if quick else (200, 10)
    rng = random.Random(21)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with folder() as place:
        whole = place / "whole"
        run_command(train_command(whole, CHANGES), _MOST_SECONDS)  # fills the compilation cache
        shutil.rmtree(whole)
        ended = run_command(train_command(whole, CHANGES), _MOST_SECONDS)
        if ended.code != 0:
            raise RuntimeError(f"the unbroken run ended with {ended.code}: {ended.output[-2000:]}")
        seconds = 0.7 * ended.seconds  # until its updates, or so
        say(f"an unbroken run takes {ended.seconds:.0f} s")
        runs = survived = kills = 0
        while kills < tried:
            runs, workdir, of_this = runs + 1, place / f"run{runs}", 0
            while of_this < min(per_run, tried - kills):
                phase, number = rng.choices(PHASES, _WEIGHTS)[0], rng.choice(SIGNALS)
                ended, sent, running = kill(workdir, phase, number, rng, seconds)
                counts["hangs"] += ended.code is None
                counts["processes left"] += len(ended.left)
                if not running:  # it was done before its moment came
                    break
                of_this += 1
                counts[f"{phase} {number.name}"] += 1
                if not is_right(ended, number, sent):
                    wrong.append(f"{number.name} in {phase} after {sent:.2f} s: {ended.code}, {ended.lines[-3:]}")
                    say(wrong[-1])
            last = run_command(train_command(workdir, CHANGES), _MOST_SECONDS)
            counts["hangs"] += last.code is None
            found = compare(workdir, whole) if last.code == 0 else [f"code {last.code}: {last.lines[-3:]}"]
            kills += of_this
            survived += of_this if not found else 0
            wrong += found
            say(f"{kills} kills of {tried}; run {runs}: {found or 'equal'}")
            shutil.rmtree(workdir)
    goals = [
        make_goal("kills survived / tried, bit by bit", survived / kills, 1.0, at_least=True),
        make_goal("kills tried", kills, tried, at_least=True),
        make_goal("ends after a signal that are not as they should be", len(wrong), 0, at_least=False),
        make_goal("hangs", counts.pop("hangs", 0), 0, at_least=False),
        make_goal("processes left", counts.pop("processes left", 0), 0, at_least=False),
    ]
    return {"goals": goals, "figures": {"kills": kills, "runs": runs, "by phase": dict(counts), "wrong": wrong}}
