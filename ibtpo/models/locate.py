"""Where the model is that a configuration names."""

import os
import pathlib

from ibtpo import packaged


def model_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder of `model.path` or of a command line: itself, or the model of this name that comes with the package.

    Whether it holds a model is for its reader to say.
    """
    return packaged.locate(path, "config.json")
