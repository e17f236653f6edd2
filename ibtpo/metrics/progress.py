"""A loop's progress on the terminal."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

_LEAST_BAR = 8  # characters


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
      warm_up: the first steps, which do not count in the time left either: small programs are compiled in them.
      brief: of a loop that is over soon, nothing is left: the bar goes away, and there are plain lines only after
        `line_seconds` and none of the last step.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        description: str = "",
        *,
        stream: TextIO | None = None,
        line_seconds: float = 10.0,
        warm_up: int = 0,
        brief: bool = False,
    ):
        self._stream = stream or sys.stderr
        self._total, self._initial, self._step = total, initial, initial
        self._description, self._line_seconds = description, line_seconds
        self._start, self._brief = time.monotonic(), brief
        self._warm_up = warm_up
        self._from = (initial, self._start) if not warm_up else None  # the step and the time that the rest is told by
        self._pause = 0.0  # seconds since then that do not count
        self._last_line = self._start if brief else -math.inf
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
                leave=not brief,
                dynamic_ncols=known,
                ncols=None if known else 80,
                nrows=None if known else 24,
                bar_format=self._bar_format(initial, {}, "?", 0.0),
            )

    def update(self, step: int, metrics: Mapping[str, float | str] | None = None) -> None:
        """Shows that `step` steps are done, with a few metrics; a text is shown as it is."""
        shown = {name: x if isinstance(x, str) else f"{x:.4g}" for name, x in (metrics or {}).items()}
        now = time.monotonic()
        left = self._left(step, now)
        if self._bar is not None:
            self._bar.bar_format = self._bar_format(step, shown, left, now - self._start)
            self._bar.update(step - self._step)
            self._step = step
            return
        self._step = step
        due, last = now - self._last_line >= self._line_seconds, step >= self._total
        if (due and not last) if self._brief else (due or last):
            self._last_line = now
            parts = [f"{self._description} {step}/{self._total}".strip()]
            parts += [f"{name}={value}" for name, value in shown.items()]
            parts += [f"elapsed {_clock(now - self._start)}", f"left {left}"]
            print("  ".join(parts), file=self._stream, flush=True)

    def _bar_format(self, step: int, shown: Mapping[str, str], left: str, elapsed: float) -> str:
        """The line of the bar, as tqdm fills it in: steps and times first, and as many metrics as leave a bar of
        `_LEAST_BAR`. tqdm itself would cut the end off, and knows no warm-up."""
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        before = f"{self._description}: " if self._description else ""
        times = f"| {step}/{self._total} [{_clock(elapsed)}, left {left}]"
        room = columns - 1 - _LEAST_BAR - len(f"{before}100%|{times}")
        if room < 1 - _LEAST_BAR:  # too narrow for a bar, and without one tqdm would let the line wrap
            share = 100 * step // self._total if self._total else 100
            return f"{before}{share}%{times[1:]}"[: columns - 1].replace("{", "{{").replace("}", "}}")
        metrics = ""
        for name, value in shown.items():
            more = f"  {name}={value}"
            if len(metrics) + len(more) > room:
                break
            metrics += more
        return "{l_bar}{bar}" + (times + metrics).replace("{", "{{").replace("}", "}}")

    def _left(self, step: int, now: float) -> str:
        """The time left, by the steps after the warm-up."""
        if step >= self._total:
            return _clock(0)
        if self._from is None:
            if step - self._initial >= self._warm_up:
                self._from, self._pause = (step, now), 0.0
            return "?"
        first, began = self._from
        return _clock((now - began - self._pause) / (step - first) * (self._total - step)) if step > first else "?"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what belongs to no step, and says nothing of the time left."""
        began = time.monotonic()
        yield
        self._pause += time.monotonic() - began

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
