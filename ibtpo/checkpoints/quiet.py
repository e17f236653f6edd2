"""What Orbax and TensorStore print besides raising it: every phase of a save and, where a write fails, a traceback for
each array that was under way with it. The error reaches the program as an exception, which is said in one line."""

import functools
import logging
import sys
import traceback
import warnings
from types import TracebackType

from ibtpo.checkpoints.damage import is_tensorstore


def _is_orbax(where: TracebackType | None) -> bool:
    return any("/orbax/" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(where))


def _of_orbax(record: logging.LogRecord) -> bool:
    """Whether asyncio tells of a task of Orbax whose exception nobody asked for: that of another array was raised."""
    _, error, where = record.exc_info or (None, None, None)
    return "/orbax/" in record.getMessage() or is_tensorstore(error) or _is_orbax(where)


def _is_late(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> bool:
    """Whether it comes of an array's task that was dropped, or answers after its loop was closed, since another failed
    first."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(where)]
    late_answer = issubclass(kind, RuntimeError) and "closed" in str(error) and names[:1] == ["call_soon_threadsafe"]
    return late_answer or _is_orbax(where)


@functools.cache
def hush() -> None:
    """Drops those messages from now on."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: not _of_orbax(record))
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)  # of writes that were not begun
    before = sys.unraisablehook  # which TensorStore's C++ calls

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not _is_late(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback):
            before(unraisable)

    sys.unraisablehook = hook
