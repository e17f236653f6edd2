"""The checkpoint that is evaluated: a run's newest one, or a Hugging Face directory."""

import os

from ibtpo import checkpoints, hub, memory, parallel
from ibtpo.checkpoints.hosts import from_first
from ibtpo.errors import UserError
from ibtpo.models.locate import model_folder
from ibtpo.policy import Policy, load_policy
from ibtpo.saved_policy import load_saved


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether it is a Hugging Face directory with weights."""
    folder = model_folder(path)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


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


def load_checkpoint(config, checkpoint: str | os.PathLike) -> Policy:
    """The policy of a Hugging Face directory, or of the newest checkpoint in a run's workdir.

    Raises UserError where `checkpoint` is neither.
    """
    step = identify(checkpoint).get("step")
    mesh = parallel.use_mesh(config.mesh)
    if step is None:
        return load_policy(config, path=os.fspath(checkpoint), mesh=mesh, check=memory.check_evaluation)
    return load_saved(config, checkpoint, step, mesh=mesh, check=memory.check_evaluation)[0]
