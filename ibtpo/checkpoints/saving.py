"""One save: every host writes its part, and when all have, the first completes the checkpoint, in the background."""

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath

from ibtpo.checkpoints import arrays, folders, hosts, manifest, sums
from ibtpo.checkpoints.damage import cause_of_failed_write, reason
from ibtpo.errors import RunFailure

T = TypeVar("T")
EXTRA = "extra.json"


class Saving:
    """The save of one step, started when it is made. All hosts make it at the same point.

    An error on any host ends it on all of them: `wait` raises a RunFailure on each, and what is there of the step has
    no name of a checkpoint. The thread ends by itself and holds nothing up.

    Args:
      path: the folder of checkpoints.
      step: under which it is saved.
      items: {item: {name: array}}.
      extra: JSON-able, saved beside the arrays.
      keep: newest checkpoints that stay when this one is complete; None: all.
    """

    def __init__(
        self,
        path: epath.Path,
        step: int,
        items: dict[str, dict[str, Any]],
        extra: dict,
        keep: int | None,
    ):
        self.step, self._path, self._keep = step, path, keep
        self._error: Exception | None = None
        self._writers: dict[str, arrays.Writer] = {}
        self._items = items
        text = json.dumps(extra)
        try:
            self._folder = epath.Path(hosts.from_first("save", lambda: _told(self._begin, text)))
            self._sums = {name: sums.start(flat) for name, flat in items.items()}
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._start_writing()
        except Exception as error:
            raise self._failure(error) from error.__cause__
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the checkpoint is complete on all hosts.

        Raises:
          RunFailure: it could not be saved.
        """
        self._thread.join()
        if self._error is not None:
            raise self._failure(self._error) from self._error.__cause__

    def _begin(self, extra: str) -> str:
        folder = folders.begin(self._path, self.step)
        for name in self._items:
            (folder / name).mkdir()
        (folder / EXTRA).write_text(extra)
        return str(folder)

    def _start_writing(self) -> None:
        def start():
            for name, flat in self._items.items():
                self._writers[name] = arrays.Writer(self._folder / name, flat)

        hosts.together("save", _told, start)
        # The arrays themselves are the caller's, who may give their memory away.
        self._items = {
            name: {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in flat.items()}
            for name, flat in self._items.items()
        }

    def _run(self) -> None:
        try:
            hosts.together("save", _told, self._wait_for_writers)
            hosts.from_first("save", lambda: _told(self._complete))
        except Exception as error:
            self._error = error
        finally:
            self._writers = {}

    def _wait_for_writers(self) -> None:
        errors = []
        for writer in self._writers.values():
            try:
                writer.wait()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _complete(self) -> None:
        for writer in self._writers.values():
            writer.finish()
        described = {}
        for name, flat in self._items.items():
            described[name] = arrays.describe_arrays(flat, sums.finish(flat, self._sums[name]))
        manifest.write(self._folder, self.step, described)
        folders.complete(self._path, self.step, self._folder)
        if self._keep is not None:
            for old in folders.steps(self._path)[: -self._keep]:
                folders.delete(self._path, old)

    def _failure(self, error: Exception) -> Exception:
        """The error of one line; what was written is removed, for it may be what fills the disk. A fault of the program
        stays as it is."""
        try:
            if jax.process_index() == 0 and self.step not in folders.steps(self._path):
                folders.remove_left_overs(self._path)
            newest = max(folders.steps(self._path), default=None)
        except Exception:  # the storage is the fault
            newest = None
        if not isinstance(error, RunFailure):
            return error
        from_where = "nothing was saved before" if newest is None else f"step {newest} is complete"
        return RunFailure(
            f"checkpoint {self._path / str(self.step)} could not be saved ({error}): {from_where}; make room "
            "or mend the storage, and run the same command again to continue"
        )


def _told(act: Callable[..., T], *arguments: Any) -> T:
    """act(*arguments); its error in the few words that the other hosts are told too."""
    try:
        return act(*arguments)
    except Exception as error:
        cause = cause_of_failed_write(error)
        if cause is None:
            raise
        raise RunFailure(reason(cause)) from error
