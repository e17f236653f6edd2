"""Import from and export to a local Hugging Face model directory: config.json and safetensors."""

import dataclasses
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.experimental import multihost_utils

from ibtpo.models.config import ModelConfig
from ibtpo.models.decoder import Decoder

# Our parameter: (name of its tensor, number of its leading axes that are contracted with the input). A checkpoint
# stores a projection as [out, in], ours is [in axes, out axes]; with none contracted only the shape differs.
_LAYER_TENSORS = {
    "attn_norm": ("input_layernorm.weight", 0),
    "q": ("self_attn.q_proj.weight", 1),
    "k": ("self_attn.k_proj.weight", 1),
    "v": ("self_attn.v_proj.weight", 1),
    "o": ("self_attn.o_proj.weight", 2),
    "q_bias": ("self_attn.q_proj.bias", 0),
    "k_bias": ("self_attn.k_proj.bias", 0),
    "v_bias": ("self_attn.v_proj.bias", 0),
    "q_norm": ("self_attn.q_norm.weight", 0),
    "k_norm": ("self_attn.k_norm.weight", 0),
    "mlp_norm": ("post_attention_layernorm.weight", 0),
    "gate": ("mlp.gate_proj.weight", 1),
    "up": ("mlp.up_proj.weight", 1),
    "down": ("mlp.down_proj.weight", 1),
}
_MODEL_TENSORS = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load(path: str | pathlib.Path, *, dtype=jnp.float32, param_dtype=jnp.float32, shardings: Any = None) -> Decoder:
    """Reads a model directory.

    Args:
      path: holds config.json and model.safetensors, or model.safetensors.index.json and its shards.
      dtype: of the computation.
      param_dtype: of the parameters. Tensors are cast to it; those that have it keep every bit.
      shardings: one per parameter, in the structure of nnx.split(decoder, nnx.Param)[1]; a process
        places only the shards of its own devices. None: the default device.

    Raises:
      FileNotFoundError: config.json or a weight file is not there.
      ValueError: an unsupported configuration (see `ModelConfig.from_hf`), or tensors missing,
        unknown or misshaped: all of them in one message, with both shapes and the file.
    """
    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no model in Hugging Face format: it has no config.json (see model.path)")
    config = ModelConfig.from_hf(json.loads((path / "config.json").read_text()))

    def init() -> Decoder:
        return Decoder(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)

    graphdef, params = nnx.split(nnx.eval_shape(init), nnx.Param)
    checkpoint = _open(path)
    _check(checkpoint, [_tensors_of(*item) for item in jax.tree.leaves_with_path(params)], config)

    def read(key_path, param, sharding=None) -> jax.Array:
        tensors = _tensors_of(key_path, param)
        arrays = [tensors.from_hf(checkpoint[name].get_tensor(name)).astype(param.dtype) for name in tensors.names]
        value = np.stack(arrays) if tensors.stacked else arrays[0]
        if sharding is None:
            return jnp.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    trees = (params,) if shardings is None else (params, shardings)
    return nnx.merge(graphdef, jax.tree.map_with_path(read, *trees))


def save(
    decoder: Decoder,
    path: str | pathlib.Path,
    *,
    tokenizer_from: str | pathlib.Path | None,
    token_ids: Mapping[str, int] | None = None,
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model directory that `load` and transformers read; tensors keep their dtype.

    With tied embeddings no lm_head is written. When parameters are sharded over several processes,
    all must call this; the first one writes.

    Args:
      decoder: the model.
      path: created if need be; a model already there is replaced.
      tokenizer_from: directory whose tokenizer files, generation_config.json, and bos, eos and pad
        token ids in config.json go with the model. None: no tokenizer.
      token_ids: further fields of config.json, as {"eos_token_id": 0}; they win over the copied ones.
      max_file_bytes: weights above this size are spread over several files with an index.

    Raises:
      FileNotFoundError: `tokenizer_from` holds no tokenizer file.
    """
    path = pathlib.Path(path)
    params = nnx.split(decoder, nnx.Param)[1]
    sizes = {
        name: math.prod(tensors.shape) * param.dtype.itemsize
        for key_path, param in jax.tree.leaves_with_path(params)
        for tensors in [_tensors_of(key_path, param)]
        for name in tensors.names
    }
    groups = _group(sizes, max_file_bytes)
    names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    names = ["model.safetensors"] if len(groups) == 1 else names

    writer = jax.process_index() == 0
    if writer:
        path.mkdir(parents=True, exist_ok=True)
        config = decoder.config.to_hf() | {"torch_dtype": decoder.param_dtype.name}
        if tokenizer_from is not None:
            config |= _copy_tokenizer(pathlib.Path(tokenizer_from), path)
        config |= token_ids or {}
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        # A model's earlier files would shadow the new ones.
        for stale in [*path.glob("model*.safetensors"), *path.glob("model*.safetensors.index.json")]:
            stale.unlink()
    arrays = _hf_arrays(params)
    for file, group in zip(names, groups):
        tensors = dict(itertools.islice(arrays, len(group)))
        if writer:
            # transformers accepts no file without this mark.
            safetensors.numpy.save_file(tensors, path / file, metadata={"format": "pt"})
            (path / file).chmod(0o644)  # it is created for its owner's eyes only
    if writer and len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, group in zip(names, groups) for name in group},
        }
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Tensors:
    """The checkpoint's tensors that make up one parameter: one, or one per layer.

    shape is the parameter's without the layer axis; inputs as in `_LAYER_TENSORS`, None where the
    tensor has the parameter's own shape.
    """

    names: list[str]
    shape: tuple[int, ...]
    inputs: int | None
    stacked: bool

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.inputs is None:
            return self.shape
        ins, outs = self.shape[: self.inputs], self.shape[self.inputs :]
        return (math.prod(outs), math.prod(ins)) if ins else (math.prod(outs),)

    def from_hf(self, array: np.ndarray) -> np.ndarray:
        return array.T.reshape(self.shape) if self.inputs else array.reshape(self.shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        if not self.inputs:
            return np.ascontiguousarray(array.reshape(self.hf_shape))
        # safetensors writes the buffer as it lies in memory: the transpose must be made, not viewed.
        return np.ascontiguousarray(array.reshape(self.hf_shape[::-1]).T)


def _tensors_of(key_path, param) -> _Tensors:
    """The tensors of the parameter at `key_path` of the decoder's state."""
    path = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
    if path[0] != "layers":
        return _Tensors([_MODEL_TENSORS[path[0]]], param.shape, inputs=None, stacked=False)
    suffix, inputs = _LAYER_TENSORS[path[1]]
    num_layers, *shape = param.shape
    names = [f"model.layers.{layer}.{suffix}" for layer in range(num_layers)]
    return _Tensors(names, tuple(shape), inputs, stacked=True)


def _hf_arrays(params) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor of the checkpoint, one parameter on the host at a time."""
    for key_path, param in jax.tree.leaves_with_path(params):
        tensors = _tensors_of(key_path, param)
        if not param.is_fully_addressable:
            param = multihost_utils.process_allgather(param, tiled=True)
        value = np.asarray(param)
        for name, array in zip(tensors.names, value if tensors.stacked else [value]):
            yield name, tensors.to_hf(array)


def _open(path: pathlib.Path) -> dict[str, Any]:
    """Tensor name -> open file that holds it."""
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    checkpoint = {}
    for name in names:
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"no weights at {path / name}; a model directory holds model.safetensors, or "
                f"{index.name} and the files it names"
            )
        file = _File(path / name)
        checkpoint |= dict.fromkeys(file.handle.keys(), file)
    return checkpoint


class _File:
    """An open safetensors file that knows its name."""

    def __init__(self, path: pathlib.Path):
        self.path, self.handle = path, safetensors.safe_open(path, framework="numpy")

    def get_tensor(self, name: str) -> np.ndarray:
        return self.handle.get_tensor(name)

    def get_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.handle.get_slice(name).get_shape())


def _check(checkpoint: dict[str, _File], parameters: list[_Tensors], config: ModelConfig) -> None:
    expected = {name: tensors.hf_shape for tensors in parameters for name in tensors.names}
    files = ", ".join(sorted({str(file.path) for file in checkpoint.values()}))
    problems = []
    for name, shape in expected.items():
        if name not in checkpoint:
            problems.append(f"{name}: expected shape {shape}, found no such tensor in {files}")
        elif (found := checkpoint[name].get_shape(name)) != shape:
            problems.append(f"{name}: expected shape {shape}, found {found} in {checkpoint[name].path}")
    for name in checkpoint.keys() - expected.keys():
        file = checkpoint[name]
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old checkpoints carry along
            continue
        if name == "lm_head.weight" and config.tie_embeddings:
            # Some writers repeat the tied table; only a different one is a contradiction.
            table = _MODEL_TENSORS["embedding"]
            if table in checkpoint and np.array_equal(file.get_tensor(name), checkpoint[table].get_tensor(table)):
                continue
        problems.append(f"{name}: expected no such tensor, found shape {file.get_shape(name)} in {file.path}")
    if problems:
        raise ValueError("the weights do not fit config.json:\n  " + "\n  ".join(sorted(problems)))


def _group(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Consecutive names in groups of at most `limit` bytes; a larger tensor is a group by itself."""
    groups, filled = [[]], 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """Copies the tokenizer files; returns the special token ids of the source's config.json."""
    found = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise FileNotFoundError(f"no tokenizer in {source}: looked for {', '.join(_TOKENIZER_FILES)}")
    # Chat models list their stop tokens there, and nowhere else.
    generation = source / "generation_config.json"
    for file in [*found, generation] if generation.is_file() else found:
        if source.resolve() != target.resolve():
            shutil.copyfile(file, target / file.name)
    config = source / "config.json"
    fields = json.loads(config.read_text()) if config.is_file() else {}
    return {name: fields[name] for name in _TOKEN_IDS if fields.get(name) is not None}
