"""The manifest of a checkpoint: what it holds, written last, before the checkpoint gets its name.

A text of two lines: the CRC-32 of the second in hexadecimal digits, and JSON,

    {"step": 40, "arrays": {"params": {"layers.q": ["float32", [2, 8, 8], "<sum>"], ...}, ...},
     "files": {"params/manifest.ocdbt": [113, "<crc>"], ...}}

with the type, shape and sum (`sums`) of every array, and the size and CRC-32 of every other file. The CRC of a file
beyond `MOST_CHECKED` bytes is null: those hold array data, which have their sums, and reading all of them twice would
double the traffic of a large model's checkpoint. (The index that leads to the data has checksums of its own, of OCDBT.)
"""

import concurrent.futures
import json
import zlib
from collections.abc import Iterator

from etils import epath

from ibtpo.checkpoints.damage import Damaged, describe, storage_fault
from ibtpo.checkpoints.folders import MARK

NAME = "manifest"
MOST_CHECKED = 64 * 2**20
_THREADS = 16  # files looked at side by side, since each costs a round trip on remote storage


def write(folder: epath.Path, step: int, arrays: dict[str, dict[str, list]]) -> None:
    """Writes the manifest of a folder, in which everything else is there."""
    files = [name for name in _walk(folder, "") if name != MARK]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        facts = pool.map(lambda name: _facts(folder / name), files)
        content = {"step": step, "arrays": arrays, "files": dict(zip(files, facts))}
    line = json.dumps(content).encode()
    (folder / NAME).write_bytes(f"{zlib.crc32(line):08x}\n".encode() + line)


def read(folder: epath.Path) -> dict:
    """The content of a manifest, as saved.

    Raises:
      Damaged: it is missing, is not as it was saved, or is another step's.
      UserError, RunFailure: it cannot be read.
    """
    crc, _, line = _read_bytes(folder, NAME).partition(b"\n")
    if crc != f"{zlib.crc32(line):08x}".encode():
        raise Damaged(f"{NAME}: its checksum is wrong")
    content = json.loads(line)
    if str(content["step"]) != folder.name:
        raise Damaged(f"{NAME}: it is that of step {content['step']}")
    return content


def check_files(folder: epath.Path, manifest: dict) -> None:
    """Compares every file with the manifest.

    Raises:
      Damaged: one is missing, shorter or longer, or differs.
      UserError, RunFailure: one cannot be read.
    """

    def check(item: tuple[str, list]) -> None:
        name, (size, crc) = item
        check_file(folder, name, size, crc)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, manifest["files"].items()):
            pass


def check_file(folder: epath.Path, name: str, size: int, crc: str | None) -> bytes:
    """The content of a file of the checkpoint (b"" where it has no CRC), compared with size and CRC. Errors as
    `check_files`."""
    if crc is None:
        found, data = _length(folder, name), b""
    else:
        data = _read_bytes(folder, name)
        found = len(data)
    if found != size:
        raise Damaged(f"{name}: it has {found} of {size} bytes" if found else f"{name}: it is empty")
    if crc is not None and crc != f"{zlib.crc32(data):08x}":
        raise Damaged(f"{name}: its checksum is wrong")
    return data


def size_of(manifest: dict) -> int:
    """Bytes of the checkpoint's files, without the manifest."""
    return sum(size for size, _ in manifest["files"].values())


def _walk(folder: epath.Path, prefix: str) -> Iterator[str]:
    """The names of all files below a folder."""
    for child in sorted(folder.iterdir(), key=lambda path: path.name):
        if child.is_dir():
            yield from _walk(child, f"{prefix}{child.name}/")
        else:
            yield prefix + child.name


def _facts(file: epath.Path) -> list:
    size = file.stat().length
    return [size, f"{zlib.crc32(file.read_bytes()):08x}" if size <= MOST_CHECKED else None]


def _read_bytes(folder: epath.Path, name: str) -> bytes:
    return _or_damaged(folder, name, (folder / name).read_bytes)


def _length(folder: epath.Path, name: str) -> int:
    return _or_damaged(folder, name, lambda: (folder / name).stat().length)


def _or_damaged(folder, name, act):
    try:
        return act()
    except Exception as error:
        if fault := storage_fault(error):
            raise describe(fault, folder / name) from error
        what = "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise Damaged(f"{name}: {what}") from error
