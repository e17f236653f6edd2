"""Import and export: bits survive, transformers reads the result, and what does not fit is named."""

import json
import os
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
import transformers
from flax import nnx

from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder
from tests.models.reference import CASES, make_reference, random_tokens, torch_logits


def _read(path) -> dict[str, np.ndarray]:
    tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


def _assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "tied"), CASES)
def test_round_trip_is_bit_identical_and_transformers_reads_it(family, tied, dtype, tmp_path):
    model = make_reference(family, tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "in")
    decoder = hf.load(tmp_path / "in", param_dtype=jnp.dtype(dtype))
    hf.save(decoder, tmp_path / "out", tokenizer_from=None)

    tensors = _read(tmp_path / "out")
    assert ("lm_head.weight" in tensors) != tied
    assert {x.dtype.name for x in tensors.values()} == {dtype}
    _assert_same_tensors(tensors, _read(tmp_path / "in"))

    # Both through from_pretrained: `model` itself has its rotary table rounded by the cast above.
    reference, again = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        for name in ("in", "out")
    )
    assert type(again) is type(model) and again.dtype == model.dtype
    tokens = random_tokens((1, 30))
    np.testing.assert_array_equal(torch_logits(again.float(), tokens), torch_logits(reference.float(), tokens))


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_config_survives_the_round_trip(family, tied):
    config = ModelConfig.from_hf(make_reference(family, tied).config.to_dict())
    assert config.tie_embeddings == tied and config.family == family
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint"
    make_reference("qwen3", tied=True).save_pretrained(path)
    return path


def test_many_files_equal_one(checkpoint, tmp_path):
    decoder = hf.load(checkpoint)
    hf.save(decoder, tmp_path / "parts", tokenizer_from=None, max_file_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "parts" / "model.safetensors").exists()
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    _assert_same_tensors(_read(tmp_path / "parts"), _read(checkpoint))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parts")

    again = hf.load(tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(nnx.state(decoder)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(a, b)
    # A model saved over another leaves nothing of it behind.
    hf.save(again, tmp_path / "parts", tokenizer_from=None)
    assert [file.name for file in (tmp_path / "parts").glob("model*")] == ["model.safetensors"]


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
            [sys.executable, "-m", "tests.models.sharded_import", str(folder)]
            + ([address, str(processes), str(i)] if processes > 1 else []),
            cwd=repo_root,
            env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(repo_root)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
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
        assert len(checked) == 2


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kept", ["bfloat16", "float32"])
def test_casts_are_numpys(stored, kept, tmp_path):
    """Every 16-bit pattern, and random ones of 32 bits, become what a cast on the host makes of them."""
    config = ModelConfig("qwen3", 2048, 32, 8, 1, 1, 1, 2, tie_embeddings=True, qk_norm=True)
    hf.save(Decoder(config, rngs=nnx.Rngs(0), param_dtype=jnp.dtype(stored)), tmp_path, tokenizer_from=None)
    if stored == "float32":
        bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
    else:
        bits = np.arange(1 << 16, dtype=np.uint16)
    table = bits.view(jnp.dtype(stored)).reshape(2048, 32)
    tensors = _read(tmp_path) | {"model.embed_tokens.weight": table}
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
        hf.save(Decoder(config, rngs=nnx.Rngs(0)), tmp_path / str(num_layers), tokenizer_from=None)
        compiled.clear()
        hf.load(tmp_path / str(num_layers))
        counts.append(len(compiled))
    assert counts[0] >= counts[1] > 0


def test_tokenizer_files_and_token_ids_go_with_the_model(checkpoint, tiny_tokenizer_dir, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_tokenizer_dir, source)
    (source / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": None}))
    (source / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    hf.save(hf.load(checkpoint), tmp_path / "out", tokenizer_from=source, token_ids={"pad_token_id": 9})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == 7 and config["pad_token_id"] == 9 and "bos_token_id" not in config
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


def test_missing_tokenizer_and_missing_weights_are_named(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*empty.*tokenizer\.json"):
        hf.save(hf.load(checkpoint), tmp_path / "out", tokenizer_from=tmp_path / "empty")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.safetensors"):
        hf.load(checkpoint)


def _rewrite(path, change):
    tensors = _read(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_all_misfits_are_reported_at_once(checkpoint):
    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.self_attn.q_proj.weight"] = np.zeros((32, 64), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)

    _rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match=r"do not fit config.json") as error:
        hf.load(checkpoint)
    _, *lines = str(error.value).splitlines()
    assert len(lines) == 3
    missing, misshaped, extra = lines
    assert "model.layers.1.mlp.up_proj.weight: expected shape (48, 32), found no such tensor" in missing
    assert "q_proj.weight: expected shape (64, 32), found (32, 64)" in misshaped
    assert "model.layers.3.mlp.up_proj.weight: expected no such tensor, found shape (48, 32)" in extra
    assert all(str(checkpoint / "model.safetensors") in line for line in lines)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-7], r"model\.safetensors is damaged: \d+ bytes of tensors, its header promises \d+"),
        (lambda data: b"", r"model\.safetensors is no safetensors file .*fetch it again"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is no safetensors file .*fetch it again"),
        (lambda data: data.replace(b'"F32"', b'"I32"', 1), r"expected one of F32, BF16, F16, found I32 in .*"),
    ],
    ids=["truncated", "empty", "pointer", "dtype"],
)
def test_damaged_files_are_named(checkpoint, damage, message):
    file = checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        hf.load(checkpoint)


def test_configuration_and_shapes_without_weights(checkpoint):
    config = hf.read_config(checkpoint)
    assert config == hf.load(checkpoint).config
    _, params = hf.abstract(config, param_dtype=jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    assert hf.tensor_shapes(params) == {name: x.shape for name, x in _read(checkpoint).items()}
    with pytest.raises(FileNotFoundError, match=r"no model in Hugging Face format: it has no config\.json"):
        hf.read_config(checkpoint / "nowhere")


def test_tied_head_may_be_repeated_but_not_contradicted(checkpoint):
    table = _read(checkpoint)["model.embed_tokens.weight"]
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table.copy()}))
    hf.load(checkpoint)
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: expected no such tensor"):
        hf.load(checkpoint)
