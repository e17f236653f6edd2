"""The checkpoints of one working directory, for the run that writes them."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ibtpo.checkpoints import arrays, folders, hosts, note, reading
from ibtpo.checkpoints.damage import Damaged, describe, storage_fault
from ibtpo.checkpoints.saving import Saving
from ibtpo.errors import RunFailure, UserError
from ibtpo.state import TrainState


class Checkpoints:
    """The checkpoints of one working directory; use it as a context manager.

    A checkpoint appears under its final name only when complete. Saving happens in the background;
    `close` (or leaving the context) waits for it. What an earlier program left unfinished is removed.

    Args:
      workdir: the checkpoints are in <workdir>/checkpoints.
      folder: they are here instead; a path or, with the packages for it, a URL such as gs://bucket/run.
      keep: newest checkpoints kept.

    Raises:
      UserError: the folder cannot be written to or, with several hosts, they do not all see it.
    """

    def __init__(self, workdir: str | os.PathLike, *, folder: str | os.PathLike = "", keep: int | None = None):
        self.path = folders.absolute(folder or os.path.join(workdir, "checkpoints"))
        self._workdir, self._keep = pathlib.Path(workdir), keep
        self._saving: Saving | None = None
        self._unchecked = False  # whether a save was begun that not all hosts know the end of
        check_writable(workdir, folder)
        if jax.process_count() > 1:
            self._check_shared()
        hosts.from_first("open", self._clean)
        self._steps: list[int] = hosts.from_first("open", lambda: folders.steps(self.path))

    def _check_shared(self) -> None:
        file = self.path / "shared.tmp"
        token = hosts.from_first("open", lambda: _write(file, str(time.time_ns())))
        seen = hosts.exchange("open", str(int(file.exists() and file.read_text() == token)))
        hosts.from_first("open", file.unlink)
        if "0" in seen:
            raise UserError(
                f"checkpoint.dir: {self.path} is seen by {seen.count('1')} of {len(seen)} hosts only; set it to "
                "storage that all of them share, e.g. gs://<bucket>/<run>/checkpoints"
            )

    def _clean(self) -> None:
        try:
            folders.remove_left_overs(self.path)
        except Exception as error:
            if fault := storage_fault(error):
                raise describe(fault, self.path) from error
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except RunFailure as failure:  # what ends the program is the first error
            logging.warning("%s", failure)

    def close(self) -> None:
        """Waits for a save under way.

        Raises:
          RunFailure: it failed.
        """
        self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk. Errors as `close`."""
        saving, self._saving = self._saving, None
        self._unchecked = False
        if saving is None:
            return
        saving.wait()
        self._steps = [*self._steps, saving.step][-(self._keep or 0) :]
        if jax.process_index() == 0:
            note.write(self._workdir, self.path, saving.step)

    def check(self) -> None:
        """Whether a save in the background has failed, without waiting for it. On several hosts all call this at the
        same point of the program.

        Raises:
          RunFailure: it has.
        """
        if not self._unchecked:
            return
        saving = self._saving
        ended = saving is None or not saving.running
        if jax.process_count() > 1:
            ended = bool(np.all(multihost_utils.process_allgather(np.array(ended))))
        if ended:
            self.wait()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return max(self._steps, default=None)

    def save(self, state: TrainState, position: dict, config: dict, fingerprints: dict | None = None) -> None:
        """Saves a run at `state.step`; a step that is saved already is left as it is.

        Args:
          state: everything of it.
          position: JSON-able, where the run is besides its arrays (`trainer.Position`).
          config: JSON-able snapshot of the configuration.
          fingerprints: JSON-able, of the run's inputs (`ibtpo.fingerprints`).

        Raises:
          RunFailure: it, or the save before, failed; on all hosts. Earlier checkpoints are as they were.
        """
        self.wait()
        step = int(state.step)
        if step in self._steps:
            return
        extra = {"iterator": position, "config": config, "fingerprints": fingerprints or {}}
        self._saving = Saving(self.path, step, arrays.items(state), extra, self._keep)
        self._unchecked = True
        if jax.default_backend() == "cpu":
            # There the saver may read the arrays' own memory, which the next update reuses.
            self.wait()

    def restore(
        self, like: TrainState, step: int | None = None, *, check: Callable[[dict], None] | None = None
    ) -> tuple[TrainState, dict]:
        """(state, position) exactly as saved.

        Without a `step` the newest checkpoint is taken that is what was saved. Newer ones that are damaged are named
        in one line and moved aside, to <step>.damaged.

        Args:
          like: a state of the same run; gives structure, types and placement.
          step: default the newest.
          check: is given what was saved beside the arrays (keys config, fingerprints, iterator) before they are read,
            and raises what speaks against going on from it.

        Raises:
          UserError: there is no such checkpoint, all are damaged, or the one does not fit `like`; the message names the
            first parameter that differs, with both shapes.
          RunFailure: the storage fails.
        """
        self.wait()
        newest, wanted = self._existing(step), arrays.items(like)
        damaged: dict[int, Damaged] = {}
        for candidate in [newest] if step is not None else sorted(self._steps, reverse=True):
            try:
                found, extra = reading.read(self.path / str(candidate), wanted, check)
            except Damaged as error:
                damaged[candidate] = error
                continue
            self._move_aside(damaged, candidate)
            return arrays.to_state(found, like), extra["iterator"]
        raise UserError(_none_is_good(self.path, damaged))

    def _existing(self, step: int | None) -> int:
        newest = self.latest_step() if step is None else step
        if newest is None or newest not in self._steps:
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise UserError(f"no {wanted} in {self.path}; steps saved there: {self._steps}")
        return newest

    def _move_aside(self, damaged: dict[int, Damaged], good: int) -> None:
        if not damaged:
            return

        def move() -> str:
            try:
                names = {step: folders.move_aside(self.path, step) for step in damaged}
            except OSError as error:
                raise describe(error, self.path) from error
            return "; ".join(f"{step} ({damaged[step]}), now {name}" for step, name in names.items())

        said = hosts.from_first("restore", move)
        self._steps = [step for step in self._steps if step not in damaged]
        if jax.process_index() == 0:
            many = "checkpoints are" if len(damaged) > 1 else "checkpoint is"
            print(f"Damaged {many} set aside in {self.path}: {said}. The run goes on from step {good}.", flush=True)

    def check_nothing_lost(self) -> None:
        """For a run that finds no checkpoint, on all hosts together.

        Raises:
          UserError: there were some.
        """
        hosts.from_first("restore", lambda: note.check_nothing_lost(self._workdir, self.path))


def check_writable(workdir: str | os.PathLike, folder: str | os.PathLike = "") -> None:
    """Makes the folder that `Checkpoints` of the same arguments would use and writes to it, on all hosts together.

    Raises:
      UserError: that fails.
    """
    path = folders.absolute(folder or os.path.join(workdir, "checkpoints"))
    hosts.together("open", folders.probe, path, jax.process_index())


def _write(file: epath.Path, text: str) -> str:
    file.write_text(text)
    return text


def _none_is_good(path: Any, damaged: dict[int, Damaged]) -> str:
    listed = "; ".join(f"{step} ({error})" for step, error in damaged.items())
    return (
        f"no checkpoint in {path} can be used, all are damaged: {listed}. Bring one back from a copy, or start anew in "
        "another --workdir"
    )
