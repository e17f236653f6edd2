"""What is damage to a checkpoint, and what is another fault: of the storage, of the machine, of this program."""

import os
import re
from collections.abc import Iterator

import jax

from ibtpo.errors import RunFailure, UserError, one_line


class Damaged(Exception):
    """A checkpoint is not what was saved. The message names the file, within the checkpoint, and what is wrong."""


# Status codes of TensorStore (those of absl) that are about access to a file, not about its content.
_ACCESS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
_CONTENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def storage_fault(error: BaseException) -> BaseException | None:
    """The error about access to files (permission, space, network, a package) that an error of reading them is, or
    comes from; None where there is none. Orbax raises its own errors from the one that says what happened."""
    for each in _chain(error):
        if isinstance(each, OSError) and not isinstance(each, _CONTENT):
            return each
        if isinstance(each, ImportError) or (is_tensorstore(each) and str(each).startswith(_ACCESS)):
            return each
    return None


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading the files of a checkpoint says that they are not as they were saved. Readers of files
    raise errors of any kind about them; those that tell of something else are few."""
    others = (UserError, RunFailure, MemoryError, jax.errors.JaxRuntimeError)  # the last: no room on a device
    is_other = any(isinstance(each, others) for each in _chain(error))
    return isinstance(error, Exception) and not is_other and storage_fault(error) is None


def cause_of_failed_write(error: BaseException) -> BaseException | None:
    """The error of the storage behind an error of writing files; None where there is none, which is then a fault of
    the program."""
    return next((e for e in _chain(error) if isinstance(e, OSError | ImportError) or is_tensorstore(e)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def is_tensorstore(error: BaseException | None) -> bool:
    """Whether it is an error of TensorStore, which has the type ValueError and begins with a status code."""
    return isinstance(error, ValueError) and re.match(r"[A-Z][A-Z_]{4,}: ", str(error)) is not None


def reason(error: BaseException) -> str:
    """An error of the storage in a few words."""
    text = " ".join(str(error).split())
    if code := re.search(r"os_error_code='?(\d+)", text):
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def describe(error: BaseException, place: object) -> UserError | RunFailure:
    """The error of one line for a storage fault (`storage_fault`) while checkpoints at `place` are read."""
    if isinstance(error, ImportError):
        return UserError(
            f"{place} cannot be read here ({error}): install requirements-tpu.txt, or copy the checkpoints to a folder "
            "checkpoints in the workdir"
        )
    if isinstance(error, PermissionError) or str(error).startswith(_ACCESS[:2]):
        return UserError(f"{place} cannot be read ({reason(error)}): give this user the right to read it")
    return RunFailure(
        f"{place} cannot be read ({reason(error)}); nothing in it was changed: run again when the storage works"
    )
