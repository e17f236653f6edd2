"""Import and export: bits survive, transformers reads the result, and what does not fit is named."""

import json
import shutil

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


def test_tied_head_may_be_repeated_but_not_contradicted(checkpoint):
    table = _read(checkpoint)["model.embed_tokens.weight"]
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table.copy()}))
    hf.load(checkpoint)
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: expected no such tensor"):
        hf.load(checkpoint)
