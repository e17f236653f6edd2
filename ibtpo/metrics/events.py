"""TensorBoard event files whose rows are on disk when the call that writes them returns."""

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any


class EventFile:
    """One event file of a folder. A row is one record, so that a process which is killed leaves all of it or none.

    tensorboardX's SummaryWriter hands every scalar to a queue and a thread: its `flush` does not wait for them, and
    what is in them is lost with the process. Only its protocol buffers and its record format are used here.

    Args:
      folder: made if missing.
      purge_step: TensorBoard shall forget what earlier files hold of this step and those after it; None: nothing.
    """

    def __init__(self, folder: str, purge_step: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        os.makedirs(folder, exist_ok=True)
        # File names count whole seconds and a file of the same name is overwritten: two starts within a second
        # need the finer clock, which keeps the order of names the order of time.
        self._writer = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns()}")
        if purge_step is not None:
            self._put(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the scalars of a step."""
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        summary = Summary(value=[part for name, x in values.items() for part in scalar(name, x).value])
        self._put(step=step, summary=summary)
        self._writer.flush()

    def text(self, step: int, name: str, text: str) -> None:
        """Appends a text, shown as it is: indented, it is a block of code to TensorBoard's Markdown."""
        from tensorboardX.summary import text as text_summary

        shown = "\n".join(f"    {line}" for line in text.splitlines())
        self._put(step=step, summary=text_summary(name, shown))
        self._writer.flush()

    def hparams(self, values: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Appends the configuration for TensorBoard's table of hparams, {key: number or text}, with the names of the
        metrics that stand beside it."""
        from tensorboardX.summary import hparams

        for summary in hparams(dict(values), dict.fromkeys(metrics, 0.0))[:2]:  # the third says that the run is done
            self._put(summary=summary)
        self._writer.flush()

    def _put(self, **fields) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), **fields))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
