"""Numbers of a run on disk: metrics.jsonl and TensorBoard event files."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import logging

from ibtpo.errors import RunFailure
from ibtpo.metrics.events import EventFile
from ibtpo.metrics.sinks import Guarded
from ibtpo.whole_files import write_text

FILE_NAME = "metrics.jsonl"
_NAMED = 5  # lines that a warning names
_HPARAM_METRICS = ("eval/avg_at_k", "train/avg_rate_initial", "train/eff_rate")


def read(workdir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The rows of workdir/metrics.jsonl, oldest first: {"step": int, name: float or None, ...}.

    None stands for a value that was not finite. An incomplete last line (a run that was killed while writing) ends
    the reading. Lines that are no row (half a line, bytes that are no text, JSON that is no object of a step and
    numbers, NaN) are left out, with one warning that names them; where no line is a row, that is the caller's to say.
    FileNotFoundError without the file.
    """
    path = os.path.join(workdir, FILE_NAME)
    bad, found = [], False
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            row = _parse(line)
            if row is None:
                bad.append(number)
            else:
                found = True
                yield row
    if bad and found:
        named = ", ".join(map(str, bad[:_NAMED])) + f" and {len(bad) - _NAMED} more" * (len(bad) > _NAMED)
        what = "is no row" if len(bad) == 1 else "are no rows"
        logging.warning("%s: line%s %s %s of metrics: left out", path, "s" * (len(bad) > 1), named, what)


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds; None: it holds none."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        row = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**63 or len(row) < 2:
        return None
    return row if all(x is None or _is_number(x) for x in row.values()) else None


def _is_number(x: Any) -> bool:
    """Whether a value of a row is one: a finite float64."""
    if type(x) is int:
        return abs(x) < 2**1023
    return type(x) is float and math.isfinite(x)


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
      sinks: services that get what the files get (`ibtpo.metrics.sinks`), rows of the files that they lack included.
      hparams: the configuration, {key: value}, for TensorBoard's table.

    Raises:
      RunFailure: the files cannot be written; so does `write`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool = True,
        *,
        resume_step: int | None = None,
        active: bool = True,
        sinks: Sequence[Guarded] = (),
        hparams: Mapping[str, Any] | None = None,
    ):
        self._file: Any = None
        self._sinks = sinks
        self._events: EventFile | None = None
        self._path = os.path.join(workdir, FILE_NAME)
        if not active:
            return
        try:
            os.makedirs(workdir, exist_ok=True)
            rows = _continue(self._path, resume_step)
            self._file = open(self._path, "a", encoding="utf-8")
            if tensorboard:
                self._events = self._open_events(os.path.join(workdir, "tensorboard"), resume_step, rows)
                if hparams:
                    self._events.hparams(_plain(hparams), _HPARAM_METRICS)
        except OSError as error:
            raise self._failure(error) from error
        for row in rows if sinks else ():  # each knows what it has
            self._to_sinks(row["step"], {n: math.nan if x is None else x for n, x in row.items() if n != "step"})

    def _to_sinks(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, values)

    @staticmethod
    def _open_events(folder: str, resume_step: int | None, rows: list[dict[str, Any]]) -> EventFile:
        """The next file of the folder. Of `resume_step` itself everything is written once more: a kill between the two
        files leaves a row here that metrics.jsonl does not have and the run writes again."""
        if resume_step is None or not os.path.isdir(folder):
            return EventFile(folder)
        events = EventFile(folder, max(resume_step, 0))
        for row in rows:
            if row["step"] == resume_step:
                events.write(row["step"], {n: math.nan if x is None else x for n, x in row.items() if n != "step"})
        return events

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one row; values are scalars. Several rows of one step are allowed (training and evaluation)."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": int(step)} | {name: x if math.isfinite(x) else None for name, x in values.items()}
        try:
            if self._events is not None:  # first: so TensorBoard has whatever metrics.jsonl has
                self._events.write(int(step), values)
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error
        self._to_sinks(int(step), values)

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text in TensorBoard and at the services; metrics.jsonl holds numbers only."""
        if self._file is None:
            return
        try:
            if self._events is not None:
                self._events.text(int(step), name, text)
        except OSError as error:
            raise self._failure(error) from error
        for sink in self._sinks:
            sink.text(int(step), name, text)

    def _failure(self, error: OSError) -> RunFailure:
        return RunFailure(
            f"{error.filename or self._path} cannot be written ({error.strerror or error}): what is there is intact; "
            "run the same command again when it can, to continue from the newest checkpoint"
        )

    def close(self) -> None:
        """Closes the files; safe to call twice. All rows are on disk already, so nothing can be lost here."""
        files, self._file, self._events = (self._file, self._events), None, None
        for file in files:
            try:
                if file is not None:
                    file.close()
            except OSError:  # what a failed `write` left in the buffer; it has said so
                pass

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *unused) -> None:
        self.close()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, truth values and texts as they are, all else as text."""
    return {name: x if isinstance(x, bool | int | float | str) else str(x) for name, x in values.items()}


def _continue(path: str, resume_step: int | None) -> list[dict[str, Any]]:
    """Leaves in the file the rows that a resumed run keeps, and returns them."""
    if not os.path.exists(path):
        return []
    found = list(read(os.path.dirname(path)))
    rows = [row for row in found if resume_step is None or row["step"] <= resume_step]
    if not found and os.path.getsize(path):
        logging.warning("%s: no line is a row of metrics: kept as %s.old", path, FILE_NAME)
    if not rows and os.path.getsize(path):
        os.replace(path, path + ".old")
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
