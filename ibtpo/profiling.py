"""A trace of some updates, `--profile=10:12`, for Perfetto and TensorBoard's profiler.

Every process writes its own: workdir/profile, or workdir/profile/host_<i> where there are several, has
plugins/profile/<time>/ with *.xplane.pb (TensorBoard) and perfetto_trace.json.gz (https://ui.perfetto.dev). Nothing
here loads JAX before a trace begins.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ibtpo.arguments import shown
from ibtpo.errors import UserError, one_line

FOLDER = "profile"
_FORM = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")


def phase(name: str) -> Any:
    """Names what the host does within it, in a trace; a context manager that costs next to nothing without one."""
    import jax

    return jax.profiler.TraceAnnotation(name)


@dataclass
class Profile:
    """The updates to trace, `first` to `last`, both included; none where first is 0."""

    first: int = 0
    last: int = 0
    _open: bool = field(default=False, repr=False)

    @classmethod
    def parse(cls, text: str | None, steps: int) -> "Profile":
        """Of the flag's value, "10:12" or "10"; None: no updates.

        Raises:
          UserError: it is no such range, or not within the run's updates, 1 to `steps`.
        """
        if text is None:
            return cls()
        match = _FORM.fullmatch(text)
        form = "give the first and the last update, like --profile=10:12, or one, like --profile=10"
        if match is None:
            raise UserError(f"--profile={shown(text)[1:-1]}: {form}")
        first = int(match[1])
        last = int(match[2] or first)
        if not 1 <= first <= last:
            why = "updates count from 1" if first < 1 else f"the last, {last}, comes before the first"
            raise UserError(f"--profile={text}: {why}: {form}")
        if last > steps:
            raise UserError(f"--profile={text}: the run has {steps} updates (train.steps): choose some of 1 to {steps}")
        return cls(first, last)

    def check_begin(self, done: int) -> None:
        """Raises a UserError where the first update to trace is done already, `done` of the run being."""
        if 0 < self.first <= done:
            raise UserError(
                f"--profile={self.first}:{self.last}: update {self.first} is done already, the run continues at "
                f"{done + 1}: choose later updates, or a new --workdir"
            )

    @contextlib.contextmanager
    def update(self, workdir: str | os.PathLike, step: int) -> Iterator[None]:
        """Around update `step`: begins the trace before the first and ends it behind the last."""
        if not self.first <= step <= self.last:
            yield
            return
        import jax

        if not self._open:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python would be most of the trace; phases are named instead
            jax.profiler.start_trace(str(_folder(workdir)), create_perfetto_trace=True, profiler_options=options)
            self._open = True
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            yield
        if step == self.last:
            self.close()

    def close(self) -> str:
        """Ends a trace that is under way, wherever the run ends. A trace that cannot be written is no end of a run."""
        if not self._open:
            return ""
        import jax
        from absl import logging

        self._open = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            logging.warning("--profile: the trace cannot be written (%s)", one_line(error))
            return ""
        return FOLDER


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Where this process writes its traces; made."""
    import jax

    folder = pathlib.Path(workdir) / FOLDER
    if jax.process_count() > 1:
        folder /= f"host_{jax.process_index()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
