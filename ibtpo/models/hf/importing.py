"""Import: each tensor of a checkpoint straight into its place on the devices."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, Sharding

from ibtpo import parallel
from ibtpo.errors import UserError
from ibtpo.models.decoder import Decoder
from ibtpo.models.hf.files import WeightFile, check_weights, open_weights, read_config
from ibtpo.models.hf.layout import Tensors, abstract, tensor_shapes, tensors_of

_ALIGNMENT = 64  # bytes, of host arrays that JAX's CPU devices take as they are


def load(
    path: str | pathlib.Path,
    *,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    shardings: Any | Callable[[nnx.State], Any] = None,
    finite: bool = False,
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
      finite: whether NaN and infinite numbers are refused.

    Raises:
      UserError: config.json or a weight file is not there; an unsupported configuration (see `ModelConfig.from_hf`);
        a damaged weight file; one file and an index, or an index and shards that differ; tensors missing, unknown,
        misshaped or of an unsupported dtype: in one line their number and the first of them, with both shapes and the
        file. With `finite`: a parameter holds a number that is not.
    """
    path = pathlib.Path(path)
    config = read_config(path)
    graphdef, params = abstract(config, dtype=dtype, param_dtype=param_dtype)
    checkpoint = open_weights(path)
    shapes = tensor_shapes(params)
    check_weights(checkpoint, shapes, config)
    staging = _Staging(max(checkpoint[name].get_tensor(name).nbytes for name in shapes))

    found: list[tuple[Tensors, np.ndarray]] = []

    def read(key_path, param, sharding=None) -> jax.Array:
        group = tensors_of(key_path, param)
        value = _zeros(param.shape, param.dtype, sharding)()
        insert = _insert(group, sharding)
        for layer, name in enumerate(group.names):
            view = staging.put(checkpoint[name].get_tensor(name).reshape(group.view_shape), group, sharding)
            # Dispatch runs ahead of the devices, which must be done with a tensor before the next takes its place.
            value = jax.block_until_ready(insert(value, view, layer))
        if finite:
            found.append((group, parallel.to_host(_are_finite(value, group.stacked))))
        return value

    if callable(shardings):
        shardings = shardings(params)
    trees = (params,) if shardings is None else (params, shardings)
    read_params = jax.tree.map_with_path(read, *trees)
    _refuse_infinite(found, checkpoint)
    return nnx.merge(graphdef, read_params)


def _refuse_infinite(found: list[tuple[Tensors, np.ndarray]], checkpoint: dict[str, WeightFile]) -> None:
    """found: parameters, and for each of their tensors whether it is finite."""
    bad = [name for group, flags in found for name, right in zip(group.names, np.atleast_1d(flags)) if not right]
    if bad:
        others = f" (and in {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise UserError(
            f"{checkpoint[bad[0]].path} holds NaN or infinite numbers in {bad[0]}{others}: fetch the weights again, or "
            "another checkpoint of the model"
        )


@functools.partial(jax.jit, static_argnums=1)
def _are_finite(value: jax.Array, stacked: bool) -> jax.Array:
    """Whether all numbers of a parameter are finite, [layers] where it is `stacked`; seen where the parameter is."""
    return jnp.isfinite(value).all(axis=tuple(range(stacked, value.ndim)))


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding | None) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


def _insert(group: Tensors, sharding: Sharding | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """(parameter, tensor as seen by `view_shape`, layer) -> the parameter, in place, with the tensor in it."""
    return _jit_insert(dataclasses.replace(group, names=()), sharding)  # layers and parameters alike share it


@functools.cache
def _jit_insert(group: Tensors, sharding: Sharding | None):
    def insert(param, view, layer):
        value = group.from_view(view).astype(param.dtype)
        if not group.stacked:
            # Not the value itself: a parameter never shares memory with its source.
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

    def put(self, view: np.ndarray, group: Tensors, sharding: NamedSharding | None) -> jax.Array:
        """The tensor, seen as `view_shape`, on the devices that hold the parameter; each slice is read once. It must
        be out of use when this is called again."""
        self._used = 0
        if sharding is None:
            return jax.device_put(self._copy(view))
        slices = {}

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX's type allows it, its code does not
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
