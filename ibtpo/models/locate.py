"""Where the model is that a configuration names: a folder, or the hub's cache."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ibtpo import hub, packaged


def model_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder of `model.path` or of a command line: itself, or the model of this name that comes with the package.

    Whether it holds a model is for its reader to say.
    """
    return packaged.locate(path, "config.json")


def is_model_folder(path: str | os.PathLike) -> bool:
    """Whether it is a Hugging Face directory with weights."""
    folder = model_folder(path)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def configured_folder(model: Mapping[str, Any], patterns: Sequence[str] = hub.MODEL_FILES) -> pathlib.Path:
    """The folder of a configuration's section `model`; where its path is an id of the hub, that in the hub's cache, of
    model.revision, fetched if need be.

    Args:
      patterns: of the files that are needed.

    Raises:
      UserError: it is no folder, and it cannot be fetched (`hub.Repo`).
    """
    repo = hub.model_repo(model)
    if repo is None:
        return model_folder(model["path"])
    return repo.folder(model.get("revision", ""), patterns)
