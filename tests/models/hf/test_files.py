"""A file that does not fit, is damaged or is not there is named; configuration and shapes need no weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ibtpo.errors import UserError
from ibtpo.models import hf
from tests.models.hf.folders import read_tensors


def test_missing_weights_are_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights at .*model\.safetensors"):
        hf.load(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_named(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (is not JSON|holds no JSON object).*: fetch it again"):
        hf.read_config(checkpoint)


def _rewrite(path, change):
    tensors = read_tensors(path)
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
    assert hf.tensor_shapes(params) == {name: x.shape for name, x in read_tensors(checkpoint).items()}
    with pytest.raises(UserError, match=r"no model in Hugging Face format: it has no config\.json"):
        hf.read_config(checkpoint / "nowhere")


def test_tied_head_may_be_repeated_but_not_contradicted(checkpoint):
    table = read_tensors(checkpoint)["model.embed_tokens.weight"]
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table.copy()}))
    hf.load(checkpoint)
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: expected no such tensor"):
        hf.load(checkpoint)
