"""Reading one checkpoint, checked from end to end: the manifest, every file, whether it fits, every array.

All of it is for all hosts together: an error on one is raised on all.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from ibtpo.checkpoints import arrays, folders, hosts, manifest
from ibtpo.checkpoints.damage import Damaged
from ibtpo.checkpoints.saving import EXTRA
from ibtpo.errors import UserError


def read(
    folder: epath.Path, wanted: dict[str, dict[str, Any]], check: Callable[[dict], None] | None = None
) -> tuple[dict[str, dict[str, jax.Array]], dict]:
    """({item: {name: array}}, extra) of the checkpoint in a folder.

    Args:
      wanted: arrays with the types, shapes and placement to read.
      check: is given what was saved beside the arrays before they are read, and raises what speaks against it.

    Raises:
      Damaged: it is not what was saved.
      UserError: it does not fit what is wanted; the message names the first array that differs, with both shapes. It
        cannot be read here.
      RunFailure: the storage fails.
    """
    saved, extra = hosts.together("restore", read_extra, folder)

    def fits() -> None:
        if check is not None:
            check(extra)
        for name, flat in wanted.items():
            if name not in saved["arrays"]:
                raise UserError(
                    f"checkpoint {folder} has no {name} but this run needs it (loss.kl > 0 or "
                    "loss.ib_confidence='reference'): resume with the options it was made with, or "
                    "start in a new working directory"
                )
            arrays.check_fit(folder, name, saved["arrays"][name], flat)

    hosts.together("restore", fits)
    found = hosts.together(
        "restore", lambda: {name: arrays.read(folder / name, flat) for name, flat in wanted.items()}
    )
    for name, flat in found.items():
        arrays.check_sums(name, flat, saved["arrays"][name])
    return found, extra


def read_extra(folder: epath.Path) -> tuple[dict, dict]:
    """(manifest, what was saved beside the arrays) of a checkpoint whose files, on the first host, are all compared
    with the manifest. Errors as `read`."""
    if not (folder / manifest.NAME).exists() and (folder / "_CHECKPOINT_METADATA").exists():
        raise UserError(
            f"checkpoint {folder} was saved by an earlier version of ibtpo, without checksums: continue with that "
            "version, or start in a new working directory"
        )
    saved = manifest.read(folder)
    if jax.process_index() == 0:
        manifest.check_files(folder, saved)
    return saved, json.loads(manifest.check_file(folder, EXTRA, *saved["files"][EXTRA]))


def read_config(folder: epath.Path) -> dict:
    """The configuration saved with the checkpoint in a folder.

    Raises:
      UserError: it is damaged.
    """
    try:
        return read_extra(folder)[1]["config"]
    except Damaged as error:
        raise refused(folder, error) from error


def refused(folder: epath.Path, error: Damaged) -> UserError:
    """The error of a reader that was to use a damaged checkpoint, and no other."""
    others = [step for step in folders.steps(folder.parent) if str(step) != folder.name]
    elsewhere = f"other steps there: {', '.join(map(str, others))}" if others else "there is no other step"
    return UserError(
        f"checkpoint {folder} is damaged ({error}): take another copy or step ({elsewhere}); the training run itself "
        "goes on from the newest good one"
    )
