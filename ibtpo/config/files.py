"""Configurations in files: Python with `get_config()`, or JSON as a run saves it."""

import importlib.util
import json
import os
import traceback

from ml_collections import ConfigDict

from ibtpo.config.keys import ConfigError


def load(path: str) -> ConfigDict:
    """The configuration of a file: Python with `get_config()` (`path:text` calls get_config(text)), or saved JSON.

    Raises:
      ConfigError: no such file, or the file fails; with the line that failed.
    """
    name, *argument = [path] if os.path.isfile(path) else path.split(":", 1)
    if not os.path.isfile(name):
        raise ConfigError(
            f"--config={path}: no such file (looked in {os.getcwd()}); give the path of a config, e.g. configs/tiny.py"
        )
    try:
        if name.endswith(".json"):
            with open(name, encoding="utf-8") as file:
                config = ConfigDict(json.load(file))
        else:
            spec = importlib.util.spec_from_file_location("_ibtpo_config_file", name)
            if spec is None or spec.loader is None:
                raise TypeError("the name must end in .py or .json")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            config = module.get_config(*argument)
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() returned {type(config).__name__}, not a ConfigDict; is `return` missing?")
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == os.path.abspath(name)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        place = f"{name}, line {line}" if line else name
        message = " ".join(str(error).split())
        raise ConfigError(f"--config={path}: {place}: {type(error).__name__}: {message}") from error
    return config
