"""Import: every tensor in its place, every bit of it, on every mesh."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from tests.models.hf.folders import write_model
from tests.models.reference import CASES, make_reference


def test_shardings_place_the_parameters(checkpoint):
    mesh = jax.make_mesh((1,), ("x",))
    plain = hf.load(checkpoint)
    _, params = nnx.split(plain, nnx.Param)
    shardings = jax.tree.map(lambda _: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()), params)
    placed = nnx.state(hf.load(checkpoint, shardings=shardings))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True):
        assert b.sharding.mesh == mesh
        np.testing.assert_array_equal(a, b)


def test_shardings_may_be_made_of_the_abstract_parameters(checkpoint):
    mesh = jax.make_mesh((1,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    decoder = hf.load(checkpoint, shardings=lambda params: jax.tree.map(lambda _: sharding, params))
    assert {x.sharding for x in jax.tree.leaves(nnx.state(decoder))} == {sharding}
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    with pytest.raises(ValueError, match="the layers axis"):
        hf.load(checkpoint, shardings=lambda params: jax.tree.map(lambda _: split, params))


def _run_sharded_import(repo_root, folder, processes: int) -> list[list[str]]:
    """What each of the processes says it checked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.hf.sharded_import", str(folder)]
            + ([address, str(processes), str(i)] if processes > 1 else []),
            cwd=repo_root,
            env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(repo_root)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(err[-3000:] for _, err in outputs)
    return [[line for line in out.splitlines() if line.startswith("checked ")] for out, _ in outputs]


def test_import_and_export_are_exact_on_every_mesh(repo_root, tmp_path):
    for family, tied in CASES:
        dtype = torch.bfloat16 if tied else torch.float32
        make_reference(family, tied).to(dtype).save_pretrained(tmp_path / f"{family}-{tied}")
    [checked] = _run_sharded_import(repo_root, tmp_path, 1)
    assert len(checked) == len(CASES) + 4


def test_each_of_two_processes_reads_its_own_shards(repo_root, tmp_path):
    make_reference("qwen2", tied=False).to(torch.bfloat16).save_pretrained(tmp_path / "qwen2")
    for checked in _run_sharded_import(repo_root, tmp_path, 2):
        assert checked[-1] == "checked failures" and len(checked) == 3


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kept", ["bfloat16", "float32"])
def test_casts_are_numpys(stored, kept, tmp_path):
    """Every 16-bit pattern, and random ones of 32 bits, become what a cast on the host makes of them."""
    config = ModelConfig("qwen3", 2048, 32, 8, 1, 1, 1, 2, tie_embeddings=True, qk_norm=True)
    tensors = write_model(tmp_path, config, stored)
    if stored == "float32":
        bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
    else:
        bits = np.arange(1 << 16, dtype=np.uint16)
    table = bits.view(jnp.dtype(stored)).reshape(2048, 32)
    tensors["model.embed_tokens.weight"] = table
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    found = np.asarray(hf.load(tmp_path, param_dtype=jnp.dtype(kept)).embedding[...])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = table.astype(found.dtype)
        normal = np.abs(table.astype(np.float64)) >= 1e-37  # XLA may take subnormal numbers of 32 bits for 0
    if stored == kept:
        assert found.tobytes() == table.tobytes()
    else:
        np.testing.assert_array_equal(found[normal], expected[normal])
        np.testing.assert_allclose(found[~normal], expected[~normal], atol=1e-37)


def test_parameters_are_no_views_of_the_files(checkpoint):
    """A model may be saved over the one it came from."""
    decoder = hf.load(checkpoint)
    before = [np.array(x) for x in jax.tree.leaves(nnx.state(decoder))]
    data = (checkpoint / "model.safetensors").read_bytes()
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.write(bytes(len(data)))
    for a, b in zip(before, jax.tree.leaves(nnx.state(decoder)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_few_programs_whatever_the_number_of_layers(tmp_path):
    """One allocation and one insertion per shape: deeper models compile nothing more."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    counts = []
    for num_layers in (1, 5):
        # Sizes of its own, so that no program of the layers is there already.
        config = ModelConfig("qwen2", 67, 20, 28 + num_layers, num_layers, 2, 1, 10, qkv_bias=True)
        write_model(tmp_path / str(num_layers), config)
        compiled.clear()
        hf.load(tmp_path / str(num_layers))
        counts.append(len(compiled))
    assert counts[0] >= counts[1] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_number_that_is_not_finite_is_refused_by_the_tensors_name(tmp_path, value, name):
    folder = shutil.copytree(pathlib.Path(__file__).parents[3] / "assets" / "qwen3-tiny", tmp_path / "model")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors[name].flat[-1] = value
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    hf.load(folder)  # as it is, where it is not asked for
    message = rf"model\.safetensors holds NaN or infinite numbers in {re.escape(name)}: fetch"
    with pytest.raises(UserError, match=message):
        hf.load(folder, finite=True)
