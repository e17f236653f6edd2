"""The programs and parameters that a config needs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base, tiny
from ibtpo.config import METHODS, resolve
from ibtpo.packing import plan
from ibtpo.run_plan import RunPlan
from ibtpo.tree import stack_trees
from tests.packing_cases import MAX_NEW, random_tree


def config_of(**changes):
    config = tiny.get_config()
    for key, value in changes.items():
        section, name = key.split("__") if "__" in key else ("", key)
        target = config[section] if section else config
        target[name] = value
    return resolve(config)


@pytest.mark.parametrize(
    ("changes", "log_probs_of", "reference"),
    [
        (dict(method="ibtpo"), ("reference",), True),
        (dict(method="ibtpo", loss__kl=0.0), (), False),
        (dict(method="ibtpo", loss__kl=0.0, loss__ib_confidence="reference"), ("reference",), True),
        (dict(method="gspo"), ("policy",), False),
        (dict(method="gspo", loss__kl=0.001), ("reference", "policy"), True),
        (dict(method="dapo", loss__importance_cap=2.0), (), False),  # the update itself computes the old ones
        (dict(method="dapo", loss__importance_cap=2.0, train__epochs=2), ("policy",), False),
    ],
)
def test_programs_and_the_reference(changes, log_probs_of, reference):
    found = RunPlan.from_config(config_of(**changes))
    assert (found.log_probs_of, found.keep_reference) == (log_probs_of, reference)


def test_row_lengths_are_few_and_known_before_the_run():
    config = base.get_config()
    config.model.path, config.data.source = "x", "tfds:gsm8k"
    found = RunPlan.from_config(resolve(config))
    assert found.row_lengths == (6400, 12_800, 25_600) and found.num_rows == 128
    # The trees that are trained on choose.
    assert [found.row_tokens(n) for n in (0, 6400, 6401, 25_600)] == [6400, 6400, 12_800, 25_600]
    fixed = RunPlan.from_config(config_of(train__row_tokens=512))
    assert fixed.row_lengths == (512,) and fixed.row_tokens(900) == 512
    # Trees of up to 12 x 72 + 64 tokens are cut, at most into as many pieces as they have responses.
    assert fixed.num_rows == 32 * 12
    assert RunPlan.from_config(config_of(train__questions_per_step=31)).num_rows == 32


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_buffer_holds_whatever_is_sampled(seed):
    """As many rows as RunPlan says, for trees cut at the shortest rows that are allowed."""
    rng = np.random.default_rng(seed)
    tree = stack_trees([random_tree(rng) for _ in range(5)])
    group, per_step = tree.rewards.shape[1], int(rng.integers(1, 4))
    found = RunPlan(False, False, False, False, 1, (3 + MAX_NEW,), group, 5, per_step)
    plan(tree, row_tokens=3 + MAX_NEW, rows_per_step=per_step, num_rows=found.num_rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_plan(method):
    found = RunPlan.from_config(config_of(method=method))
    assert found.num_rows % found.rows_per_step == 0 and found.updates_per_step == 1
