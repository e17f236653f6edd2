"""The rule of each key: every key has one, and a value of another type or outside it is named."""

import itertools
import re

import pytest

from configs import base, tiny
from ibtpo.config import METHODS, RULES, ConfigError, flatten, resolve, unflatten
from tests.config_cases import ROOT, VALID


def test_every_key_has_a_rule_and_every_rule_a_key():
    assert set(flatten(base.get_config())) == set(RULES)
    assert set(flatten(tiny.get_config())) == set(RULES)


@pytest.mark.parametrize("name", ["base.py", "tiny.py"])
def test_every_value_is_commented(name):
    """Each assignment of a value has a comment on its line or right above."""
    lines = (ROOT / "configs" / name).read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"    \w+(\.\w+)+ = ", line) and "ConfigDict()" not in line:
            assert "  # " in line or above.strip().startswith("#"), line


# Keys with one of a few names. Data sets and models are listed in docs/data.md and models/presets.py.
TABLES = ("data.source", "data.decontaminate", "model.preset")
NAMED = sorted(k for k, rule in RULES.items() if rule.choices and k not in TABLES and not k.endswith("dtype"))


@pytest.mark.parametrize("key", NAMED)
def test_the_comment_of_a_key_lists_its_names(key):
    """The line in the docs that every name has."""
    lines = (ROOT / "configs" / "base.py").read_text().splitlines()
    leaf = key.split(".")[-1]
    section = {"method": "config", "eval": "evaluation"}.get(key.split(".")[0], key.split(".")[0])
    [at] = [i for i, line in enumerate(lines) if line.startswith(f"    {section}.{leaf} = ")]
    start = at
    while lines[start - 1].strip().startswith("#"):
        start -= 1
    text = " ".join(lines[start : at + 1])
    assert [name for name in RULES[key].choices if not re.search(rf"\b{name}\b", text)] == []


WRONG = {
    bool: [1, 0.5, "true", None],
    int: [True, 1.0, 1.5, "3", None, -2],
    float: [True, "0.5", None, float("nan"), float("inf"), -1.0],
    str: [True, 3, None],
}


@pytest.mark.parametrize("key", sorted(RULES))
def test_a_wrong_type_is_named(key):
    for value in WRONG[RULES[key].type]:
        if value is None and key in METHODS["ibtpo"]:
            continue  # None means "what the method says" there
        with pytest.raises(ConfigError) as caught:
            resolve(unflatten(VALID | {key: value}))
        message = str(caught.value)
        assert message.startswith(f"{key}={value!r} must be ") and "\n" not in message


@pytest.mark.parametrize("key", sorted(k for k, rule in RULES.items() if rule.choices))
def test_an_unknown_name_leads_to_the_nearest(key):
    for choice in RULES[key].choices:
        with pytest.raises(ConfigError, match=re.escape(f"did you mean {choice!r}?")):
            resolve(unflatten(VALID | {key: choice + "x"}))


WHOLE = {
    key: next((x for x in (1, 2, 0) if rule.test(float(x))), None) for key, rule in RULES.items() if rule.type is float
}


@pytest.mark.parametrize("key", sorted(key for key, value in WHOLE.items() if value is not None))
def test_float_keys_take_whole_numbers(key):
    resolved = flatten(resolve(unflatten(VALID | {key: WHOLE[key]})))[key]
    assert resolved == WHOLE[key] and type(resolved) is float
