"""One long run of a minimal model: memory, compilations, files, threads."""

import pathlib
import re
import statistics
import time
from collections.abc import Callable

from benchmarks.faults.harness import Process, folder, train_command
from benchmarks.goals import make_goal

CHANGES = {
    "tree.initial": 2,
    "tree.rounds": 2,
    "sampling.max_new_tokens": 24,
    "train.questions_per_step": 2,
    "sampling.questions_in_flight": 2,
    "eval.questions": 2,
    "log.tensorboard": True,
}
_COMPILED = "Finished XLA compilation"
_STARTED = re.compile(r"^compiling \d+ programs? \(", re.MULTILINE)  # the run says what it has compiled at its start
# What takes long to compile. Small programs of the first update, evaluation and checkpoint come when they are called.
_PROGRAMS = ("update", "log_probs", "prefill", "decode_chunk", "recompute", "start", "release", "serving")


def look(process: Process, workdir: pathlib.Path) -> dict[str, float]:
    """What the run holds now: updates done, MiB resident, open files, threads, files of the workdir, compilations."""
    proc = pathlib.Path(f"/proc/{process.popen.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    files = [path for path in workdir.rglob("*") if path.is_file()]
    rows = (workdir / "metrics.jsonl").read_bytes().count(b'"train/loss"') if files else 0
    return {
        "updates": rows,
        "mib": int(status["VmRSS"].split()[0]) / 1024,
        "open": len(list((proc / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "files": len(files),
        "compilations": process.output().count(_COMPILED),
    }


def compiled_late(output: str) -> int:
    """The run's programs that were compiled after its start."""
    started = _STARTED.search(output)
    if started is None:
        raise RuntimeError("the run said nothing of what it compiled at its start")
    later = output[started.end() :]
    return sum(later.count(f"{_COMPILED} of jit({name})") for name in _PROGRAMS)


def watch(process: Process, workdir: pathlib.Path, every: int) -> list[dict[str, float]]:
    """Looks, one about every so many updates, until the run's end."""
    looks: list[dict[str, float]] = []
    while process.running:
        time.sleep(0.1)
        try:
            now = look(process, workdir)
        except (OSError, KeyError, ValueError):  # it began, or ended, just now
            continue
        if now["updates"] >= (looks[-1]["updates"] + every if looks else every):
            looks.append(now)
    return looks


def run(*, quick: bool, say: Callable[[str], None]) -> dict:
    """The campaign; `quick`: 120 updates instead of 2,000."""
    steps = 120 if quick else 2000
    with folder() as place:
        workdir = place / "run"
        every = 10 if quick else 50  # several of each before the warm-up ends
        changes = CHANGES | {"train.steps": steps, "eval.every": every, "checkpoint.every": every}
        command = train_command(workdir, changes)
        with Process(command, {"JAX_LOG_COMPILES": "1"}) as process:
            looks = watch(process, workdir, steps // 40)
            ended = process.finish(steps * 10.0)
        if ended.code != 0:
            raise RuntimeError(f"the run ended with {ended.code}: {ended.output[-2000:]}")
        say(f"{steps} updates in {ended.seconds:.0f} s")
        bytes_of_metrics = (workdir / "metrics.jsonl").stat().st_size
    warm = [x for x in looks if x["updates"] >= steps // 4]
    half = len(warm) // 2

    def growth(name: str, of: Callable[..., float] = statistics.median) -> float:
        first, last = (of(x[name] for x in part) for part in (warm[:half], warm[half:]))
        return last / first

    def later(name: str) -> float:
        return max(x[name] for x in warm) - warm[0][name]

    goals = [
        make_goal("updates", steps, 120 if quick else 2000, at_least=True),
        make_goal("memory, later half / earlier half", growth("mib"), 1.02, at_least=False),
        make_goal("programs compiled after the start", compiled_late(ended.output), 0, at_least=False),
        make_goal("compilations after the warm-up", later("compilations"), 0, at_least=False),
        make_goal("files more after the warm-up", later("files"), 40, at_least=False),
        # A save under way has files open.
        make_goal("open files, fewest of the later half / the earlier half", growth("open", min), 1.02, at_least=False),
        make_goal("threads, later half / earlier half", growth("threads"), 1.1, at_least=False),
    ]
    figures = {"seconds": ended.seconds, "bytes of metrics.jsonl per update": bytes_of_metrics / steps, "looks": looks}
    return {"goals": goals, "figures": figures}
