"""Runs of the study: each a function with a folder of its own, side by side, one share of the cores each; what is done
is skipped."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ibtpo.whole_files import write_text

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULT, COMMANDS, OUTPUT = "result.json", "commands.txt", "output.txt"


class JobError(Exception):
    """A command of a job failed; the message has its last lines."""


@dataclasses.dataclass(frozen=True)
class Job:
    """folder: its own, below the study's, and its name. work: makes the result, given the folder and `run_command`'s
    cores. read: finds it in the folder's other files, None where not all are there; without it RESULT holds it."""

    folder: pathlib.Path
    work: Callable[[pathlib.Path, Sequence[int]], dict[str, Any]]
    read: Callable[[pathlib.Path], dict[str, Any] | None] | None = None

    def result(self) -> dict[str, Any] | None:
        """What it found, None where it is not done."""
        if self.read is not None:
            return self.read(self.folder)
        try:
            return json.loads((self.folder / RESULT).read_text())
        except FileNotFoundError:
            return None


def run_command(arguments: Sequence[str], folder: pathlib.Path, cores: Sequence[int]) -> None:
    """`python <arguments>` on these cores, from the repository's root; its output is appended to the folder's.

    Raises:
      JobError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / COMMANDS).open("a") as file:
        file.write(" ".join(["python", *arguments]) + "\n")
    with (folder / OUTPUT).open("a") as output:
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            check=False,
        )
    if ended.returncode:
        last = (folder / OUTPUT).read_text(errors="replace").splitlines()[-5:]
        raise JobError(f"{folder}: exit code {ended.returncode}: " + " | ".join(last))


def run_jobs(jobs: Sequence[Job], side_by_side: int, log: Callable[[str], None]) -> list[str]:
    """Runs those that have no result, in their order; side_by_side=0: none. Returns what failed, in words; the others
    go on. Where it is interrupted, none begins any more."""
    waiting = [job for job in jobs if job.result() is None]
    log(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done already")
    if side_by_side == 0:
        return []
    own = sorted(os.sched_getaffinity(0))
    side_by_side = max(1, min(side_by_side, len(own), len(waiting) or 1))
    shares: queue.Queue[list[int]] = queue.Queue()
    for index in range(side_by_side):
        shares.put(own[index::side_by_side])
    began, failed = time.monotonic(), []

    def run(job: Job) -> str:
        cores = shares.get()
        try:
            result = job.work(job.folder, cores)
            if job.read is None:
                write_text(job.folder / RESULT, json.dumps(result, indent=1) + "\n")
        finally:
            shares.put(cores)
        return str(job.folder)

    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        futures = [pool.submit(run, job) for job in waiting]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                try:
                    what = future.result()
                except JobError as error:
                    failed.append(str(error))
                    what = f"FAILED {error}"
                seconds = time.monotonic() - began
                left = seconds / done * (len(waiting) - done)
                log(f"  {done}/{len(waiting)}  {what}  elapsed {seconds / 60:.1f} min  left {left / 60:.1f} min")
        except BaseException:  # a bug of ours, or Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed
