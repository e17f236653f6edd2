"""Numbers of a run on disk: metrics.jsonl and TensorBoard event files."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

FILE_NAME = "metrics.jsonl"


def read(workdir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The rows of workdir/metrics.jsonl, oldest first: {"step": int, name: float or None, ...}.

    None stands for a value that was not finite. An incomplete last line (a run that was killed while writing) ends
    the reading. FileNotFoundError without the file.
    """
    with open(os.path.join(workdir, FILE_NAME), encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def exist(workdir: str | os.PathLike) -> bool:
    """Whether there is a workdir/metrics.jsonl."""
    return os.path.isfile(os.path.join(workdir, FILE_NAME))


class MetricWriter:
    """Writes rows of metrics to workdir/metrics.jsonl and, if asked, to TensorBoard event files in workdir/tensorboard.

    metrics.jsonl has one JSON object per line, {"step": 12, "train/loss": 0.25, ...}, on disk when `write` returns.
    JSON has no NaN and no infinity: such a value is null there (TensorBoard gets it as it is).

    A resumed run continues the files: rows of steps after `resume_step` are dropped, since the run will write them
    again, and TensorBoard is told to forget them. If that leaves none, the file is kept as metrics.jsonl.old.

    Args:
      workdir: made if missing.
      tensorboard: write event files too.
      resume_step: the last step whose rows are kept, -1 for none; None: continue after the last row, whatever it is.
      active: False writes nothing at all: on every host of a run but the first.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool = True,
        *,
        resume_step: int | None = None,
        active: bool = True,
    ):
        self._file = self._events = None
        if not active:
            return
        os.makedirs(workdir, exist_ok=True)
        path = os.path.join(workdir, FILE_NAME)
        if os.path.exists(path):
            rows = [row for row in read(workdir) if resume_step is None or row["step"] <= resume_step]
            if not rows and os.path.getsize(path):
                os.replace(path, path + ".old")
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            os.replace(path + ".tmp", path)
        self._file = open(path, "a", encoding="utf-8")
        if tensorboard:
            import tensorboardX

            folder = os.path.join(workdir, "tensorboard")
            purge = resume_step + 1 if resume_step is not None and os.path.isdir(folder) else None
            # File names count whole seconds and a file of the same name is overwritten: two starts within a second
            # need the finer clock, which keeps the order of names the order of time.
            suffix = f".{time.time_ns()}"
            self._events = tensorboardX.SummaryWriter(folder, purge_step=purge, filename_suffix=suffix)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row; values are scalars. Several rows of one step are allowed (training and evaluation)."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, int(step))
            self._events.flush()

    def close(self) -> None:
        """Closes the files; safe to call twice."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *unused) -> None:
        self.close()
