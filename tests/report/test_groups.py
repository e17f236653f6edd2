"""Runs compared: repeats with other seeds are one curve with an interval; differences are named."""

import json

import numpy as np
import pytest
from scipy import stats

from ibtpo.metrics import MetricWriter
from ibtpo.report import groups


def make_run(folder, values, seed=0, **changes):
    """A run whose metric train/x has these values at updates 1, 2, ..."""
    with MetricWriter(folder, tensorboard=False) as writer:
        for step, value in enumerate(values, 1):
            writer.write(step, {"train/x": value})
    config = {"method": "ibtpo", "train": {"seed": seed}, "log": {"every": 1}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return groups.load(folder, folder.name)


def test_repeats_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"tiny_s{seed}", [1.0, 2.0], seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "grpo", [1.0, 2.0], 0, method="grpo"))
    runs.append(make_run(tmp_path / "again", [1.0, 2.0], 0))  # seed 0 a second time is no new sample
    runs.append(make_run(tmp_path / "tiny_s9", [1.0, 2.0], 9, log={"every": 5}))  # says nothing about learning
    (tmp_path / "grpo" / "config.json").write_text("{")
    runs.append(groups.load(tmp_path / "grpo", "no config"))
    found = groups.groups(runs)
    assert [list(group.runs) for group in found] == [[0, 1, 2, 5], [3], [4], [6]]
    assert found[0].name == "tiny_s (4 seeds)" or found[0].name == "tiny (4 seeds)"
    assert [group.name for group in found[1:]] == ["grpo", "again", "no config"]


@pytest.mark.parametrize("count", [3, 5, 12])
def test_the_interval_is_students(tmp_path, count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=(count, 4))
    [group] = groups.groups([make_run(tmp_path / f"r{i}", row, i) for i, row in enumerate(values)])
    steps, mean, low, high = group.curves["train/x"]
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    reach = stats.t.ppf(0.975, count - 1) * stats.sem(values, axis=0)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose(high - mean, reach, rtol=2e-4)
    np.testing.assert_allclose(mean - low, reach, rtol=2e-4)
    assert group.spread == f"95 % interval of the mean of {count} seeds"


def test_two_seeds_have_a_range_and_steps_that_both_have(tmp_path):
    runs = [make_run(tmp_path / "a1", [1.0, 5.0, 9.0], 1), make_run(tmp_path / "a2", [3.0, 1.0], 2)]
    [group] = groups.groups(runs)
    steps, mean, low, high = group.curves["train/x"]
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal([mean, low, high], [[2, 3], [1, 1], [3, 5]])
    assert group.spread == "range of 2 seeds"


def test_groups_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / f"x{i}", [1.0], seed=i % 2, method=f"m{i // 2}") for i in range(4)]
    assert [group.name for group in groups.groups(runs)] == ["x0, x1", "x2, x3"]


def test_differences_name_what_differs():
    tables = [{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}, {"a": 1, "b": 2, "c": 0}]
    assert groups.differences(tables) == {"b": [2, 3, 2], "c": [None, None, 0]}
    assert groups.differences(tables[:1]) == {}


@pytest.mark.parametrize("config", ["", "[1]", "[" * 10**5, "{", '{"method": 1}'])
def test_a_damaged_configuration_is_an_empty_one(tmp_path, config):
    make_run(tmp_path / "a", [1.0])
    (tmp_path / "a" / "config.json").write_text(config)
    (tmp_path / "a" / "environment.json").write_text(config)
    run = groups.load(tmp_path / "a", "a")
    assert run.config in ({}, {"method": 1}) and run.environment == {}
