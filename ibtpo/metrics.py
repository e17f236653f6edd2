"""Numbers of a run: reduced once, written to metrics.jsonl and TensorBoard, shown on the terminal."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

FILE_NAME = "metrics.jsonl"


def reduce(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """{name: sum / weight} of {name: (sum, weight)}, both scalars; a name of weight 0 is left out."""
    pairs = {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()}
    return {name: total / weight for name, (total, weight) in pairs.items() if weight != 0}


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


class Progress:
    """Progress of a loop: a bar on a terminal, plain lines where the output is a pipe or a file.

    A plain line holds step/total, the metrics of that step, the time elapsed and the time left; at most one in
    `line_seconds` seconds, but always the first and the last.

    Args:
      total: steps of the loop.
      initial: steps done before it (a resumed run); they do not count in the time left.
      description: what the loop does, in a word or two.
      stream: default standard error.
      line_seconds: least time between two plain lines.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "",
        *,
        stream: TextIO | None = None,
        line_seconds: float = 10.0,
    ):
        self._stream = stream or sys.stderr
        self._total, self._initial, self._step = total, initial, initial
        self._description, self._line_seconds = description, line_seconds
        self._start, self._last_line = time.monotonic(), -math.inf
        self._bar = None
        if self._stream.isatty():
            import tqdm

            # Some terminals claim to have no columns or no lines, and tqdm would draw nothing there.
            known = all(size > 0 for size in os.get_terminal_size(self._stream.fileno()))
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=description or None,
                file=self._stream,
                dynamic_ncols=known,
                ncols=None if known else 80,
                nrows=None if known else 24,
            )

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Shows that `step` steps are done, with a few metrics."""
        shown = {name: f"{value:.4g}" for name, value in (metrics or {}).items()}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._step)
            self._step = step
            return
        self._step = step
        now = time.monotonic()
        if now - self._last_line >= self._line_seconds or step >= self._total:
            self._last_line = now
            done = step - self._initial
            left = _clock((now - self._start) / done * (self._total - step)) if done > 0 else "?"
            parts = [f"{self._description} {step}/{self._total}".strip()]
            parts += [f"{name}={value}" for name, value in shown.items()]
            parts += [f"elapsed {_clock(now - self._start)}", f"left {left}"]
            print("  ".join(parts), file=self._stream, flush=True)

    def print(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused) -> None:
        self.close()


def _clock(seconds: float) -> str:
    """73.4 -> "1:13", 4000 -> "1:06:40"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
