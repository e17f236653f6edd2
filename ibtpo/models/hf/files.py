"""The files of a model directory: config.json, and weights mapped into memory."""

import itertools
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ibtpo.errors import UserError
from ibtpo.json_files import foreign
from ibtpo.json_files import read_object as read_json
from ibtpo.models.config import ModelConfig
from ibtpo.models.hf.layout import MODEL_TENSORS

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_SHOWN = 4  # misfits of a checkpoint that are named; the others are counted


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """The sizes and switches of the model in a directory; no weights are read.

    Raises:
      UserError: config.json is not there, or is an unsupported configuration (see `ModelConfig.from_hf`); `path` is a
        file; an adapter lies beside the model, which transformers would add to it.
    """
    path = pathlib.Path(path)
    file = path / CONFIG
    if path.is_file():
        raise UserError(f"{path} is a file: name the folder that holds the model (see model.path)")
    if (path / ADAPTER).is_file():
        raise UserError(
            f"{path} holds an adapter ({ADAPTER}), which is not computed: merge it into the model and save that, or "
            f"delete {ADAPTER}"
        )
    if not file.is_file():
        raise UserError(f"{path} is no model in Hugging Face format: it has no config.json (see model.path)")
    fields = read_json(file)
    try:
        return ModelConfig.from_hf(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_token_ids(file: pathlib.Path, name: str) -> list[int]:
    """The token ids that a field of a JSON file holds: one, a list, or none where the file or the field is not there.

    Raises:
      UserError: the file is no JSON object, or the field holds something else.
    """
    value = read_json(file).get(name) if file.is_file() else None
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise UserError(
                f"{file}: {name} = {json.dumps(value)} is no token id and no list of them: write whole numbers, or "
                "remove the field"
            )
    return ids


def open_weights(path: pathlib.Path) -> "dict[str, WeightFile]":
    """{tensor name: open file that holds it}: model.safetensors, or the shards that the index names.

    Raises:
      UserError: a file is not there, or damaged; there are one file and an index; the index and its shards differ.
    """
    if (path / INDEX).is_file():
        return _open_shards(path, _weight_map(path))
    if not (path / WEIGHTS).is_file():
        raise UserError(
            f"no weights at {path / WEIGHTS}; a model directory holds {WEIGHTS}, or {INDEX} and the files it names"
            + _other_weights(path)
        )
    file = WeightFile(path / WEIGHTS)
    return dict.fromkeys(file.header, file)


def _other_weights(path: pathlib.Path) -> str:
    """The way out of a folder that has weights of another kind."""
    if shards := sorted(file.name for file in path.glob("model-*.safetensors")):
        return f": {shards[0]} is there, so fetch {INDEX} too"
    if others := sorted(file.name for kind in ("*.bin", "*.pth", "*.gguf") for file in path.glob(kind)):
        return (
            f": {others[0]} is of another format, so fetch the model's safetensors, or convert it with transformers' "
            "from_pretrained and save_pretrained"
        )
    return ": fetch them"


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of the index, whose names are those of files in the folder."""
    places = read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path / INDEX} has no weight_map of tensors and their files: fetch it again")
    for name, place in places.items():
        if not isinstance(place, str) or not place or pathlib.PurePath(place).name != place:
            raise UserError(f"{path / INDEX}: {name} is in {place!r}, which is no file name: fetch the index again")
    if (path / WEIGHTS).is_file() and WEIGHTS not in places.values():
        raise UserError(
            f"{path} holds two models, {WEIGHTS} and the shards of {INDEX}: delete {WEIGHTS}, or {INDEX} and its shards"
        )
    return places


def _open_shards(path: pathlib.Path, places: dict[str, str]) -> "dict[str, WeightFile]":
    files = sorted(set(places.values()))
    for place in files:
        if not (path / place).is_file():
            raise UserError(f"no weights at {path / place}, which {INDEX} names: fetch it")
    checkpoint: dict[str, WeightFile] = {}
    for place in files:
        file = WeightFile(path / place)
        for name in file.header:
            if name in checkpoint:
                raise UserError(
                    f"{name} is in {checkpoint[name].path} and in {file.path}: fetch the shards and {INDEX} again"
                )
            if places.get(name, "none" if not is_constant(name) else place) != place:
                said = places.get(name, "no file")
                raise UserError(
                    f"{name} is in {file.path}, but {INDEX} says in {said}: fetch the shards and the index again"
                )
            checkpoint[name] = file
    for name, place in places.items():
        if name not in checkpoint:
            raise UserError(f"{path / place} has no {name}, which {INDEX} says it has: fetch both again")
    return checkpoint


def is_constant(name: str) -> bool:
    """Whether a tensor is a constant that old checkpoints carry along."""
    return name.endswith("rotary_emb.inv_freq")


class WeightFile:
    """A safetensors file, mapped into memory: 8 bytes of header length, the header in JSON, the tensors' bytes.

    safetensors' own reader copies a slice twice, which is more of the host than one tensor.

    Raises:
      UserError: it is another file, it is cut off, or its header does not describe its bytes.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        with open(path, "rb") as opened:
            head = opened.read(512)
        # A header's length has zeros among its eight bytes; text has none.
        if b"\0" not in head[:8] and (found := foreign(head)):
            raise UserError(f"{path} is no safetensors file ({found}): fetch it again")
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(head[:8], "little")
        header = _read_header(path, data[8:start].tobytes(), start - 8)
        for name, entry in header.items():
            if fault := _entry_fault(entry):
                raise UserError(f"{path} is damaged: in its header, {name} has {fault}: fetch it again")
        spans = sorted(entry["data_offsets"] for entry in header.values())
        for (_, before), (begin, _) in itertools.pairwise([[0, 0], *spans]):
            if begin != before:
                raise UserError(
                    f"{path} is damaged: in its header, a tensor begins at byte {begin}, but the one before ends at "
                    f"{before}: fetch it again"
                )
        self.header = header
        self.data = data[start:]
        size = spans[-1][1] if spans else 0
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


def _read_header(path: pathlib.Path, data: bytes, length: int) -> dict[str, Any]:
    """{tensor: entry} of the header of a safetensors file, which says that it has `length` bytes."""
    if len(data) < length:
        raise UserError(
            f"{path} is no safetensors file, or cut off (of a header of {length} bytes there are {len(data)}): fetch "
            "it again"
        )
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no safetensors file (its header: {error}): fetch it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is no safetensors file (its header is no JSON object): fetch it again")
    header.pop("__metadata__", None)
    return header


def _entry_fault(entry: Any) -> str:
    """What is wrong with a tensor's entry of a header; "" if nothing is."""

    if not isinstance(entry, dict):
        return f"no entry but {entry!r}"
    dtype, shape, span = (entry.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not dtype:
        return f"dtype {dtype!r}"
    for name, value in dict(shape=shape, data_offsets=span).items():
        if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
            return f"{name} {value!r}"
    assert shape is not None and span is not None  # lists, by now
    if len(span) != 2 or span[0] > span[1]:
        return f"data_offsets {span!r}"
    if dtype in DTYPES and span[1] - span[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        return f"{span[1] - span[0]} bytes, but shape {tuple(shape)} of {dtype}"
    return ""


def check_weights(checkpoint: dict[str, WeightFile], expected: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Compares the tensors of a checkpoint with the {name: shape} that the model has.

    Raises:
      UserError: they differ; one line with the number of differences and the first of them.
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
        if is_constant(name):
            continue
        if name == "lm_head.weight" and config.tie_embeddings:
            # Some writers repeat the tied table; only a different one is a contradiction.
            table = MODEL_TENSORS["embedding"]
            if table in checkpoint and _equal(file, name, checkpoint[table], table):
                continue
        problems.append(f"{name}: expected no such tensor, found shape {file.get_shape(name)} in {file.path}")
    if problems:
        problems.sort()
        rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"the weights do not fit config.json: {'; '.join(problems[:_SHOWN])}{rest}: fetch the "
            "weights that belong to it, not quantised"
        )


def _equal(a: WeightFile, name_a: str, b: WeightFile, name_b: str) -> bool:
    known = a.get_dtype(name_a) in DTYPES and b.get_dtype(name_b) in DTYPES
    return known and np.array_equal(a.get_tensor(name_a), b.get_tensor(name_b))
