"""Preparing a TFDS data set once, however many processes ask, and reading it as a random-access source."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence

from ibtpo.errors import UserError, one_line
from ibtpo.messages import hushed_import

with hushed_import():
    import tensorflow_datasets as tfds


def prepare(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Generates the data unless they are there; safe when several processes do it at once."""
    with quiet():
        builder = make_builder()
        prepared, name = builder.is_prepared(), builder.info.full_name
    if prepared:
        return builder
    print(f"Preparing {name} in {builder.data_dir}")
    try:
        with quiet():
            builder.download_and_prepare(file_format="array_record")
    except OSError:
        # Each process writes a folder of its own and renames it at the end. The first one wins; the
        # others, whose rename fails, find the same data there.
        with quiet():
            builder = make_builder()
            prepared = builder.is_prepared()
        if not prepared:
            raise
    return builder


@contextlib.contextmanager
def usable_folder() -> Iterator[None]:
    """Preparing and reading data sets within it.

    Raises:
      UserError: in place of an error of the file system.
    """
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"data.dir cannot be used ({place}{error.strerror or one_line(error)}): name a folder in which files can "
            "be made and that has room"
        ) from error


def read_split(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict[str, bytes]]:
    """The examples of a split, or of a TFDS slice of one ("train[:100]"), of a prepared builder.

    Raises:
      UserError: no such split.
    """
    try:
        builder.info.splits[split]
    except (ValueError, KeyError) as error:
        raise UserError(
            f"no split {split!r} of {builder.name}: use one of {sorted(builder.info.splits)} or a slice of it"
        ) from error
    return builder.as_data_source(split)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps to itself what TFDS says of a few seconds' work: nested bars, "Unknown size", a folder still empty."""
    tfds.disable_progress_bar()
    logger, drop = logging.getLogger("absl"), lambda record: record.levelno >= logging.ERROR
    logger.addFilter(drop)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(drop)
