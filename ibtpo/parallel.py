"""One mesh, one table: which mesh axis splits which logical axis of parameters, activations and caches.

The mesh is JAX's own current mesh (`use_mesh` at the start of a program, or `with jax.set_mesh(mesh):`). What computes
asks for placement by logical names (`constrain`, `per_shard`), which do nothing without a mesh or on one device, so
that the same code runs on a laptop and on a pod.
"""

import contextlib
import glob
import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ibtpo.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> the mesh axes that split it. Parameters name their own axes (models/decoder.py).
RULES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp"),  # training rows; slots, pages and page-table rows of the sampler
    "draws": ("data", "fsdp", "tensor"),  # slots while a token is drawn: each device has whole vocabularies
    "tokens": ("tensor",),  # of the residual stream between the layers ("sequence parallelism")
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "rank": (),  # of low-rank adapters
}
# Weights at the place where they are used: whole over data and fsdp, split over tensor. Training gathers one layer at
# a time into this layout; sampling, which reads all of them for every token, keeps a copy in it.
SERVING_RULES = RULES | {"embed": ()}
CONNECT_SECONDS = 300  # that the processes of a job wait for one another to start
_MESSAGE_BYTES = 1000  # of an error that the processes tell one another


def job() -> dict[str, Any] | None:
    """How `jax.distributed.initialize` finds the other processes of this one's job; None where there are none to find.

    On a TPU VM JAX finds the others by itself. Elsewhere JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID name them.

    Raises:
      UserError: the variables are incomplete.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        numbers = {name: os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
        for name, value in numbers.items():
            if not value.isdigit():
                raise UserError(f"JAX_COORDINATOR_ADDRESS={address} is set, so {name}={value!r} must be a number")
        count, index = map(int, numbers.values())
        return dict(coordinator_address=address, num_processes=count, process_id=index)
    if importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        if os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
            return {}
    return None


def initialize(host_timeout: float = 60.0) -> None:
    """Connects the processes of a job, before anything else asks JAX for devices; one process needs none of it.

    host_timeout: seconds after which `ibtpo.hosts` gives up a process that shows no sign of life; JAX, whose way is to
    abort, waits longer.

    Raises:
      UserError: see `job`.
    """
    found = job()
    if found is not None:
        patience = max(100, math.ceil(2 * host_timeout))
        jax.distributed.initialize(**found, heartbeat_timeout_seconds=patience, initialization_timeout=CONNECT_SECONDS)


def agree(error: Exception | None = None) -> None:
    """Tells all processes whether one of them failed, and then raises on each: its own `error` where it has one, else
    one that names the first process that failed and its message.

    All processes must call this at the same point of the program, so that none goes on into a collective in which it
    would wait for ever for one that gave up. One process alone just raises its own. The message always has the
    same size.

    Args:
      error: the exception of this process; None if there is none.

    Raises:
      UserError: another process failed with one.
      RuntimeError: another process failed with another error.
    """
    told = np.zeros(_MESSAGE_BYTES, np.uint8)  # 0: all is well; 1: an error; 2: a UserError; then the message
    if error is not None:
        is_user_error = isinstance(error, UserError)
        text = str(error) if is_user_error else f"{type(error).__name__}: {error}"
        data = text.encode()[: _MESSAGE_BYTES - 1]
        told[0], told[1 : 1 + len(data)] = 1 + is_user_error, list(data)
    everyone = multihost_utils.process_allgather(told) if jax.process_count() > 1 else told[None]
    if error is not None:
        raise error
    for index, (kind, *data) in enumerate(np.asarray(everyone).tolist()):
        message = bytes(data).rstrip(b"\0").decode(errors="replace")
        if kind == 2:
            raise UserError(f"{message} (on process {index})")
        if kind:
            raise RuntimeError(f"process {index} failed: {message}")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """An error within it, on whichever process, is raised on all of them at its end (`agree`). The body must hold
    no collective that a process which fails would leave the others in."""
    try:
        yield
    except Exception as error:
        agree(error)
    agree()


def make_mesh(config: Any, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices.

    Args:
      config: the `mesh` section: data, fsdp, tensor; at most one is -1, "the devices that remain".
      devices: default `jax.devices()`.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    count = len(jax.devices() if devices is None else devices)
    sizes = {axis: int(getattr(config, axis)) for axis in MESH_AXES}
    text = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{text}: sizes are at least 1, and at most one is -1 (what remains)")
    if count % fixed:
        raise UserError(f"{text}: {fixed} does not divide the {count} devices")
    if free:
        sizes[free[0]] = count // fixed
    elif fixed != count:
        raise UserError(f"{text} uses {fixed} of {count} devices; set one size to -1 to use all of them")
    return jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def use_mesh(config: Any) -> Mesh:
    """The mesh of the `mesh` section over all devices, made the program's own (`jax.set_mesh`)."""
    mesh = make_mesh(config)
    jax.set_mesh(mesh)
    return mesh


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh of the surrounding `jax.set_mesh`; None where there is none, or where it has one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """The platform of the current mesh's devices ("tpu", "gpu", "cpu"); without a mesh, JAX's default backend.

    Ahead-of-time compilation has a mesh of described devices, so this is not the backend of the Python program.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def share_cores() -> bool:
    """Whether several CPU devices of this process share its cores, so that each had better keep to one at a time."""
    return platform() == "cpu" and jax.local_device_count() > 1


def mesh_axis_size(axis: str) -> int:
    """Devices along an axis of the current mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else mesh.shape[axis]


def num_row_shards() -> int:
    """Shards of the logical axis "rows" under the current mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["rows"])


def partition_spec(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | jax.sharding.AbstractMesh,
    rules: dict[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
    """Placement of an array whose axes have these logical names (None: not split).

    A dimension is split over the longest prefix of its mesh axes whose product divides it (two kv heads on four
    tensor devices stay whole), and stays whole where an earlier dimension has taken one of them.

    Raises:
      ValueError: a name that the rules lack.
    """
    spec: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"logical axis {name!r} has no rule; add it to parallel.RULES ({', '.join(rules)})")
        axes = rules[name] if name is not None else ()
        if taken & set(axes):
            axes = ()
        axes = _dividing(axes, size, mesh)
        taken |= set(axes)
        spec.append(axes or None)
    return PartitionSpec(*spec)


def constrain(x: jax.Array, *names: str | None, rules: dict[str, tuple[str, ...]] = RULES) -> jax.Array:
    """`x`, placed by the logical names of its axes; inside jit."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh, rules))


def constrain_params(tree: Any) -> Any:
    """A tree with every `nnx.Variable` in it (parameter, gradient, moment) in the training layout; inside jit."""

    def place(x):
        return x.replace(constrain(x.get_value(), *_names(x))) if _is_variable(x) else x

    return tree if current_mesh() is None else jax.tree.map(place, tree, is_leaf=_is_variable)


def constrain_tree(tree: Any, names: Any) -> Any:
    """A tree of arrays placed by a tree of logical names in its structure; inside jit."""
    return tree if current_mesh() is None else jax.tree.map(lambda x, n: constrain(x, *n), tree, names)


def replicate(tree: Any) -> Any:
    """Every array of a tree whole on every device, so that any host can read it; inside jit."""
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), tree)


def serving(params: Any, dtype: Any) -> Any:
    """A copy of the parameters in `dtype` and the layout of `SERVING_RULES`; inside jit."""
    return jax.tree.map(lambda x: x.replace(gather(x, dtype)), params, is_leaf=_is_variable)


def gather(x: nnx.Variable, dtype: Any = None) -> jax.Array:
    """The value of a parameter, cast to `dtype`, in the layout it is used in (`SERVING_RULES`); inside jit.

    Cast first: what crosses the interconnect is then as small as it gets.
    """
    value = x.get_value() if dtype is None else x.get_value().astype(dtype)
    return constrain(value, *_names(x), rules=SERVING_RULES)


def per_shard(fn: Callable, in_names: tuple, out_names: Any) -> Callable:
    """`fn` on every device's own part of its arguments: `jax.shard_map` over all mesh axes.

    Args:
      in_names: for each argument the logical names of its axes, a tuple; for an argument of several arrays the same
        structure with such tuples. Dimensions of one name are split alike, over the longest prefix of its mesh axes
        whose product divides all of them; otherwise every device gets them whole.
      out_names: the same for the result.
    """

    def call(*args):
        mesh = current_mesh()
        if mesh is None:
            return fn(*args)
        axes: dict[str, tuple[str, ...]] = {}

        def fit(x, names):
            for name, size in zip(names, x.shape, strict=True):
                if name is not None:
                    axes[name] = _dividing(axes.get(name, RULES[name]), size, mesh)

        def spec(names):
            return PartitionSpec(*(axes[name] or None if name is not None else None for name in names))

        jax.tree.map(fit, args, in_names)
        in_specs = jax.tree.map(lambda x, names: spec(names), args, in_names)
        out_specs = jax.tree.map(spec, out_names, is_leaf=_is_names)
        # Kernels do not say over which axes their results vary, so that is not checked.
        return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)

    return call


def shardings(tree: Any, mesh: Mesh, rules: dict[str, tuple[str, ...]] = RULES) -> Any:
    """Same structure as `tree`, a NamedSharding per array.

    Every `nnx.Variable` in it (parameters, and moments and reference, which inherit their metadata)
    is placed by its logical axes; every other array is replicated. Arrays may be abstract.
    """

    def place(x):
        if not _is_variable(x):
            return NamedSharding(mesh, PartitionSpec())
        return x.replace(NamedSharding(mesh, partition_spec(_names(x), x.get_value().shape, mesh, rules)))

    return jax.tree.map(place, tree, is_leaf=_is_variable)


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Parameters, or a whole train state, moved to where `shardings` puts them."""
    return jax.device_put(tree, shardings(tree, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...] split along B over the axis "rows"; every host passes the same whole arrays."""

    def put(x):
        x = np.asarray(x)
        names = ("rows",) + (None,) * (x.ndim - 1)
        sharding = NamedSharding(mesh, partition_spec(names, x.shape, mesh))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, batch)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole of an array that may be split over devices of several hosts, which all have to ask for it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _dividing(axes: tuple[str, ...], size: int, mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The longest prefix of mesh axes whose product divides `size`."""
    while size % math.prod(mesh.shape[a] for a in axes):
        axes = axes[:-1]
    return axes


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _is_names(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)


def _names(x: nnx.Variable) -> tuple[str | None, ...]:
    """Of its axes. One layer's part of a parameter has lost the leading axis, and its name with it."""
    names, ndim = x.get_metadata().get("axes"), x.get_value().ndim
    return (None,) * ndim if names is None else names[len(names) - ndim :]
