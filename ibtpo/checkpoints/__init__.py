"""Checkpoints of a whole run: everything that makes a resumed run equal an unbroken one, complete and checked, or none.

Layout: <workdir>/checkpoints/<step>/, or <checkpoint.dir>/<step>/ for a run that was given one, with

    params/ optimizer/ reference/ counters/   arrays, written by Orbax
    extra.json   the data iterator's position, the configuration and the fingerprints of the run's inputs
    manifest     type, shape and checksum of every array; size and checksum of every file
"""

from ibtpo.checkpoints.find import find, has_any, latest_step, load_config, load_params, why_missing
from ibtpo.checkpoints.store import Checkpoints, check_writable

__all__ = [
    "Checkpoints",
    "check_writable",
    "find",
    "has_any",
    "latest_step",
    "load_config",
    "load_params",
    "why_missing",
]
