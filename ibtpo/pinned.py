"""The revisions of the hub that a command goes on with, the same on all hosts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ibtpo import checkpoints, hub
from ibtpo import config as config_lib
from ibtpo.checkpoints.hosts import from_first
from ibtpo.errors import UserError


def pinned(
    config: Any, earlier: Callable[[], Mapping[str, Any] | None], sections: Sequence[str] = ("model", "data")
) -> Any:
    """The configuration with the commits that its ids of the hub stand for; itself where it has none.

    The first process asks the hub, where `earlier`, called there, gives no configuration of a run that knows already.
    sections: those of which.

    Raises:
      UserError: as `hub.pins`.
    """
    if not hub.may_need_pins(config):
        return config
    found = from_first("pins", lambda: hub.pins(config, earlier(), sections))
    if jax.process_index() == 0:
        for section, revision in found.items():
            name = config.model.path if section == "model" else config.data.source
            print(f"{name}: revision {revision}", flush=True)
    return hub.with_pins(config, found)


def of_run(config: Any, workdir: str) -> Any:
    """`pinned` for a run that begins or goes on in `workdir`."""

    def earlier() -> Mapping[str, Any] | None:
        saved = config_lib.load_saved(workdir)
        run = config.checkpoint.dir or workdir
        try:
            return checkpoints.load_config(run) if saved is None and checkpoints.has_any(run) else saved
        except UserError:  # a damaged checkpoint is for the one who restores it
            return None

    return pinned(config, earlier)


def of_checkpoint(config: Any, run: str, step: int) -> Any:
    """`pinned` for the use of a run's checkpoint."""
    return pinned(config, lambda: checkpoints.load_config(run, step))
