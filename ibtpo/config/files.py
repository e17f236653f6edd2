"""Configurations in files: Python with `get_config()`, or JSON as a run saves it."""

import importlib.util
import json
import os
import traceback

from ml_collections import ConfigDict, FrozenConfigDict

from ibtpo.config.keys import ConfigError
from ibtpo.errors import one_line


def load(path: str) -> ConfigDict:
    """The configuration of a file: Python with `get_config()` (`path:text` calls get_config(text)), or saved JSON.

    Raises:
      ConfigError: no such file, or the file fails; with the line that failed.
    """
    if "\0" in path:
        raise ConfigError(f"--config={path!r}: a file name has no zero byte in it")
    name, *argument = [path] if os.path.isfile(path) else path.split(":", 1)
    if os.path.isdir(name):
        raise ConfigError(f"--config={path}: that is a folder; give the path of a config in it, e.g. configs/tiny.py")
    if not os.path.isfile(name):
        raise ConfigError(
            f"--config={path}: no such file (looked in {os.getcwd()}); give the path of a config, e.g. configs/tiny.py"
        )
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


def _line(name: str, error: BaseException) -> str:
    """"line 3: ", of the file `name`, where the error has one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == os.path.abspath(name)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    return f"line {line}: " if line else ""
