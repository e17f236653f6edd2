"""Fixtures of the tests of the TPU scripts."""

import pytest

from tests.tpu_scripts.world import POD, RUN, World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def pod(world):
    """A world with a pod of two workers that is set up; `train` is what its training command does."""
    world.commit()
    world.write("execute", "")
    world("create", *POD, "--topology=v5e:2x4")
    world("setup", *RUN)
    (world.path / "calls.jsonl").unlink()
    return world
