"""The files of a model directory: config.json, and weights mapped into memory."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ibtpo.errors import UserError
from ibtpo.models.config import ModelConfig
from ibtpo.models.hf.layout import MODEL_TENSORS

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """The sizes and switches of the model in a directory; no weights are read.

    Raises:
      UserError: config.json is not there, or is an unsupported configuration (see `ModelConfig.from_hf`).
    """
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise UserError(f"{path} is no model in Hugging Face format: it has no config.json (see model.path)")
    return ModelConfig.from_hf(read_json(file))


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      UserError: it holds none.
    """
    try:
        value = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object: fetch it again")
    return value


def open_weights(path: pathlib.Path) -> "dict[str, WeightFile]":
    """{tensor name: open file that holds it}.

    Raises:
      UserError: a file is not there, or damaged.
    """
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
    checkpoint: dict[str, WeightFile] = {}
    for name in names:
        if not (path / name).is_file():
            raise UserError(
                f"no weights at {path / name}; a model directory holds model.safetensors, or "
                f"{index.name} and the files it names"
            )
        file = WeightFile(path / name)
        checkpoint |= dict.fromkeys(file.header, file)
    return checkpoint


class WeightFile:
    """A safetensors file, mapped into memory: 8 bytes of header length, the header in JSON, the tensors' bytes.

    safetensors' own reader copies a slice twice, which is more of the host than one tensor.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            data = np.memmap(path, np.uint8, mode="r")
            start = 8 + int.from_bytes(data[:8].tobytes(), "little")
            self.header = json.loads(data[8:start].tobytes())
        except ValueError as error:  # it is empty, or the header is not JSON
            raise UserError(f"{path} is no safetensors file ({error}): fetch it again") from error
        self.header.pop("__metadata__", None)
        self.data = data[start:]
        size = max((entry["data_offsets"][1] for entry in self.header.values()), default=0)
        if size != len(self.data):
            raise UserError(
                f"{path} is damaged: {len(self.data)} bytes of tensors, its header promises {size}: fetch it again"
            )

    def get_tensor(self, name: str) -> np.ndarray:
        """A view of the file, in the tensor's dtype; bytes are read when they are used."""
        begin, end = self.header[name]["data_offsets"]
        return self.data[begin:end].view(DTYPES[self.get_dtype(name)]).reshape(self.get_shape(name))

    def get_dtype(self, name: str) -> str:
        """As the format spells it: F32, BF16, ..."""
        return self.header[name]["dtype"]

    def get_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])


def check_weights(checkpoint: dict[str, WeightFile], expected: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Compares the tensors of a checkpoint with the {name: shape} that the model has.

    Raises:
      UserError: they differ; all differences in one message.
    """
    files = ", ".join(sorted({str(file.path) for file in checkpoint.values()}))
    problems = []
    for name, shape in expected.items():
        if name not in checkpoint:
            problems.append(f"{name}: expected shape {shape}, found no such tensor in {files}")
        elif (found := checkpoint[name].get_shape(name)) != shape:
            problems.append(f"{name}: expected shape {shape}, found {found} in {checkpoint[name].path}")
        elif (dtype := checkpoint[name].get_dtype(name)) not in DTYPES:
            problems.append(f"{name}: expected one of {', '.join(DTYPES)}, found {dtype} in {checkpoint[name].path}")
    for name in checkpoint.keys() - expected.keys():
        file = checkpoint[name]
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints carry along
            continue
        if name == "lm_head.weight" and config.tie_embeddings:
            # Some writers repeat the tied table; only a different one is a contradiction.
            table = MODEL_TENSORS["embedding"]
            if table in checkpoint and np.array_equal(file.get_tensor(name), checkpoint[table].get_tensor(table)):
                continue
        problems.append(f"{name}: expected no such tensor, found shape {file.get_shape(name)} in {file.path}")
    if problems:
        raise UserError("the weights do not fit config.json:\n  " + "\n  ".join(sorted(problems)))
