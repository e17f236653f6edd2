"""Model directories of tests, read and written without the code under test."""

import json

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ibtpo.models import hf
from ibtpo.models.attention import prompt_attend
from ibtpo.models.config import ModelConfig


def read_tensors(path) -> dict[str, np.ndarray]:
    tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def write_model(path, config: ModelConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A directory with the tensors that such a model has, all zeros; returns them."""
    tensors = {
        name: np.zeros(shape, jnp.dtype(dtype)) for name, shape in hf.tensor_shapes(hf.abstract(config)[1]).items()
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_hf()))
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return tensors


def logits(decoder, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of whole sequences [B, T]."""
    B, T = tokens.shape
    attend = prompt_attend(jnp.full(B, T))
    hidden, _ = decoder(jnp.asarray(tokens), jnp.broadcast_to(jnp.arange(T), (B, T)), attend)
    return np.asarray(decoder.logits(hidden))
