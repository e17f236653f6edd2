r"""Records of problem files: JSON lines, JSON, parquet and CSV, one at a time, with the place each came from."""

import csv
import glob
import json
import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ibtpo.errors import UserError
from ibtpo.rewards.math import find_boxes

# The unit that a record's number counts, by the file's suffix.
UNITS = {".jsonl": "line", ".json": "record", ".parquet": "row", ".csv": "line"}

_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
# A surrogate, or the escape of one in JSON.
_SURROGATE = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")
# MATH has boxes without braces, "$\\boxed 2$".
_BARE_BOX = re.compile(r"(?<!\\)(?:\\\\)*\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{)?")
_DOLLAR = re.compile(r"(?<!\\)\$")
_END_OF_MATH = re.compile(r"(?<!\\)\$|\\[)\]]|\n")
_FIRST_TOKEN = re.compile(r"[-+]?\d[\d.,/]*\d|[-+]?\d|\\?[a-zA-Z]+|.")
_MAX_REPORTED = 20
_BATCH_ROWS = 4096  # rows of a parquet file in memory at a time
_NOT_UTF8 = "text that is no UTF-8"


class BadRecord(ValueError):
    """A record that cannot be used; the message says why."""


def find_paths(name: str, suffix: str = "") -> list[Path]:
    """The files that a path of data stands for: itself, those in a folder (with the suffix, if given), or those that a
    pattern with * ? [ ] or ** matches, in the order of their names. "~" is the home folder. Hidden files, whose names
    begin with a dot, are skipped unless they are named. [] where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = (file for file in path.iterdir() if not file.name.startswith("."))
        suffixes = [suffix] if suffix else list(UNITS)
        return sorted(file for file in found if file.is_file() and file.suffix.lower() in suffixes)
    return sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Yields (index, record or BadRecord) of a file; the suffix says its format.

    The index is the record's line (`.jsonl`, `.csv`: its first line), row (`.parquet`) or place in the list (`.json`,
    where a file of one object is one record), minus 1. Blank lines are skipped and counted. Text that is no UTF-8, a
    lone surrogate in JSON too, makes a BadRecord; in CSV, whose lines it may hide, an error.

    Args:
      columns: the only fields that are read of a parquet file, if given; those that it lacks are ignored. Of a dotted
        name ("reward_model.ground_truth") the column is the first part.

    Raises:
      UserError: no such file, an unknown suffix, or a `.json`, `.parquet` or `.csv` file that cannot be read as such.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, columns)
    if suffix not in readers:
        raise UserError(f"{path}: unknown format {suffix!r}: use one of {', '.join(UNITS)}")
    return readers[suffix](path)


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    with path.open("rb") as file:
        for index, line in enumerate(file):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig")
                record = json.loads(text)
            except UnicodeDecodeError:
                yield index, BadRecord(_NOT_UTF8)
                continue
            except (ValueError, RecursionError):  # of JSON, or of brackets nested too deeply
                yield index, BadRecord("not JSON")
                continue
            yield index, _object(record, _SURROGATE.search(text) is not None)


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    try:
        raw = path.read_bytes()
        # Bytes that are no UTF-8 become lone surrogates, and the record they are in a bad one.
        text = raw.decode(json.detect_encoding(raw), "surrogateescape")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    doubtful = _SURROGATE.search(text) is not None
    for index, record in enumerate(content if isinstance(content, list) else [content]):
        yield index, _object(record, doubtful)


def _object(record: Any, doubtful: bool) -> dict[str, Any] | BadRecord:
    """A JSON value as a record. doubtful: there may be lone surrogates in it."""
    if not isinstance(record, dict):
        return BadRecord("not a JSON object")
    if doubtful:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            return BadRecord(_NOT_UTF8)
    return record


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = next(reader, None)
            if names is None:
                return
            begin = reader.line_num
            for values in reader:
                index, begin = begin, reader.line_num
                if not values:
                    continue
                if len(values) != len(names):
                    yield index, BadRecord(f"{len(values)} values, not {len(names)}")
                else:
                    yield index, dict(zip(names, values))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not CSV after line {reader.line_num}: {error}") from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    # Costs a third of a second, and most runs read no parquet.
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = {name if name in names else name.split(".")[0] for name in columns}
            chosen = [name for name in names if name in wanted] if columns else names
            index = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=chosen):
                try:
                    records: Sequence[Any] = batch.to_pylist()
                except UnicodeDecodeError:
                    records = [_row(batch.slice(row, 1)) for row in range(batch.num_rows)]
                for record in records:
                    yield index, record
                    index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file ({error}): write or fetch it again") from error


def _row(batch) -> dict[str, Any] | BadRecord:
    """The record of a batch of one row."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return BadRecord(_NOT_UTF8)


def find_field(record: dict[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of `names` that the record has. A dotted name leads into objects and, by number, lists:
    "reward_model.ground_truth", "prompt.0.content"; a field that is called so itself comes first.

    Raises:
      BadRecord: it has none of them.
    """
    for name in names:
        value: Any = {name: record[name]} if name in record else record
        for part in [name] if name in record else name.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                break
        else:
            return value
    raise BadRecord("no field " + " or ".join(map(repr, names)))


def find_question(record: dict[str, Any], names: Sequence[str]) -> str:
    """The question in the first of the fields `names` that the record has (see `find_field`).

    Raises:
      BadRecord: no such field, or no text in it.
    """
    question = find_field(record, names)
    if not isinstance(question, str) or not question.strip():
        raise BadRecord("question is not a non-empty string")
    return question


def extract_answer(value: Any, pattern: str) -> str:
    r"""The reference answer in a record's field.

    Args:
      value: string or number; a number is written with all its digits, a whole one without a decimal point
        (27.0 -> "27", 1e-7 -> "0.0000001").
      pattern: "" takes the whole value, "boxed" the content of the last \boxed{...} (or \boxed 2), anything else is
        a regular expression with one group whose last match counts, thousands commas removed
        (GSM8K: r"####\s*(.+)").

    Raises:
      BadRecord: no answer there, it is empty, or it is a number that is not finite.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(f"answer is {value}, not a finite number")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"answer is a {type(value).__name__}, not a string or number")
    text = _number_text(value) if isinstance(value, float) else str(value)
    if pattern == "boxed":
        answer = _find_box(text)
        if answer is None:
            raise BadRecord("no \\boxed{...} in the answer field")
    elif pattern:
        matches = compile_pattern(pattern).findall(text)
        if not matches:
            raise BadRecord(f"data.answer_pattern {pattern!r} does not match")
        answer = matches[-1].strip()
        if _GROUPED_NUMBER.fullmatch(answer):
            answer = answer.replace(",", "")
    else:
        answer = text
    if not answer.strip():
        raise BadRecord("empty answer")
    return answer.strip()


def _number_text(value: float) -> str:
    """All digits of the shortest decimal number that reads as the value, "0.0000001" for 1e-7."""
    whole, _, fraction = format(Decimal(repr(value)), "f").partition(".")
    if fraction.strip("0"):
        return f"{whole}.{fraction}"
    return "0" if whole == "-0" else whole


def _find_box(solution: str) -> str | None:
    r"""The content of the last box of a solution. One without braces ("$\boxed 2$") holds what follows up to the end of
    the formula, or outside of one the next number, word or sign."""
    last = max(_BARE_BOX.finditer(solution), key=re.Match.start, default=None)
    if last is None or last.group(1):
        return find_boxes(solution)[0]
    rest = solution[last.end() :]
    end = _END_OF_MATH.search(rest)
    within = end and (end.group() != "$" or len(_DOLLAR.findall(solution[: last.start()])) % 2)
    if end and within and end.group() != "\n":
        content, depth = rest[: end.start()], 0
        for place, character in enumerate(content):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth < 0:
                content = content[:place]
                break
    else:
        token = _FIRST_TOKEN.match(rest)
        content = token.group() if token else ""
    return content.strip().rstrip(".,;").strip()


def compile_pattern(pattern: str) -> re.Pattern:
    """`data.answer_pattern` as a regular expression; UserError where it is none or has not one group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.answer_pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise UserError(f"data.answer_pattern {pattern!r} has {compiled.groups} groups: it must have one")
    return compiled


def list_places(unit: str, indices: Sequence[int], count: int | None = None) -> str:
    """The places of records in words, the first 20 by number: [1, 4] -> "line 2, 5".

    count: how many there are, where `indices` are only the first of them.
    """
    shown = indices[:_MAX_REPORTED]
    more = (len(indices) if count is None else count) - len(shown)
    return f"{unit} {', '.join(str(index + 1) for index in shown)}" + (f" and {more} more" if more > 0 else "")
