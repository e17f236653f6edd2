"""New files take the place of a folder's old ones so that a program killed at any moment leaves no mix of the two.

New files are written into a hidden folder inside the one they are for, so that moving them copies nothing. `swap` moves
the old files into a second hidden folder, first of all the one without which the folder is no model (`mark`), then the
new files to their places, the mark last of all. While anything moves there is no mark, so nobody takes the folder for a
model. An exception on the way moves everything back; files that a killed program leaves are removed by the next one.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterable

STAGED, REPLACED = ".export-new", ".export-old"


def stage(folder: pathlib.Path) -> pathlib.Path:
    """An empty place for the new files of `folder`, which is made if need be."""
    _remove(folder / STAGED)
    (folder / STAGED).mkdir(parents=True)
    return folder / STAGED


def swap(folder: pathlib.Path, mark: str, stale: Iterable[str]) -> None:
    """Replaces files, and folders, of `folder` by those that are staged.

    Args:
      mark: the file without which the folder is no model; one of those staged.
      stale: names of further files that must not outlive the old model. Those that are not there are ignored.
    """
    staged, replaced = folder / STAGED, folder / REPLACED
    _remove(replaced)
    replaced.mkdir()
    new = {file.name for file in staged.iterdir()} - {mark}
    old = {name for name in {*stale, *new} - {mark} if (folder / name).exists()}
    moves = [(folder / name, replaced / name) for name in [mark, *sorted(old)] if (folder / name).exists()]
    moves += [(staged / name, folder / name) for name in [*sorted(new), mark]]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists():
                os.replace(target, source)
        with contextlib.suppress(OSError):
            replaced.rmdir()  # unless something could not be moved back
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def discard(folder: pathlib.Path) -> None:
    """Removes the staged files."""
    shutil.rmtree(folder / STAGED, ignore_errors=True)


def _remove(folder: pathlib.Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
