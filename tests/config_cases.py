"""Configurations and command lines for the tests of `ibtpo.config`."""

import pathlib

from absl import flags

from configs import base
from ibtpo.config import flatten, parse_flags, resolve, unflatten

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = str(ROOT / "configs" / "tiny.py")


def parse(*arguments, path=TINY):
    """parse_flags in this process, with flags of its own."""
    argv = ["program", f"--config={path}", "--workdir=w", *arguments]
    return parse_flags(argv, flag_values=flags.FlagValues())[0]


def runnable(**changes):
    """base.py with the two keys it leaves to the user, and changes {"section__key": value}."""
    config = base.get_config()
    config.model.path, config.data.source = "model", "jsonl:problems.jsonl"
    return unflatten(flatten(config) | {key.replace("__", "."): value for key, value in changes.items()})


VALID = flatten(resolve(runnable()))
