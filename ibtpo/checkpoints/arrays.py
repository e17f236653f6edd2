"""The arrays of a run as flat dictionaries, and their files, which Orbax writes and reads.

An item (params, optimizer, reference, counters) is a folder. Its arrays are saved under their dotted path (params:
layers.q), so that no file depends on a Python class; the PRNG key is saved as its data.
"""

import asyncio
import concurrent.futures
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ibtpo.checkpoints import quiet, sums
from ibtpo.checkpoints.damage import Damaged, describe, is_damage, storage_fault
from ibtpo.errors import UserError
from ibtpo.state import TrainState


def items(state: TrainState) -> dict[str, dict[str, Any]]:
    """{item: {name: array}} of a state. The base of adapters is not among them: it is read from the model's folder."""
    found = {
        "params": flatten(state.params),
        "optimizer": flatten(state.opt_state),
        "counters": {
            "step": state.step,
            "policy_version": state.policy_version,
            "key": jax.random.key_data(state.key),
        },
    }
    if state.ref_params is not None and not state.has_adapters:
        found["reference"] = flatten(state.ref_params)
    return found


def to_state(found: dict[str, dict[str, Any]], like: TrainState) -> TrainState:
    """The state of `items`, in the structure of `like`."""
    counters, reference = found["counters"], found.get("reference")
    return TrainState(
        step=counters["step"],
        params=unflatten(like.params, found["params"]),
        opt_state=unflatten(like.opt_state, found["optimizer"]),
        ref_params=like.ref_params if reference is None else unflatten(like.ref_params, reference),
        key=jax.random.wrap_key_data(counters["key"], impl=jax.random.key_impl(like.key)),
        policy_version=counters["policy_version"],
    )


def flatten(tree: Any) -> dict[str, Any]:
    """{dotted path: leaf}."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: Any, flat: Mapping[str, Any]) -> Any:
    """The leaves of `flatten` in the structure of `like`."""
    leaves = [flat[_name(path)] for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _name(path: tuple) -> str:
    # ".value" is how a Variable holds its array, in every path alike.
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path).removesuffix(
        ".value"
    )


class Writer:
    """Writes one item. Making it copies the arrays off the devices and starts the writing.

    Args:
      folder: of the item; it exists, on all hosts.
      flat: its arrays; on several hosts each writes what its devices hold.
    """

    def __init__(self, folder: epath.Path, flat: Mapping[str, Any]):
        quiet.hush()
        self._folder, self._handler = folder, ocp.PyTreeCheckpointHandler()
        args = ocp.args.PyTreeSave(dict(flat))
        # In a thread of its own, for a notebook's may have an event loop that runs already.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            started = pool.submit(lambda: asyncio.run(self._handler.async_save(folder, args=args)))
        self._writing = started.result() or []

    def wait(self) -> None:
        """Waits until this host's part is written; raises what went wrong."""
        for future in self._writing:
            future.result()

    def finish(self) -> None:
        """On the first host, when all have written theirs: the index of the whole."""
        self._handler.finalize(self._folder)


def read(folder: epath.Path, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of an item with the types and the placement of those in `flat`.

    Raises:
      Damaged: its files are not what was saved.
      UserError, RunFailure: they cannot be read.
    """
    target = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)) for name, x in flat.items()
    }
    quiet.hush()
    args = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    try:
        return ocp.PyTreeCheckpointHandler().restore(folder, args=args)
    except Exception as error:
        if fault := storage_fault(error):
            raise describe(fault, folder) from error
        if not is_damage(error):
            raise
        text = " ".join(str(error.__cause__ or error).split())
        raise Damaged(f"{folder.name}: its arrays cannot be read ({text[:200]})") from error


def check_sums(item: str, flat: Mapping[str, Any], saved: Mapping[str, list]) -> None:
    """Compares arrays that were read with the sums they were saved with; on several hosts all call this.

    Raises:
      Damaged: one differs.
    """
    for name, found in sums.sums(flat).items():
        if found != saved[name][-1]:
            raise Damaged(f"{item}: the array {name} is not the one that was saved (its checksum is wrong)")


def check_fit(place: epath.Path, item: str, saved: Mapping[str, list], wanted: Mapping[str, Any]) -> None:
    """Raises UserError at the first array by name that is missing or differs in shape or type.

    saved: of the manifest, {name: [type, shape, ...]}.
    """
    there_all = {name: f"{dtype}{shape}" for name, (dtype, shape, *_) in saved.items()}
    here_all = {name: f"{np.dtype(x.dtype).name}{list(x.shape)}" for name, x in wanted.items()}
    for name in sorted(there_all.keys() | here_all.keys()):
        there, here = there_all.get(name, "absent"), here_all.get(name, "absent")
        if there != here:
            raise UserError(
                f"checkpoint {place / item} does not fit this run: {name} is {there} there and {here} "
                "here; resume with the model and optimizer it was made with, or start in a new "
                "working directory"
            )


def describe_arrays(flat: Mapping[str, Any], of: Mapping[str, str]) -> dict[str, list]:
    """{name: [type, shape, sum]} for the manifest."""
    return {name: [np.dtype(x.dtype).name, list(x.shape), of[name]] for name, x in flat.items()}
