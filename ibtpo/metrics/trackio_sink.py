"""A run in Trackio, https://huggingface.co/docs/trackio: on this machine, or on the Space TRACKIO_SPACE_ID."""

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any


def open_run(project: str, name: str, id: str, workdir: str, config: Mapping[str, Any]) -> "TrackioRun":
    """Begins the run, or continues it. Trackio knows runs by their names, so the id is part of the name.

    project, name: as they are shown there. config: the hparams.
    """
    import trackio

    with contextlib.redirect_stdout(io.StringIO()):  # it tells how to open its dashboard, which docs/watching.md does
        run = trackio.init(project=project, name=f"{name}-{id}", config=dict(config), resume="allow")
    return TrackioRun(trackio, run, project, f"{name}-{id}")


class TrackioRun:
    """A `Sink` (`ibtpo.metrics.sinks`)."""

    def __init__(self, trackio: Any, run: Any, project: str, name: str):
        self._trackio, self._run = trackio, run
        self.where = f"project {project}, run {name}; trackio show --project {project}"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        # A longer fence than any in the text: what is inside is shown as it is.
        fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
        self._run.log({name: self._trackio.Markdown(f"{fence}\n{text}\n{fence}")}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
