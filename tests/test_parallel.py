"""The mesh and its rules; the update on eight devices equals the update on one."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from ibtpo.errors import UserError
from ibtpo.parallel import make_mesh, partition_spec, shard_batch


def test_every_mesh_of_eight_devices_computes_what_one_device_does(repo_root):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiling is nearly all of the cost here, so it is told to hurry.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "PYTHONPATH": str(repo_root),
    }
    done = subprocess.run(
        [sys.executable, repo_root / "tests" / "eight_devices.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    counted = [done.stdout.count(f"same {what}") for what in ("update", "adapters", "responses")]
    assert counted == [8, 2, 3], done.stdout


def mesh_of(data, fsdp, tensor, count=8):
    """A mesh over `count` stand-ins for devices, enough for every rule."""
    abstract = jax.sharding.AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))
    assert abstract.size == count
    return abstract


def test_rules_that_do_not_divide_a_dimension_leave_it_whole():
    mesh = mesh_of(2, 2, 2)
    spec = partition_spec(("layers", "embed", "kv_heads", "head_dim"), (3, 6, 2, 4), mesh)
    assert spec == PartitionSpec(None, ("fsdp",), ("tensor",), None)
    spec = partition_spec(("layers", "embed", "kv_heads", "head_dim"), (3, 5, 1, 4), mesh)
    assert spec == PartitionSpec(None, None, None, None)
    assert partition_spec(("rows", None), (8, 3), mesh) == PartitionSpec(("data", "fsdp"), None)
    assert partition_spec(("rows", None), (6, 3), mesh) == PartitionSpec(("data",), None)
    assert partition_spec(("rows", None), (5, 3), mesh) == PartitionSpec(None, None)
    # An axis can split one dimension only: the first takes it.
    assert partition_spec(("heads", "mlp"), (4, 4), mesh) == PartitionSpec(("tensor",), None)
    with pytest.raises(ValueError, match="logical axis 'expert' has no rule"):
        partition_spec(("expert",), (4,), mesh)


def sizes(**changes):
    return ConfigDict(dict(data=-1, fsdp=1, tensor=1) | changes)


def test_the_free_axis_takes_what_remains():
    count = jax.device_count()
    assert dict(make_mesh(sizes()).shape) == {"data": count, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(sizes(data=1, tensor=-1)).shape) == {"data": 1, "fsdp": 1, "tensor": count}


def test_impossible_meshes_are_refused_with_the_numbers():
    count = jax.device_count()
    with pytest.raises(UserError, match=rf"mesh\.tensor={count + 1}: {count + 1} does not divide the {count} devices"):
        make_mesh(sizes(tensor=count + 1))
    devices = [jax.devices()[0]] * 4  # never used: the sizes are refused first
    with pytest.raises(UserError, match=r"uses 2 of 4 devices; set one size to -1"):
        make_mesh(sizes(data=2), devices)
    with pytest.raises(UserError, match="at most one is -1"):
        make_mesh(sizes(fsdp=-1))
    with pytest.raises(UserError, match="at least 1"):
        make_mesh(sizes(data=1, fsdp=0))


def test_a_batch_keeps_its_values_when_sharded():
    batch = {"tokens": np.arange(12).reshape(4, 3)}
    placed = shard_batch(batch, make_mesh(sizes()))
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert isinstance(placed["tokens"], jax.Array)
