"""One mesh, one table: which mesh axis splits which logical axis of parameters and batches."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> the mesh axes that split it. Parameters name their own axes (models/decoder.py).
RULES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp"),  # training rows, slots, questions
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
}


def make_mesh(config: Any, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices.

    Args:
      config: the `mesh` section: data, fsdp, tensor; at most one is -1, "the devices that remain".
      devices: default `jax.devices()`.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    count = len(jax.devices() if devices is None else devices)
    sizes = {axis: int(getattr(config, axis)) for axis in MESH_AXES}
    text = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"{text}: sizes are at least 1, and at most one is -1 (what remains)")
    if count % fixed:
        raise ValueError(f"{text}: {fixed} does not divide the {count} devices")
    if free:
        sizes[free[0]] = count // fixed
    elif fixed != count:
        raise ValueError(f"{text} uses {fixed} of {count} devices; set one size to -1 to use all of them")
    return jax.make_mesh(
        tuple(sizes.values()),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def partition_spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Placement of an array whose axes have these logical names (None: not split).

    A dimension that the product of its mesh axes does not divide stays whole (say, two kv heads on
    four tensor devices), and so does one whose mesh axis an earlier dimension has taken.

    Raises:
      ValueError: a name that RULES lacks.
    """
    spec: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} has no rule; add it to parallel.RULES ({', '.join(RULES)})")
        axes = RULES[name] if name is not None else ()
        if not axes or taken & set(axes) or size % math.prod(mesh.shape[a] for a in axes):
            spec.append(None)
        else:
            taken |= set(axes)
            spec.append(axes)
    return PartitionSpec(*spec)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Same structure as `tree`, a NamedSharding per array.

    Every `nnx.Variable` in it (parameters, and moments and reference, which inherit their metadata)
    is placed by its logical axes; every other array is replicated. Arrays may be abstract.
    """

    def place(x):
        if not isinstance(x, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        value = x.get_value()
        names = x.get_metadata().get("out_sharding") or (None,) * value.ndim
        return x.replace(NamedSharding(mesh, partition_spec(names, value.shape, mesh)))

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Parameters, or a whole train state, moved to where `shardings` puts them."""
    return jax.device_put(tree, shardings(tree, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...] split along B over (data, fsdp); replicated where that does not divide B.

    With several hosts each passes its own B rows, equally many, and gets a view of all of them.
    """

    def put(x):
        x = np.asarray(x)
        rows = x.shape[0] * jax.process_count()
        names = ("rows",) + (None,) * (x.ndim - 1)
        sharding = NamedSharding(mesh, partition_spec(names, (rows, *x.shape[1:]), mesh))
        return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

    return jax.tree.map(put, batch)
