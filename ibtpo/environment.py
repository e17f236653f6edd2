"""The machine and the versions under a run, for whoever compares two: workdir/environment.json, an entry for each time
that it was started or resumed."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from absl import logging

from ibtpo import __version__
from ibtpo.errors import one_line
from ibtpo.whole_files import write_text

FILE_NAME = "environment.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers", "sympy", "math-verify")
_MOST_ENTRIES = 50


def describe() -> dict[str, Any]:
    """Versions, devices and processes of this program; no name of a machine, a user or a folder."""
    import jax

    devices = jax.devices()
    found: dict[str, Any] = {"ibtpo": __version__, "revision": _revision(), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
    }


def _revision() -> str | None:
    """The commit of the checkout that runs; None where it is none. "-dirty" behind it: with changes of its own."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def save(workdir: str | os.PathLike, step: int, *, write: bool = True) -> None:
    """Adds an entry: `describe`, the step begun at and the time. A file that cannot be written is a warning: it is a
    note, and no part of the run. write: False on all hosts but the first."""
    if not write:
        return
    path = pathlib.Path(workdir) / FILE_NAME
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entries = [*read(workdir), {"step": step, "time": now, **describe()}][-_MOST_ENTRIES:]
    try:
        write_text(path, json.dumps(entries, indent=2) + "\n")
    except OSError as error:
        logging.warning("%s cannot be written (%s)", path, one_line(error))


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a workdir, oldest first; none where the file is missing or damaged."""
    try:
        found = json.loads((pathlib.Path(workdir) / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
