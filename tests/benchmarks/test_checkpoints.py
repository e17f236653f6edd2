"""The benchmark of checkpoints on a small state: its two ways write and read the same arrays."""

import jax
import numpy as np
from etils import epath

from benchmarks import checkpoints


def test_both_ways_restore_the_same_arrays(tmp_path):
    items = checkpoints.make_items(800_000)
    path = epath.Path(tmp_path)
    checkpoints.save_with(path, items)
    checkpoints.save_without(path, items)
    ways = (checkpoints.restore_with(path, items), checkpoints.restore_without(path, items))
    for found in ways:
        assert jax.tree.structure(found) == jax.tree.structure(items)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(items)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_its_figures_are_those_of_the_files(monkeypatch):
    monkeypatch.setattr(checkpoints, "QUICK", (800_000, 1))
    figures = checkpoints.run(quick=True, log=lambda text: None)
    assert [goal["name"].split()[0] for goal in figures["goals"]] == ["save", "restore"]
    assert all(goal["value"] > 0 for goal in figures["goals"])
    # Random numbers in float32, three times, and once in bfloat16, compress a little; indices come on top.
    assert 11 < figures["bytes_per_parameter"] < 15
    assert figures["array_bytes"] == 14 * figures["parameters"]
