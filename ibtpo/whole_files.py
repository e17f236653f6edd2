"""Files that are there complete or not at all, whenever the program is killed."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name beside `path` to write the file under, which becomes `path` when all went well. Makes the folder.

    Raises:
      OSError: the file cannot be written; what was at `path` is there still.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp")
    yield part
    os.replace(part, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file; lone surrogates become character references, as of a page."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
