"""Import from and export to a local Hugging Face model directory: config.json and safetensors."""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

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
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
_ALIGNMENT = 64  # bytes, of host arrays that JAX's CPU devices take as they are
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """The sizes and switches of the model in a directory; no weights are read.

    Raises:
      FileNotFoundError: config.json is not there.
      ValueError: an unsupported configuration (see `ModelConfig.from_hf`).
    """
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no model in Hugging Face format: it has no config.json (see model.path)")
    return ModelConfig.from_hf(json.loads(file.read_text()))


def abstract(config: ModelConfig, *, dtype=jnp.float32, param_dtype=jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, parameters as shapes) of a decoder, which costs no memory: for shardings and compilation."""

    def init() -> Decoder:
        return Decoder(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)

    return nnx.split(nnx.eval_shape(init), nnx.Param)


def tensor_shapes(params: nnx.State) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the checkpoint's tensors that these parameters, abstract or not, are written as."""
    groups = [_tensors_of(*item) for item in jax.tree.leaves_with_path(params)]
    return {name: group.hf_shape for group in groups for name in group.names}


def tensors(params: nnx.State) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the checkpoint's tensors that these parameters are written as, one parameter on the host at a
    time. When they are sharded over several processes, all must go through it."""
    for key_path, param in jax.tree.leaves_with_path(params):
        group = _tensors_of(key_path, param)
        if not param.is_fully_addressable:
            param = multihost_utils.process_allgather(param, tiled=True)
        value = np.asarray(param)
        for name, array in zip(group.names, value if group.stacked else [value]):
            yield name, group.to_hf(array)


def load(
    path: str | pathlib.Path,
    *,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    shardings: Any | Callable[[nnx.State], Any] = None,
) -> Decoder:
    """Reads a model directory, tensor by tensor, straight into its place on the devices.

    Each parameter is allocated on its devices once; each tensor of the checkpoint is put there in its own dtype,
    already split, then transposed, cast and inserted by the devices. The host holds at most what its devices need
    of one tensor (weight files are mapped, not read), and a process reads only the slices of its own devices.

    Args:
      path: holds config.json and model.safetensors, or model.safetensors.index.json and its shards.
      dtype: of the computation.
      param_dtype: of the parameters. Tensors are cast to it; those that have it keep every bit.
      shardings: a NamedSharding per parameter, in the structure of `abstract(...)[1]`, that leaves the layers axis
        whole; or a function that makes them of those abstract parameters. None: the default device.

    Raises:
      FileNotFoundError: config.json or a weight file is not there.
      ValueError: an unsupported configuration (see `ModelConfig.from_hf`), a damaged weight file, or tensors
        missing, unknown, misshaped or of an unsupported dtype: all of them in one message, with both shapes and the
        file.
    """
    path = pathlib.Path(path)
    config = read_config(path)
    graphdef, params = abstract(config, dtype=dtype, param_dtype=param_dtype)
    checkpoint = _open(path)
    shapes = tensor_shapes(params)
    _check(checkpoint, shapes, config)
    staging = _Staging(max(checkpoint[name].get_tensor(name).nbytes for name in shapes))

    def read(key_path, param, sharding=None) -> jax.Array:
        group = _tensors_of(key_path, param)
        value = _zeros(param.shape, param.dtype, sharding)()
        insert = _insert(group, sharding)
        for layer, name in enumerate(group.names):
            view = staging.put(checkpoint[name].get_tensor(name).reshape(group.view_shape), group, sharding)
            # Dispatch runs ahead of the devices, which must be done with a tensor before the next takes its place.
            value = jax.block_until_ready(insert(value, view, layer))
        return value

    if callable(shardings):
        shardings = shardings(params)
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
        name: math.prod(group.shape) * param.dtype.itemsize
        for key_path, param in jax.tree.leaves_with_path(params)
        for group in [_tensors_of(key_path, param)]
        for name in group.names
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
    arrays = tensors(params)
    for file, group in zip(names, groups):
        contents = dict(itertools.islice(arrays, len(group)))
        if writer:
            # transformers accepts no file without this mark.
            safetensors.numpy.save_file(contents, path / file, metadata={"format": "pt"})
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

    shape is the parameter's without the layer axis, [*ins, *outs]; inputs is the number of ins as in
    `_LAYER_TENSORS`, None where the tensor has the parameter's own shape.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    inputs: int | None
    stacked: bool

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.inputs is None:
            return self.shape
        ins, outs = self.shape[: self.inputs], self.shape[self.inputs :]
        return (math.prod(outs), math.prod(ins)) if ins else (math.prod(outs),)

    @property
    def view_shape(self) -> tuple[int, ...]:
        """[*outs, *ins], as which a tensor can be seen without moving a byte."""
        return self._rotate(self.shape, self.inputs or 0)

    def view_spec(self, spec: PartitionSpec) -> PartitionSpec:
        """The placement of the view under which the parameter's placement `spec` moves no byte between devices."""
        layers = int(self.stacked)
        axes = (*spec, *(None,) * (len(self.shape) + layers - len(spec)))
        if any(axes[:layers]):
            raise ValueError(
                f"{self.names[0]}: the layers axis of a parameter is not split, but its placement is {spec}"
            )
        return PartitionSpec(*self._rotate(axes[layers:], self.inputs or 0))

    def from_view(self, view: jax.Array) -> jax.Array:
        outs = len(self.shape) - (self.inputs or 0)
        return view.transpose(self._rotate(tuple(range(view.ndim)), outs))

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        if not self.inputs:
            return np.ascontiguousarray(array.reshape(self.hf_shape))
        # safetensors writes the buffer as it lies in memory: the transpose must be made, not viewed.
        return np.ascontiguousarray(array.reshape(self.hf_shape[::-1]).T)

    @staticmethod
    def _rotate(axes: tuple, count: int) -> tuple:
        return axes[count:] + axes[:count]


def _tensors_of(key_path, param) -> _Tensors:
    """The tensors of the parameter at `key_path` of the decoder's state."""
    path = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
    if path[0] != "layers":
        return _Tensors((_MODEL_TENSORS[path[0]],), param.shape, inputs=None, stacked=False)
    suffix, inputs = _LAYER_TENSORS[path[1]]
    num_layers, *shape = param.shape
    names = tuple(f"model.layers.{layer}.{suffix}" for layer in range(num_layers))
    return _Tensors(names, tuple(shape), inputs, stacked=True)


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _insert(group: _Tensors, sharding: Sharding | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """(parameter, tensor as seen by `view_shape`, layer) -> the parameter, in place, with the tensor in it."""
    return _jit_insert(dataclasses.replace(group, names=()), sharding)  # layers and parameters alike share it


@functools.cache
def _jit_insert(group: _Tensors, sharding: Sharding | None):
    def insert(param, view, layer):
        value = group.from_view(view).astype(param.dtype)
        if not group.stacked:
            # Not the value itself: a parameter never shares memory with what it was made from.
            return jax.lax.dynamic_update_slice(param, value, (0,) * param.ndim)
        return jax.lax.dynamic_update_index_in_dim(param, value, layer, 0)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)


class _Staging:
    """Host memory for what this process's devices need of one tensor; the next tensor takes its place.

    One buffer, because JAX drops arrays that it was given late. On the CPU, devices read it without a copy of theirs.
    """

    def __init__(self, num_bytes: int):
        self._buffer = np.empty(num_bytes + _ALIGNMENT * (jax.local_device_count() + 1), np.uint8)
        self._used = 0

    def put(self, view: np.ndarray, group: _Tensors, sharding: NamedSharding | None) -> jax.Array:
        """The tensor, seen as `view_shape`, on the devices that hold the parameter; each slice is read once. It must
        be out of use when this is called again."""
        self._used = 0
        if sharding is None:
            return jax.device_put(self._copy(view))
        slices = {}

        def read(index: tuple[slice, ...]) -> np.ndarray:
            key = tuple((s.start, s.stop) for s in index)
            if key not in slices:
                slices[key] = self._copy(view[index])
            return slices[key]

        placement = NamedSharding(sharding.mesh, group.view_spec(sharding.spec), memory_kind=sharding.memory_kind)
        return jax.make_array_from_callback(view.shape, placement, read)

    def _copy(self, view: np.ndarray) -> np.ndarray:
        begin = self._used + -(self._buffer.ctypes.data + self._used) % _ALIGNMENT
        self._used = begin + view.nbytes
        copy = self._buffer[begin : self._used].view(view.dtype).reshape(view.shape)
        copy[...] = view
        return copy


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
        checkpoint |= dict.fromkeys(file.header, file)
    return checkpoint


class _File:
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
            raise ValueError(f"{path} is no safetensors file ({error}): fetch it again") from error
        self.header.pop("__metadata__", None)
        self.data = data[start:]
        size = max((entry["data_offsets"][1] for entry in self.header.values()), default=0)
        if size != len(self.data):
            raise ValueError(
                f"{path} is damaged: {len(self.data)} bytes of tensors, its header promises {size}: fetch it again"
            )

    def get_tensor(self, name: str) -> np.ndarray:
        """A view of the file, in the tensor's dtype; bytes are read when they are used."""
        begin, end = self.header[name]["data_offsets"]
        return self.data[begin:end].view(_DTYPES[self.get_dtype(name)]).reshape(self.get_shape(name))

    def get_dtype(self, name: str) -> str:
        """As the format spells it: F32, BF16, ..."""
        return self.header[name]["dtype"]

    def get_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])


def _check(checkpoint: dict[str, _File], expected: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    files = ", ".join(sorted({str(file.path) for file in checkpoint.values()}))
    problems = []
    for name, shape in expected.items():
        if name not in checkpoint:
            problems.append(f"{name}: expected shape {shape}, found no such tensor in {files}")
        elif (found := checkpoint[name].get_shape(name)) != shape:
            problems.append(f"{name}: expected shape {shape}, found {found} in {checkpoint[name].path}")
        elif (dtype := checkpoint[name].get_dtype(name)) not in _DTYPES:
            problems.append(f"{name}: expected one of {', '.join(_DTYPES)}, found {dtype} in {checkpoint[name].path}")
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
