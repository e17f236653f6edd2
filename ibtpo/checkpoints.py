"""Checkpoints of a whole run with Orbax: everything that makes a resumed run equal an unbroken one.

Layout: <workdir>/checkpoints/<step>/{params,optimizer,reference,counters,extra}, or <checkpoint.dir>/<step>/... for a
run that was given one. Arrays are saved under their dotted path (params: layers.q), so that no file depends on a Python
class; the PRNG key is saved as its data; `extra` is JSON with the data iterator's position and the configuration.
"""

import json
import logging
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ibtpo.config import SAVED_NAME
from ibtpo.errors import UserError
from ibtpo.state import TrainState

# Orbax reports every phase of every save; only its warnings are news.
logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.WARNING or "orbax" not in record.pathname)


def _name(path: tuple) -> str:
    # ".value" is how a Variable holds its array, in every path alike.
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path).removesuffix(
        ".value"
    )


def _flatten(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): leaf for path, leaf in flat}


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    items = {
        "params": _flatten(state.params),
        "optimizer": _flatten(state.opt_state),
        "counters": {
            "step": state.step,
            "policy_version": state.policy_version,
            "key": jax.random.key_data(state.key),
        },
    }
    if state.ref_params is not None:
        items["reference"] = _flatten(state.ref_params)
    return items


def _unflatten(like: Any, flat: dict[str, Any]) -> Any:
    leaves = [flat[_name(path)] for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _abstract(flat: dict[str, Any]) -> dict[str, Any]:
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)) for name, x in flat.items()
    }


class Checkpoints:
    """The checkpoints of one working directory; use it as a context manager.

    A checkpoint appears under its final name only when complete. Saving happens in the background;
    `close` (or leaving the context) waits for it.

    Args:
      workdir: the checkpoints are in <workdir>/checkpoints.
      folder: they are here instead; a path or, with the packages for it, a URL such as gs://bucket/run.
      keep: newest checkpoints kept.

    Raises:
      UserError: with several hosts, where they do not all see the folder.
    """

    def __init__(self, workdir: str | os.PathLike, *, folder: str | os.PathLike = "", keep: int | None = None):
        self.path = _absolute(folder or os.path.join(workdir, "checkpoints"))
        if jax.process_count() > 1:
            self._check_shared()
        self._manager = ocp.CheckpointManager(
            self.path, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )

    def _check_shared(self) -> None:
        if jax.process_index() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
        multihost_utils.sync_global_devices("checkpoint folder")
        seen = multihost_utils.process_allgather(np.array(self.path.is_dir()))
        if not seen.all():
            raise UserError(
                f"checkpoint.dir: {self.path} is seen by {int(seen.sum())} of {len(seen)} hosts only; set it to "
                "storage that all of them share, e.g. gs://<bucket>/<run>/checkpoints"
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for saves under way and releases the directory."""
        self._manager.wait_until_finished()
        self._manager.close()

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator_state: dict, config: dict) -> None:
        """Saves a run at `state.step`; a step that is saved already is left as it is.

        Args:
          state: everything of it.
          iterator_state: JSON-able position of the data iterator.
          config: JSON-able snapshot of the configuration.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = {name: ocp.args.PyTreeSave(flat) for name, flat in _items(state).items()}
        extra = {"iterator": iterator_state, "config": config}
        self._manager.save(step, args=ocp.args.Composite(**args, extra=ocp.args.JsonSave(extra)))
        if jax.default_backend() == "cpu":
            # There the saver may read the arrays' own memory, which the next update reuses.
            self._manager.wait_until_finished()

    def saved_config(self, step: int | None = None) -> dict | None:
        """The configuration saved with a checkpoint (default: the newest); None if nothing was saved."""
        if step is None and self.latest_step() is None:
            return None
        return self._read_json(self._existing(step))["config"]

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """(state, iterator_state) exactly as saved.

        Args:
          like: a state of the same run; gives structure, types and placement.
          step: default the newest.

        Raises:
          UserError: there is no such checkpoint, or it does not fit `like`; the message names the first parameter that
            differs, with both shapes.
        """
        step = self._existing(step)
        items = {name: self._read_arrays(step, name, flat) for name, flat in _items(like).items()}
        counters = items["counters"]
        state = TrainState(
            step=counters["step"],
            params=_unflatten(like.params, items["params"]),
            opt_state=_unflatten(like.opt_state, items["optimizer"]),
            ref_params=like.ref_params if like.ref_params is None else _unflatten(like.ref_params, items["reference"]),
            key=jax.random.wrap_key_data(counters["key"], impl=jax.random.key_impl(like.key)),
            policy_version=counters["policy_version"],
        )
        return state, self._read_json(step)["iterator"]

    def _existing(self, step: int | None) -> int:
        step = self.latest_step() if step is None else step
        steps = list(self._manager.all_steps())
        if step is None or step not in steps:
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"no {wanted} in {self.path}; steps saved there: {steps}")
        return step

    def _read_json(self, step: int) -> dict:
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["extra"]

    def _read_arrays(self, step: int, name: str, flat: dict[str, Any]) -> dict[str, Any]:
        folder = self.path / str(step) / name
        if not folder.is_dir():
            raise UserError(
                f"checkpoint {folder.parent} has no {name} but this run needs it (loss.kl > 0 or "
                "loss.ib_confidence='reference'): resume with the options it was made with, or "
                "start in a new working directory"
            )
        saved = ocp.PyTreeCheckpointHandler().metadata(folder).tree
        _check_fit(folder, saved, flat)
        target = _abstract(flat)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    name: ocp.args.PyTreeRestore(
                        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
                    )
                }
            ),
        )
        return restored[name]


def _absolute(folder: str | os.PathLike) -> epath.Path:
    folder = os.fspath(folder)
    return epath.Path(folder if "://" in folder else os.path.abspath(folder))


def find(run: str | os.PathLike) -> epath.Path | None:
    """The folder with the checkpoints of a run, given its workdir or that folder itself; None if it is neither.

    A workdir without a folder checkpoints has them in the checkpoint.dir that its config.json names. Its own folder
    comes first, as it may be a copy of that one, fetched from a bucket.

    Raises:
      UserError: the package that reads a URL is missing.
    """
    path = _absolute(run)
    if _is_dir(path / "checkpoints"):
        return path / "checkpoints"
    named = _named_dir(path)
    if named and _is_dir(_absolute(named)):
        return _absolute(named)
    return path if path.is_dir() and _holds_steps(path) else None


def has_any(run: str | os.PathLike) -> bool:
    """Whether there is a checkpoint where `find` looks."""
    folder = find(run)
    return folder is not None and _holds_steps(folder)


def why_missing(run: str | os.PathLike) -> str:
    """In words, the checkpoint looked for where `find` finds nothing."""
    named = _named_dir(_absolute(run))
    elsewhere = f"the checkpoint.dir={named!r} of its config.json is none either"
    if not named:
        elsewhere = "no config.json with a checkpoint.dir"
    return f"there is no folder {os.path.join(run, 'checkpoints')}, and {elsewhere}"


def _holds_steps(folder: epath.Path) -> bool:
    return any(child.name.isdigit() for child in folder.iterdir())


def _is_dir(path: epath.Path) -> bool:
    try:
        return path.is_dir()
    except ImportError as error:
        raise UserError(
            f"{path} cannot be read here ({error}): install requirements-tpu.txt, or copy the checkpoints to a folder "
            "checkpoints in the workdir"
        ) from error


def _named_dir(workdir: epath.Path) -> str:
    """checkpoint.dir of a workdir's config.json; "" if that is not there, empty or another program's file."""
    try:
        return json.loads((workdir / SAVED_NAME).read_text())["checkpoint"]["dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _open(run: str | os.PathLike) -> Checkpoints:
    folder = find(run)
    if folder is None:
        raise UserError(f"no checkpoints in {run}: {why_missing(run)}")
    return Checkpoints(run, folder=folder)


def latest_step(run: str | os.PathLike) -> int:
    """Step of the newest checkpoint of a run, given its workdir or the folder of its checkpoints.

    Raises:
      UserError: there is none.
    """
    with _open(run) as checkpoints:
        return checkpoints._existing(None)


def load_params(run: str | os.PathLike, like: Any, step: int | None = None) -> Any:
    """The policy's parameters alone, in the structure, types and placement of `like`.

    Args:
      run: workdir of the training run, or the folder of its checkpoints.
      like: `nnx.split(decoder, nnx.Param)[1]` of a decoder with the same sizes.
      step: default the newest.

    Raises:
      UserError: there is no such checkpoint, or it does not fit `like`.
    """
    with _open(run) as checkpoints:
        step = checkpoints._existing(step)
        return _unflatten(like, checkpoints._read_arrays(step, "params", _flatten(like)))


def load_config(run: str | os.PathLike, step: int | None = None) -> dict:
    """The configuration saved with a checkpoint (default: the newest).

    Raises:
      UserError: there is no such checkpoint.
    """
    with _open(run) as checkpoints:
        return checkpoints._read_json(checkpoints._existing(step))["config"]


def _check_fit(folder: epath.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError at the first array by name that is missing or differs in shape or type."""

    def describe(flat, name):
        x = flat.get(name)
        return "absent" if x is None else f"{np.dtype(x.dtype).name}{list(x.shape)}"

    for name in sorted(saved.keys() | wanted.keys()):
        there, here = describe(saved, name), describe(wanted, name)
        if there != here:
            raise UserError(
                f"checkpoint {folder} does not fit this run: {name} is {there} there and {here} "
                "here; resume with the model and optimizer it was made with, or start in a new "
                "working directory"
            )
