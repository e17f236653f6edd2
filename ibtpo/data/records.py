r"""Records of problem files: JSON lines, JSON, parquet and CSV, one at a time, with the place each came from."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ibtpo.errors import UserError
from ibtpo.rewards.math import find_boxes

# The unit that a record's number counts, by the file's suffix.
UNITS = {".jsonl": "line", ".json": "record", ".parquet": "row", ".csv": "line"}

_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_MAX_REPORTED = 20
_BATCH_ROWS = 4096  # rows of a parquet file in memory at a time


class BadRecord(ValueError):
    """A record that cannot be used; the message says why."""


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Yields (index, record or BadRecord) of a file; the suffix says its format.

    The index is the record's line (`.jsonl`, `.csv`: its first line), row (`.parquet`) or place in the list (`.json`,
    where a file of one object is one record), minus 1. Blank lines are skipped and counted.

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
                record = json.loads(line)
            except (ValueError, RecursionError):  # of JSON, of UTF-8, or of brackets nested too deeply
                yield index, BadRecord("not JSON")
                continue
            yield index, record if isinstance(record, dict) else BadRecord("not a JSON object")


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    for index, record in enumerate(content if isinstance(content, list) else [content]):
        yield index, record if isinstance(record, dict) else BadRecord("not a JSON object")


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
                for record in batch.to_pylist():
                    yield index, record
                    index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a parquet file: {error}") from error


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
      value: string or number; a whole number is written without a decimal point (27.0 -> "27").
      pattern: "" takes the whole value, "boxed" the content of the last \boxed{...}, anything else is
        a regular expression with one group whose last match counts, thousands commas removed
        (GSM8K: r"####\s*(.+)").

    Raises:
      BadRecord: no answer there, it is empty, or it is a number that is not finite.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRecord(f"answer is {value}, not a finite number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"answer is a {type(value).__name__}, not a string or number")
    text = str(value)
    if pattern == "boxed":
        answer, _ = find_boxes(text)
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
