"""The checkpoint that is evaluated: a run's newest one, or a Hugging Face directory."""

import os
from typing import Any, NamedTuple

from ibtpo import checkpoints, hub, memory, parallel, pinned
from ibtpo.checkpoints.hosts import from_first
from ibtpo.errors import UserError
from ibtpo.models.locate import is_model_folder, model_folder
from ibtpo.policy import Policy, load_policy
from ibtpo.saved_policy import load_saved


def on_this_machine(config, checkpoint: str) -> str:
    """`checkpoint` itself; of an id of the hub ("hf:<owner>/<name>", or that in model.path) its folder in the cache.

    Raises:
      UserError: it cannot be fetched.
    """
    repo = hub.checkpoint_repo(config.model, checkpoint)
    if repo is None:
        return checkpoint
    asked = config.model.revision if repo.id == config.model.path else ""
    revision = from_first("checkpoint", lambda: repo.pin(asked))
    return os.fspath(repo.folder(revision, hub.MODEL_FILES))


class Opened(NamedTuple):
    """A checkpoint that is there: its path, `identify` of it, its policy, and the configuration with the revisions of
    the hub that it was trained on, or that its data have now."""

    path: str
    identity: dict
    policy: Policy
    config: Any


def open_checkpoint(config, checkpoint: str) -> Opened:
    """Finds, fetches and loads what `--checkpoint` or model.path names, an id of the hub too.

    Raises:
      UserError: as `on_this_machine`, `identify` and `load_checkpoint`.
    """
    path = on_this_machine(config, checkpoint)
    identity = from_first("identity", lambda: identify(path))  # a run may save another checkpoint meanwhile
    if "step" in identity:
        config = pinned.of_checkpoint(config, path, identity["step"])
    else:
        config = pinned.pinned(config, lambda: None, ("data",))
    return Opened(path, identity, load_checkpoint(config, path, identity), config)


def identify(checkpoint: str | os.PathLike) -> dict:
    """The identity of a checkpoint, as JSON: its path, and a run's step or a folder's weights (size and time).

    Raises:
      UserError: it is neither a run nor a Hugging Face directory, or as `checkpoints.find`.
    """
    if is_model_folder(checkpoint):
        model = model_folder(checkpoint)
        files = sorted(model.glob("*.safetensors"))
        weights = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
        return {"path": os.path.abspath(model), "weights": weights}
    folder = checkpoints.find(checkpoint)
    if folder is None:
        raise UserError(
            f"--checkpoint={checkpoint} holds neither a run ({checkpoints.why_missing(checkpoint)}) nor a Hugging Face "
            "model (no config.json with *.safetensors)"
        )
    return {"path": os.fspath(folder), "step": checkpoints.latest_step(checkpoint)}


def load_checkpoint(config, checkpoint: str | os.PathLike, identity: dict | None = None) -> Policy:
    """The policy of a Hugging Face directory, or of a checkpoint in a run's workdir: that of `identity`, the newest one
    where there is none.

    Raises UserError where `checkpoint` is neither.
    """
    step = (identity or identify(checkpoint)).get("step")
    mesh = parallel.use_mesh(config.mesh)
    if step is None:
        return load_policy(config, path=os.fspath(checkpoint), mesh=mesh, check=memory.check_evaluation)
    return load_saved(config, checkpoint, step, mesh=mesh, check=memory.check_evaluation)[0]
