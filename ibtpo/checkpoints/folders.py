"""The folder of a run's checkpoints: which steps are there, and how one comes and goes.

On a file system a step is written to `<step>.saving` and renamed when it is complete. On storage that has no renaming
of folders (a URL, gs://...) it is written where it stays, with a file `unfinished` in it that is removed last. What is
deleted passes through the same forms, so that no half of a checkpoint ever looks like one. A damaged one is moved to
`<step>.damaged` and never touched again.
"""

import contextlib
import os
import re

from etils import epath

from ibtpo.checkpoints.damage import describe, reason, storage_fault
from ibtpo.errors import UserError

MARK = "unfinished"
_LEFT_OVER = re.compile(r"\d+\.(saving|deleting)")


def absolute(folder: str | os.PathLike) -> epath.Path:
    """A path, or a URL as it is."""
    folder = os.fspath(folder)
    return epath.Path(folder if "://" in folder else os.path.abspath(folder))


def renames(path: epath.Path) -> bool:
    """Whether a folder can be renamed at once there."""
    return "://" not in os.fspath(path)


def is_dir(path: epath.Path) -> bool:
    """Whether it is a folder.

    Raises:
      UserError, RunFailure: that cannot be known: no package for a URL, no right to look.
    """
    try:
        return path.is_dir()
    except Exception as error:
        if fault := storage_fault(error):
            raise describe(fault, path) from error
        return False


def steps(path: epath.Path) -> list[int]:
    """The steps whose checkpoints were completed, in order; [] where there is no such folder. Errors as `is_dir`."""
    if not is_dir(path):
        return []
    try:
        names = [child.name for child in path.iterdir() if _is_step(child.name) and child.is_dir()]
        names = [name for name in names if not (path / name / MARK).exists()]
    except Exception as error:
        if fault := storage_fault(error):
            raise describe(fault, path) from error
        raise
    return sorted(map(int, names))


def set_aside(path: epath.Path) -> list[str]:
    """The names of damaged checkpoints that were moved away. Errors as `is_dir`."""
    return sorted(child.name for child in path.iterdir() if ".damaged" in child.name) if is_dir(path) else []


def begin(path: epath.Path, step: int) -> epath.Path:
    """The empty folder in which a checkpoint is made."""
    folder = path / (f"{step}.saving" if renames(path) else str(step))
    if folder.exists():  # of a save that failed
        folder.rmtree()
    folder.mkdir(parents=True)
    if not renames(path):
        (folder / MARK).write_text("")
    return folder


def complete(path: epath.Path, step: int, folder: epath.Path) -> None:
    """Gives a checkpoint its name."""
    if renames(path):
        folder.rename(path / str(step))
    else:
        (folder / MARK).unlink()


def delete(path: epath.Path, step: int) -> None:
    """Deletes a checkpoint."""
    folder = path / str(step)
    if renames(path):
        away = path / f"{step}.deleting"
        if away.exists():
            away.rmtree()
        folder.rename(away)
        away.rmtree()
    else:
        (folder / MARK).write_text("")
        folder.rmtree()


def move_aside(path: epath.Path, step: int) -> str:
    """Moves a damaged checkpoint to a name of its own, which it returns."""
    number, name = 1, f"{step}.damaged"
    while (path / name).exists():
        number += 1
        name = f"{step}.damaged-{number}"
    (path / str(step)).rename(path / name)
    return name


def remove_left_overs(path: epath.Path) -> None:
    """Removes what saves and deletions that were cut off have left."""
    for child in path.iterdir():
        unfinished = not renames(path) and _is_step(child.name) and (child / MARK).exists()
        if unfinished or _LEFT_OVER.fullmatch(child.name):
            child.rmtree()


def probe(path: epath.Path, process: int) -> None:
    """Makes the folder and a file in it, and removes the file.

    Raises:
      UserError: that fails.
    """
    file = path / f"probe-{process}.tmp"
    content = b"written to see whether checkpoints can be\n"
    try:
        path.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if file.read_bytes() != content:
            raise OSError("what was written is not what is read")
    except Exception as error:
        way_out = "install requirements-tpu.txt, " if isinstance(error, ImportError) else ""
        why = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else reason(error)
        raise UserError(
            f"no checkpoint can be written to {path} ({why}): {way_out}make it a folder with room in which this user "
            "may write, or name another in checkpoint.dir"
        ) from error
    finally:
        with contextlib.suppress(Exception):
            file.unlink(missing_ok=True)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name
