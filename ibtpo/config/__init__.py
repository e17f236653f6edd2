"""From a config file and a command line to one checked, complete and locked configuration.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=3

A method is a named set of values for the keys that the config left open (`METHODS`); an explicit value wins. Whatever
is wrong with a configuration is said before anything heavy is imported, in one line, with exit code 2. Nothing here
imports JAX.
"""

from ibtpo.config.command_line import parse_flags, run
from ibtpo.config.describe import SFT
from ibtpo.config.files import load
from ibtpo.config.folders import ERROR_LOG, check_folder, check_run
from ibtpo.config.keys import ConfigError, flatten, unflatten
from ibtpo.config.methods import METHODS
from ibtpo.config.resolve import check_split, resolve, resolve_by, responses_per_question
from ibtpo.config.rules import RULES, Rule, stop_strings
from ibtpo.config.saved import CHANGES, EARLIER, SAVED_NAME, check_same, diff, load_saved, save
from ibtpo.config.sft_rules import SFT_RULES

__all__ = [
    "CHANGES",
    "EARLIER",
    "ERROR_LOG",
    "METHODS",
    "RULES",
    "SAVED_NAME",
    "SFT",
    "SFT_RULES",
    "ConfigError",
    "Rule",
    "check_folder",
    "check_run",
    "check_same",
    "check_split",
    "diff",
    "flatten",
    "load",
    "load_saved",
    "parse_flags",
    "resolve",
    "resolve_by",
    "responses_per_question",
    "run",
    "save",
    "stop_strings",
    "unflatten",
]
