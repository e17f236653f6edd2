"""A configuration as {"section.key": value} and back, and the words of an error about a wrong key or name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ibtpo.errors import UserError

_MOST_SHOWN = 200


class ConfigError(UserError):
    """A configuration that cannot run; the message is one line naming key, value, rule and way out."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"section.key": value} of a nested configuration, in its own order."""
    result = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """The nested configuration of {"section.key": value}."""
    config = ConfigDict()
    for path, value in flat.items():
        *sections, key = path.split(".")
        section = config
        for name in sections:
            if name not in section:
                section[name] = ConfigDict()
            section = section[name]
        section[key] = value
    return config


def shown(value: Any) -> str:
    """A value in a message: all of it, or where it is long its beginning."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return "a whole number of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"


def did_you_mean(value: Any, choices: Sequence[str]) -> str:
    if not choices:
        return ""
    folded = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(shown(value)[:100].strip("'").lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[matches[0]]!r}?" if matches else ""


def nearest_key(key: str, keys: Sequence[str] | Mapping[str, Any]) -> str:
    """A sentence that leads from a wrong key to the right one."""
    inside = [k for k in keys if k.startswith(key + ".")]
    if inside:
        return f"{key} is a section; set one of its keys: {', '.join(inside)}"
    same_leaf = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    matches = difflib.get_close_matches(key[:100], list(keys), n=1, cutoff=0.0)
    nearest = same_leaf[0] if len(same_leaf) == 1 else (matches or [""])[0]
    return f"the nearest valid key is {nearest}"
