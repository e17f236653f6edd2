"""Presets of the generated tasks by name: the values that `data.difficulty` may take."""

from collections.abc import Mapping
from typing import TypeVar

from ibtpo.errors import UserError

Preset = TypeVar("Preset")


def find_difficulty(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset called `name`; UserError with the valid names when there is none."""
    if name not in presets:
        raise UserError(f"unknown data.difficulty {name!r}: choose one of {sorted(presets)}")
    return presets[name]
