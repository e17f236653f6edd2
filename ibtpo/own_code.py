"""Functions of the user, named in a configuration by where they are: `module:function`.

A module is found as by Python's import: on sys.path, and at last in the current folder, which the command `ibtpo` and
grading workers thereby share with `python -m`. Nothing here imports JAX.
"""

import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ibtpo.errors import UserError, one_line

_NAME = r"[^\W\d]\w*"
_PATH = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")
WORDS = "module:function of a function of your own (docs/extending.md)"

# What each key's function is called with.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "reward.kind": ("text", "reference"),
    "tree.strategy": ("tree", "responses", "options", "rng", "limits", "pending"),
    "loss.advantage": ("tree", "options"),
}


def is_path(name: str) -> bool:
    """Whether it has the form module:function; nothing is imported."""
    return _PATH.fullmatch(name) is not None


def split(path: str) -> tuple[str, str]:
    """(module, function) of a path."""
    module, _, name = path.partition(":")
    return module, name


@functools.cache
def find_module(key: str, path: str) -> ModuleType:
    """The module of a path, imported.

    Raises:
      UserError: there is none, or its import fails.
    """
    module, _ = split(path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: it hides nothing
    try:
        return importlib.import_module(module)
    except Exception as error:  # of any kind, for the code is the user's
        parents = [".".join(module.split(".")[: n + 1]) for n in range(module.count(".") + 1)]
        if isinstance(error, ModuleNotFoundError) and error.name in parents:
            raise UserError(
                f"{key}={path!r}: there is no module {error.name!r} in {os.getcwd()} or on Python's path: run the "
                "command where the file is, or add its folder to PYTHONPATH"
            ) from None
        raise UserError(f"{key}={path!r}: importing {module} failed ({one_line(error)}): correct it") from error


@functools.cache
def find(key: str, path: str) -> Callable[..., Any]:
    """The function of a path, checked for the parameters that `key` calls it with.

    Raises:
      UserError: no such module or function, it is no function, or it takes other parameters.
    """
    module, (_, name) = find_module(key, path), split(path)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, functions, n=1, cutoff=0.5)
        what = f"no function {name!r}" if function is None else f"a {type(function).__name__} {name!r}, no function"
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key}={path!r}: {module.__name__} ({_file(module)}) has {what}{hint}")
    wanted = PARAMETERS[key]
    try:
        signature = inspect.signature(function)
        signature.bind(*wanted)
    except TypeError:
        raise UserError(
            f"{key}={path!r}: {name}{signature} cannot be called as {name}({', '.join(wanted)}): give it these "
            "parameters, in this order"
        ) from None
    except ValueError:  # a builtin without a signature shows when it is called
        pass
    return function


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "a namespace without a file"
