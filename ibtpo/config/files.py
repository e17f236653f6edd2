"""Configurations in files: Python with `get_config()`, or JSON as a run saves it."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType

from ml_collections import ConfigDict, FrozenConfigDict

from ibtpo import packaged
from ibtpo.config.keys import ConfigError, did_you_mean
from ibtpo.errors import one_line

_NAME = re.compile(r"\w+")


def load(path: str) -> ConfigDict:
    """The configuration of a file: Python with `get_config()` (`path:text` calls get_config(text)), or saved JSON.

    Args:
      path: a file; or the name of a config that comes with the package, "tiny" or "configs/tiny.py" (`packaged`).

    Raises:
      ConfigError: no such file or name, or the file fails; with the line that failed.
    """
    if "\0" in path:
        raise ConfigError(f"--config={path!r}: a file name has no zero byte in it")
    name, *argument = _find(path)
    try:
        if name.endswith(".json"):
            with open(name, encoding="utf-8") as file:
                content = json.load(file)
            if not isinstance(content, dict):
                raise TypeError(f"it holds {type(content).__name__}, not an object with the sections of a config")
            config = ConfigDict(content)
        else:
            spec = importlib.util.spec_from_file_location("_ibtpo_config_file", name)
            if spec is None or spec.loader is None:
                raise TypeError("the name must end in .py or .json")
            module = importlib.util.module_from_spec(spec)
            with _configs_importable():
                spec.loader.exec_module(module)
                if not callable(getattr(module, "get_config", None)):
                    raise TypeError("it defines no function get_config()")
                config = module.get_config(*argument)
        if isinstance(config, FrozenConfigDict):
            config = ConfigDict(config)
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returned {type(config).__name__}, not a ConfigDict; is `return` missing?")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script may end with sys.exit()
        raise ConfigError(f"--config={path}: {_line(name, error)}{one_line(error)}: correct the file") from error
    return config


def _find(path: str) -> list[str]:
    """The file of --config and, where the text after it is no part of a file's name, that text."""
    if os.path.isfile(path):
        return [path]
    name, *argument = path.split(":", 1)
    if _NAME.fullmatch(name) and name in packaged.config_names():
        return [os.fspath(packaged.root() / "configs" / f"{name}.py"), *argument]
    file = os.fspath(packaged.locate(name))
    if os.path.isdir(file):
        raise ConfigError(f"--config={path}: that is a folder; give the path of a config in it, e.g. configs/tiny.py")
    if not os.path.isfile(file):
        names = packaged.config_names()
        raise ConfigError(
            f"--config={path}: no such file (looked in {os.getcwd()}){did_you_mean(name, names)}; give the path of a "
            f"config, or the name of one that comes with ibtpo: {', '.join(names)}"
        )
    return [file, *argument]


class _Configs(importlib.abc.MetaPathFinder):
    """Finds `configs`, from which a config file takes what it starts from (`from configs import base`): a folder of
    that name on sys.path, whose own files come first, and the configs that come with the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of the package `configs`; None for any other module, and for a module configs.py."""
        if fullname != "configs":
            return None
        spec, own = importlib.machinery.PathFinder.find_spec(fullname, path), os.fspath(packaged.root() / "configs")
        folders = [] if spec is None else spec.submodule_search_locations
        if folders is None:
            return spec
        if spec is None or spec.loader is None or spec.origin is None:  # none there, or a folder without __init__.py
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [*folders, *([] if own in folders else [own])]
        return spec


@contextlib.contextmanager
def _configs_importable() -> Iterator[None]:
    """Makes `from configs import base` work from any folder, while a config file runs."""
    finder, own = _Configs(), os.fspath(packaged.root() / "configs")
    imported = getattr(sys.modules.get("configs"), "__path__", None)
    if isinstance(imported, list) and own not in imported:  # of a program that has a package of this name
        imported.append(own)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _line(name: str, error: BaseException) -> str:
    """"line 3: ", of the file `name`, where the error has one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == os.path.abspath(name)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    return f"line {line}: " if line else ""
