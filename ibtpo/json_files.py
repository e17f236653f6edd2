"""JSON files that others wrote, or that never fully arrived."""

import json
import pathlib
from typing import Any

from ibtpo.errors import UserError

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file in UTF-8 holds.

    Raises:
      UserError: it holds none; one line that names the file, what it is instead, and the way out.
    """
    data = file.read_bytes()
    if found := foreign(data):
        raise UserError(f"{file} is not JSON ({found}): fetch it again")
    if data.startswith(_MARKS):
        raise UserError(f"{file} is not JSON (it begins with a byte order mark): save it as UTF-8 without one")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object but {_KINDS[type(value)]}: fetch it again")
    return value


_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def foreign(data: bytes) -> str:
    """What the bytes of a file are, or its first ones, where a download left something else; else ""."""
    start = data.lstrip()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: git lfs pull fetches the file itself"
    return "it is a web page" if start.startswith(b"<") else ""
