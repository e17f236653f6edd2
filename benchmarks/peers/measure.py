"""The measurements that every engine's process makes of itself, with the standard library alone: peers import it in
their own environments."""

import pathlib
from collections.abc import Callable


def forget_peak_rss() -> None:
    """Starts the peak of the resident memory anew, where the system allows it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_rss_mb() -> float | None:
    """The peak of this process's resident memory; None where the system does not tell."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def repeat(timed: Callable[[int], float], job: dict) -> dict:
    """{seconds, peak_rss_mb} of timed(1), timed(2), ...: job["repeats"] of them, or until job["budget_s"] are spent."""
    forget_peak_rss()
    seconds: list[float] = []
    while len(seconds) < job["repeats"] and sum(seconds) < job["budget_s"]:
        seconds.append(timed(1 + len(seconds)))
    return dict(seconds=seconds, peak_rss_mb=peak_rss_mb())
