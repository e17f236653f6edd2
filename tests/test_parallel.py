"""The mesh and its rules; the update on eight devices equals the update on one."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from ibtpo.parallel import make_mesh, partition_spec, shard_batch

EIGHT_DEVICES = """
import jax, numpy as np, optax
from flax import nnx
from ml_collections import ConfigDict
from ibtpo.losses import LossOptions
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from ibtpo.packing import pack, token_weights
from ibtpo.parallel import make_mesh, shard_batch, shard_params, shardings
from ibtpo.state import create_state, make_update
from ibtpo.tree import Response, build_tree, stack_trees

assert jax.device_count() == 8
config = ModelConfig("qwen3", vocab_size=12, embed_dim=16, mlp_dim=24, num_layers=1, num_heads=4, num_kv_heads=2,
                     head_dim=4, tie_embeddings=True, qk_norm=True)
graphdef, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param)
rng = np.random.default_rng(0)

def tree():
    a, b = rng.integers(0, 12, 7), rng.integers(0, 12, 4)
    old = -2.5 + 0.3 * rng.standard_normal(11)
    return build_tree(rng.integers(0, 12, 3), [
        Response(0, -1, 0, 0, a, old[:7], "stop", 1.0),
        Response(1, 0, 3, 1, np.r_[a[:3], b], np.r_[old[:3], old[7:]], "stop", 0.0),
    ], lambda tokens: [*range(2, len(tokens), 2), len(tokens)])

trees = stack_trees([tree() for _ in range(13)])
values = rng.standard_normal((13, 2, trees.node_parent.shape[1])).astype(np.float32)
weights = token_weights(trees, values, aggregation="response_mean", max_new_tokens=7)
batch, _ = pack(trees, *weights, row_tokens=16, row_multiple=8)  # 13 rows of one tree and 3 of padding
assert batch.tokens.shape == (16, 16)
reference = (-2.5 + 0.2 * rng.standard_normal(batch.tokens.shape)).astype(np.float32)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0, momentum=0.9))
update = make_update(graphdef, optimizer, LossOptions(kl=0.1, dual_clip=3.0), temperature=0.9, rows_per_step=8,
                     token_block=5, donate=False)

def run(mesh):
    state = create_state(params, optimizer, jax.random.key(0), keep_reference=False)
    data = (batch, reference)
    if mesh is not None:
        state, data = shard_params(state, mesh), shard_batch(data, mesh)
        for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings(state, mesh))):
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
    new, metrics = update(state, *data)
    return state, new, metrics

_, expected, expected_metrics = run(None)
for sizes in ((8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)):
    mesh = make_mesh(ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes))))
    before, new, metrics = run(mesh)
    specs = [sharding.spec for sharding in jax.tree.leaves(shardings(before.params, mesh))]
    assert {axis for spec in specs for axes in spec if axes for axis in np.atleast_1d(axes)} == {"fsdp", "tensor"}
    q = before.params["layers"]["q"].get_value()
    shard = q.addressable_shards[0].data.shape
    heads = 4 // sizes[2] if 4 % sizes[2] == 0 else 4  # four heads do not divide among eight devices
    assert shard == (1, 16 // sizes[1], heads, 4), (sizes, shard)
    for name in expected_metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=2e-5, atol=1e-6, err_msg=name)
    total = error = 0.0
    for a, b, p in zip(*map(jax.tree.leaves, (new.params, expected.params, params))):
        error += float(((np.asarray(a) - np.asarray(b)) ** 2).sum())
        total += float(((np.asarray(b) - np.asarray(p)) ** 2).sum())
    relative = (error / total) ** 0.5
    print(sizes, relative)
    assert total > 1e-4 and relative <= 2e-6, (sizes, relative)
print("all meshes agree")
"""


def test_an_update_on_eight_devices_equals_the_update_on_one(repo_root):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiling is nearly all of the cost here, so it is told to hurry.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "PYTHONPATH": str(repo_root),
    }
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "all meshes agree" in done.stdout, done.stdout + done.stderr[-4000:]


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
    assert partition_spec(("rows", None), (6, 3), mesh) == PartitionSpec(None, None)
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
    with pytest.raises(ValueError, match=rf"mesh\.tensor={count + 1}: {count + 1} does not divide the {count} devices"):
        make_mesh(sizes(tensor=count + 1))
    devices = [jax.devices()[0]] * 4  # never used: the sizes are refused first
    with pytest.raises(ValueError, match=r"uses 2 of 4 devices; set one size to -1"):
        make_mesh(sizes(data=2), devices)
    with pytest.raises(ValueError, match="at most one is -1"):
        make_mesh(sizes(fsdp=-1))
    with pytest.raises(ValueError, match="at least 1"):
        make_mesh(sizes(data=1, fsdp=0))


def test_a_batch_keeps_its_values_when_sharded():
    batch = {"tokens": np.arange(12).reshape(4, 3)}
    placed = shard_batch(batch, make_mesh(sizes()))
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert isinstance(placed["tokens"], jax.Array)
