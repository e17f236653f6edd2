"""The checkpoints of a run for those who read them: where they are, and the parameters alone. Nothing is written."""

import json
import os
from collections.abc import Callable
from typing import Any

from etils import epath

from ibtpo.checkpoints import arrays, folders, hosts, reading
from ibtpo.checkpoints.damage import Damaged
from ibtpo.config import SAVED_NAME
from ibtpo.errors import UserError


def find(run: str | os.PathLike) -> epath.Path | None:
    """The folder with the checkpoints of a run, given its workdir or that folder itself; None if it is neither.

    A workdir whose folder checkpoints is missing or empty has them in the checkpoint.dir that its config.json names.
    Its own folder comes first, as it may be a copy of that one, fetched from a bucket.

    Raises:
      UserError: the package that reads a URL is missing.
    """
    path = folders.absolute(run)
    own, named = path / "checkpoints", _named_dir(path)
    if folders.steps(own):
        return own
    if named and folders.is_dir(folders.absolute(named)):
        return folders.absolute(named)
    if folders.is_dir(own):
        return own
    return path if folders.steps(path) else None


def has_any(run: str | os.PathLike) -> bool:
    """Whether there is a checkpoint where `find` looks."""
    folder = find(run)
    return folder is not None and bool(folders.steps(folder))


def why_missing(run: str | os.PathLike) -> str:
    """In words, the checkpoint looked for where `find` finds nothing."""
    named = _named_dir(folders.absolute(run))
    elsewhere = f"the checkpoint.dir={named!r} of its config.json is none either"
    if not named:
        elsewhere = "no config.json with a checkpoint.dir"
    return f"there is no folder {os.path.join(run, 'checkpoints')}, and {elsewhere}"


def _named_dir(workdir: epath.Path) -> str:
    """checkpoint.dir of a workdir's config.json; "" if that is not there, empty or another program's file."""
    try:
        return json.loads((workdir / SAVED_NAME).read_text())["checkpoint"]["dir"]
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return ""


def latest_step(run: str | os.PathLike) -> int:
    """Step of the newest checkpoint of a run, given its workdir or the folder of its checkpoints.

    Raises:
      UserError: there is none.
    """
    return _step_folder(run, None)[1]


def load_params(
    run: str | os.PathLike, like: Any, step: int | None = None, *, check: Callable[[dict], None] | None = None
) -> Any:
    """The trained parameters alone, in the structure, types and placement of `like`.

    On several hosts all call this.

    Args:
      run: workdir of the training run, or the folder of its checkpoints.
      like: `nnx.split(decoder, nnx.Param)[1]` of a decoder with the same sizes, or adapters; abstract arrays will do.
      step: default the newest.
      check: see `Checkpoints.restore`.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it does not fit `like`.
      RunFailure: the storage fails.
    """
    folder, _ = hosts.together("restore", _step_folder, run, step)
    try:
        found, _ = reading.read(folder, {"params": arrays.flatten(like)}, check)
    except Damaged as error:
        raise reading.refused(folder, error) from error
    return arrays.unflatten(like, found["params"])


def load_config(run: str | os.PathLike, step: int | None = None) -> dict:
    """The configuration saved with a checkpoint (default: the newest).

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    return reading.read_config(_step_folder(run, step)[0])


def _step_folder(run: str | os.PathLike, step: int | None) -> tuple[epath.Path, int]:
    folder = find(run)
    if folder is None:
        raise UserError(f"no checkpoints in {run}: {why_missing(run)}")
    steps = folders.steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(f"no {wanted} in {folder}; steps saved there: {steps}")
    step = steps[-1] if step is None else step
    return folder / str(step), step
