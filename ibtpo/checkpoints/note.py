"""A note in the workdir of what was saved last, so that a run which loses its checkpoints is not begun anew without a
word. The metrics cannot tell: a run that was killed before its first save has them too."""

import contextlib
import json
import os
import pathlib

from etils import epath

from ibtpo.checkpoints import folders
from ibtpo.errors import RunFailure, UserError
from ibtpo.whole_files import write_text

NAME = "last_checkpoint.json"


def write(workdir: pathlib.Path, path: epath.Path, step: int) -> None:
    """Notes that `step` was saved in the folder `path`; not in a workdir that is not there.

    Raises:
      RunFailure: the note cannot be written.
    """
    if not workdir.is_dir():
        return
    note = workdir / NAME
    try:
        write_text(note, json.dumps({"step": step, "folder": os.fspath(path)}))
    except OSError as error:
        raise RunFailure(
            f"{note} could not be written ({error.strerror}); step {step} is complete: make room, and run again"
        ) from error


def check_nothing_lost(workdir: pathlib.Path, path: epath.Path) -> None:
    """For a run that finds no checkpoint in `path`.

    Raises:
      UserError: there were some.
    """
    note, said, delete = workdir / NAME, "", NAME
    if note.exists():
        said = f"{note} says that this run has saved some"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(note.read_text())
            said = f"the run in {workdir} had saved step {saved['step']} in {saved['folder']}"
    elif aside := folders.set_aside(path):
        said, delete = f"damaged ones are set aside ({', '.join(aside)})", "those"
    if said:
        raise UserError(
            f"{path} has no checkpoint, but {said}: bring them back, or start anew in another --workdir (or delete "
            f"{delete} to begin again in this one)"
        )
