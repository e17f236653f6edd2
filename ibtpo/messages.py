"""What a command says besides its results: a warning is one line, "warning: ...", and others' notices are left out.

absl's handler, which Python's `logging` ends in here, would put date, thread and file before each line.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

_PYTORCH = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


class OneLine(logging.Formatter):
    """ "warning: the message", whatever its line breaks; with a traceback behind it where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{record.levelname.lower()}: {text}{trace}"


def plain() -> None:
    """Has warnings printed in that form from now on, also those of Python's `warnings`."""
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().setFormatter(OneLine())
    warnings.showwarning = _show


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    """As of `warnings.showwarning`. Where the code is that warns helps nobody who runs a command."""
    logging.getLogger("absl").warning("%s", " ".join(str(message).split()))


@contextlib.contextmanager
def hushed_import() -> Iterator[None]:
    """Around the import of a library that remarks on what else is installed: transformers on PyTorch, which nothing
    here needs, tqdm on widgets of notebooks."""
    before = os.environ.get(_PYTORCH)
    os.environ[_PYTORCH] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        if before is None:
            del os.environ[_PYTORCH]
        else:
            os.environ[_PYTORCH] = before
