"""The folders a command writes to: looked at before anything is computed, and the log of what ended it."""

import contextlib
import datetime
import os
import random
import shlex
import stat
import sys
import tempfile
import time
import traceback

from ibtpo.config.keys import ConfigError, shown

ERROR_LOG = "error.log"
_MOST_BYTES = 2**22  # of a log that is added to
_TRIES = 50


def check_folder(flag: str, path: str) -> None:
    """Makes the folder `path` and a file in it, and removes what it made: nothing is left that was not there.

    Args:
      flag: the option that names it, e.g. "--workdir".

    Raises:
      ConfigError: no file can be made there.
    """
    name, way_out = f"{flag}={shown(path)[1:-1]}", "name a folder in which files can be made"
    if not path.strip() or "\0" in path:
        raise ConfigError(f"{name} is no name of a folder: {way_out}, e.g. runs/tiny")
    if "://" in path:
        raise ConfigError(
            f"{name} is remote: name a local folder; checkpoints alone can be remote, in --config.checkpoint.dir"
        )
    for attempt in range(_TRIES):
        try:
            _probe(path)
            return
        except FileNotFoundError as error:
            # Another process may have removed what it made to probe the same folder.
            if attempt == _TRIES - 1:
                raise ConfigError(f"{name} cannot be made ({_reason(error)}): {way_out}") from None
            time.sleep(random.uniform(0.001, 0.02))
        except OSError as error:
            raise ConfigError(f"{name} cannot be written to ({_reason(error)}): {way_out}") from None


def _probe(path: str) -> None:
    path, missing = os.path.abspath(path), []
    while not _is_folder(path):
        missing.append(path)
        path = os.path.dirname(path)
    made = []
    try:
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process has made it meanwhile
                os.mkdir(folder)
                made.append(folder)
        with tempfile.NamedTemporaryFile(dir=missing[0] if missing else path, prefix=".probe"):
            pass
    finally:
        with contextlib.suppress(OSError):  # others have begun to use them
            for folder in reversed(made):
                os.rmdir(folder)


def _is_folder(path: str) -> bool:
    """False where nothing is there."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.islink(path):
            return False
        mode = 0
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(f"{path} is no folder")
    return True


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{shown(error.filename)[1:-1]}: {text}" if isinstance(error.filename, str) else text


def check_run(flag: str, path: str) -> None:
    """Refuses a run that cannot be read, since nothing is there, before anything heavy is imported to read it.

    Args:
      flag: the option that names it, e.g. "--workdir".

    Raises:
      ConfigError: `path` is local and no folder.
    """
    if "://" not in path and not os.path.isdir(path):
        what = "that is a file" if os.path.exists(path) else "there is no such folder"
        raise ConfigError(
            f"{flag}={shown(path)[1:-1]}: {what} (in {os.getcwd()}): name the workdir of a run or the folder of its "
            "checkpoints"
        )


def remove_empty(folder: str) -> None:
    """Removes a folder that a refused command made, and those in it, as far as there is no file in them."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def log_error(folder: str | None, error: BaseException) -> None:
    """Adds an error with its traceback to <folder>/error.log; nothing where there is no such folder, or no room."""
    if not folder or not os.path.isdir(folder):
        return
    path = os.path.join(folder, ERROR_LOG)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        mode = "w" if os.path.exists(path) and os.path.getsize(path) > _MOST_BYTES else "a"
        with open(path, mode, encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{now} {shlex.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
