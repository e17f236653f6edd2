"""Methods as sets of values: complete, as their sources state them, and filled in where a config is open."""

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import base, tiny
from ibtpo import config as config_lib
from ibtpo.config import METHODS, RULES, flatten, resolve, unflatten
from tests.config_cases import ROOT, runnable


@given(
    method=st.sampled_from(sorted(METHODS)),
    explicit=st.fixed_dictionaries(
        {},
        optional={
            "tree.strategy": st.sampled_from(RULES["tree.strategy"].choices),
            "tree.initial": st.integers(2, 9),
            "tree.rounds": st.integers(1, 9),
            "tree.top_k": st.integers(1, 4),
            "loss.advantage": st.sampled_from(RULES["loss.advantage"].choices),
            "loss.clip_high": st.sampled_from([0.2, 0.3]),
            "loss.kl": st.sampled_from([0.0, 0.001, 0.1]),
            "loss.aggregation": st.sampled_from(RULES["loss.aggregation"].choices),
            "loss.whiten_advantages": st.booleans(),
            "train.refills": st.integers(0, 2),
        },
    ),
)
def test_method_fills_what_is_open_and_explicit_values_win(method, explicit):
    config = unflatten(flatten(runnable()) | {"method": method} | explicit)
    before = copy.deepcopy(flatten(config))
    resolved = flatten(resolve(config))
    assert flatten(config) == before  # the argument is left alone
    assert {key: resolved[key] for key in METHODS[method]} == METHODS[method] | explicit
    unchanged = set(RULES) - set(METHODS[method]) - {"method"}
    assert {k: resolved[k] for k in unchanged} == {k: before[k] for k in unchanged}
    assert flatten(resolve(unflatten(resolved))) == resolved  # idempotent


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_what_is_open_and_nothing_else(method):
    open_keys = {key for key, value in flatten(base.get_config()).items() if value is None}
    assert set(METHODS[method]) == open_keys
    # The same keys are open in the demo, which has sizes for all of them.
    config = resolve(unflatten(flatten(tiny.get_config()) | {"method": method}))
    assert {key: flatten(config)[key] for key in open_keys} == METHODS[method]


# Where a method says nothing.
USUAL = {
    "loss.objective": "clip",
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.2,
    "loss.kl": 0.001,
    "loss.aggregation": "response_mean",
    "loss.shared_tokens": "each",
    "loss.deviation": "sample",
    "loss.group_of_one": "zero",
    "loss.skip_zero_advantages": False,
    "loss.max_old_probability": 1.0,
    "loss.entropy_advantage": 0.0,
    "loss.whiten_advantages": False,
    "reward.overlong_share": 0.0,
    "train.refills": 0,
}
# The settings of each method, beside its advantage and the branching of its trees.
STATED = {
    "ibtpo": ("ib", "ibtpo", {"loss.deviation": "population"}),
    "grpo": ("independent", "grpo", {}),
    "dr_grpo": ("independent", "dr_grpo", {"loss.aggregation": "fixed_length"}),
    "dapo": (
        "independent",
        "grpo",
        {
            "loss.clip_high": 0.28,
            "loss.aggregation": "token_mean",
            "loss.kl": 0.0,
            "reward.overlong_share": 512 / 2048,
            "train.refills": 9,
        },
    ),
    "rloo": ("independent", "rloo", {}),
    "gspo": (
        "independent",
        "grpo",
        {"loss.objective": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, "loss.kl": 0.0},
    ),
    "cispo": (
        "independent",
        "grpo",
        {"loss.objective": "cispo", "loss.clip_low": 1.0, "loss.aggregation": "token_mean"},
    ),
    "sapo": ("independent", "grpo", {"loss.objective": "sapo"}),
    "ibro": ("independent", "grpo", {"loss.entropy_advantage": 5e-3}),
    "tempo": (
        "independent",
        "tempo",
        {"loss.clip_high": 0.28, "loss.aggregation": "token_mean", "loss.kl": 0.0},
    ),
    "lambda_grpo": ("independent", "grpo", {"loss.shared_tokens": "once", "loss.kl": 0.0}),
    "treerl": ("entropy", "treerl", {"loss.clip_high": 0.26, "loss.kl": 0.0}),
    "treeadv": ("entropy", "treeadv", {}),
    "treepo": (
        "fixed_width",
        "treepo",
        {
            "loss.clip_high": 0.28,
            "loss.aggregation": "token_mean",
            "loss.kl": 0.0,
            "loss.whiten_advantages": True,
        },
    ),
    "tree_grpo": ("random", "tree_grpo", {"loss.group_of_one": "reward", "loss.aggregation": "token_mean"}),
    "spo_tree": (
        "fixed_width",
        "spo_tree",
        {
            "loss.max_old_probability": 0.9,
            "loss.aggregation": "unique_mean",
            "loss.skip_zero_advantages": True,
            "loss.whiten_advantages": True,
            "loss.kl": 1e-4,
        },
    ),
    "treerpo": (
        "fixed_width",
        "treerpo",
        {"loss.aggregation": "unique_mean", "loss.skip_zero_advantages": True, "loss.deviation": "bernoulli"},
    ),
}


def test_methods_are_as_stated():
    assert set(STATED) == set(METHODS)
    for method, (strategy, advantage, settings) in STATED.items():
        config = resolve(runnable(method=method))
        assert (config.tree.strategy, config.loss.advantage) == (strategy, advantage)
        assert config_lib.responses_per_question(config.tree) == (8 if strategy == "independent" else 12)
        chosen = {key: flatten(config)[key] for key in METHODS["ibtpo"] if not key.startswith("tree.")}
        assert chosen == USUAL | {"loss.advantage": advantage} | settings
        assert config.loss.mask_uniform_groups and config.reward.overlong_penalty == 1.0


def test_the_comments_of_open_keys_name_the_methods_values():
    """What base.py says of a placeholder is what the methods fill in."""
    lines = (ROOT / "configs" / "base.py").read_text().splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"    (\w+\.\w+) = config_dict\.placeholder\(float\)", line)
        if match:
            start = number
            while lines[start - 1].strip().startswith("#"):
                start -= 1
            text = " ".join(lines[start : number + 1])
            values = {preset[match[1]] for preset in METHODS.values()}
            numbers = {float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)}
            assert values <= numbers, (match[1], values, numbers)
