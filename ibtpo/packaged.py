"""The files that come with the package beside its modules: the configs and the tiny model.

In a checkout they lie at its root, `configs/` and `assets/`; a wheel has copies of both inside the package (setup.py),
so that nothing else is put where other packages are. Nothing here imports JAX.
"""

import os
import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parent


def root() -> pathlib.Path:
    """The folder that `configs/` and `assets/` are in."""
    return _PACKAGE if (_PACKAGE / "configs" / "base.py").is_file() else _PACKAGE.parent


def config_names() -> list[str]:
    """The configs by name: of each file of `configs/`, the name without its ending."""
    return sorted(file.stem for file in (root() / "configs").glob("*.py") if file.stem != "__init__")


def locate(path: str | os.PathLike, holding: str = "") -> pathlib.Path:
    """`path`, or where nothing is there the file or folder of this name that comes with the package.

    Only names in `assets/` and `configs/` are looked for, so that no other wrong path is led anywhere.

    Args:
      holding: a file without which a folder counts as not there: results may be written beside a model's name.
    """
    given = pathlib.Path(path)
    if given.parts and given.parts[0] in ("assets", "configs") and ".." not in given.parts:
        own = root() / given
        if not os.path.lexists(given / holding) and (own / holding).exists():
            return own
    return given
