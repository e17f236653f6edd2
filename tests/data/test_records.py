"""Reading files of records: every format gives the same records, each with the place where it stands."""

import csv
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ibtpo.data.records import BadRecord, extract_answer, find_field, list_places, read_records
from ibtpo.errors import UserError

_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(lambda s: f"<{s}>")


@given(rows=st.lists(st.fixed_dictionaries({"a": _TEXT, "b": _TEXT}), min_size=1, max_size=6))
def test_every_format_gives_the_records_in_order(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    (folder / "x.json").write_text(json.dumps(rows))
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "x.parquet", row_group_size=2)
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"])
        writer.writeheader()
        writer.writerows(rows)
    expected = list(enumerate(rows))
    assert list(read_records(folder / "x.json")) == expected
    assert list(read_records(folder / "x.parquet")) == expected
    assert list(read_records(folder / "x.jsonl")) == [(2 * index, row) for index, row in expected]  # blank lines count
    assert list(read_records(folder / "x.csv")) == [(index + 1, row) for index, row in expected]  # and so do names


def test_the_line_of_a_csv_record_is_its_first(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffQ,A\r\n"two\r\nlines",1\r\nshort\r\n\r\nlast,"say ""2"""\r\n'.encode())
    records = list(read_records(path))
    assert [index + 1 for index, _ in records] == [2, 4, 6]
    assert records[0][1] == {"Q": "two\r\nlines", "A": "1"} and records[2][1] == {"Q": "last", "A": 'say "2"'}
    assert isinstance(records[1][1], BadRecord) and str(records[1][1]) == "1 values, not 2"


def test_only_the_columns_asked_for_are_read_of_a_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [{"prompt": [{"content": "q", "role": "user"}], "r": {"truth": "1"}, "r.s": "2", "other": "x"}]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    [(_, record)] = read_records(path, ["prompt.0.content", "r.truth", "r.s", "missing"])
    assert set(record) == {"prompt", "r", "r.s"}
    assert find_field(record, ["prompt.0.content"]) == "q" and find_field(record, ["r.truth"]) == "1"


def test_files_that_are_no_such_format_are_named(tmp_path):
    for name, content, message in [
        ("x.parquet", b"PAR1 or not", r"x\.parquet: not a parquet file"),
        ("x.json", b"{", r"x\.json: not JSON"),
        ("x.json", b"[" * 100_000, r"x\.json: not JSON"),
        ("x.csv", b'a,b\n1,"2', r"x\.csv: not CSV after line"),
        ("x.csv", b"a,b\n1,\xff", r"x\.csv: not CSV"),
        ("x.txt", b"", r"x\.txt: unknown format '\.txt': use one of \.jsonl"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            list(read_records(tmp_path / name))
    (tmp_path / "y.json").write_text("[1, {}]")
    assert [type(record) for _, record in read_records(tmp_path / "y.json")] == [BadRecord, dict]


def test_a_line_of_nested_brackets_is_a_bad_record(tmp_path):
    path = tmp_path / "x.jsonl"
    for line in ("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000):
        path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
        first, bad, last = (record for _, record in read_records(path))
        assert first == {"a": 1} and last == {"a": 2}
        assert isinstance(bad, BadRecord) and str(bad) == "not JSON"


def test_an_answer_that_is_no_finite_number_is_a_bad_record(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": NaN}\n{"a": Infinity}\n{"a": -Infinity}\n{"a": 1e999}\n')
    for (_, record), name in zip(read_records(path), ("nan", "inf", "-inf", "inf"), strict=True):
        for pattern in ("", r"(\w+)"):
            with pytest.raises(BadRecord, match=f"^answer is {name}, not a finite number$"):
                extract_answer(record["a"], pattern)
    assert extract_answer(2.5, "") == "2.5" and extract_answer("nan", "") == "nan"


def test_fields_are_found_by_name_then_by_path():
    record = {"a": {"b": [10, {"c": 1}]}, "a.b": 2, "n": None}
    for names, value in [(["a.b"], 2), (["a.b.1.c"], 1), (["x", "a.b.0"], 10), (["n"], None), (["n", "a"], None)]:
        assert find_field(record, names) == value
    for names in (["x"], ["a.x"], ["a.b.2"], ["a.b.-1"], ["n.x"], ["a.b.0.c"]):
        with pytest.raises(BadRecord, match=f"no field '{names[0]}'"):
            find_field(record, names)
    with pytest.raises(BadRecord, match="no field 'x' or 'y'"):
        find_field(record, ["x", "y"])


def test_places_are_counted_beyond_those_shown():
    assert list_places("line", [0, 4]) == "line 1, 5"
    assert list_places("row", list(range(22))).endswith("19, 20 and 2 more")
    assert list_places("row", [1, 2], 1000) == "row 2, 3 and 998 more"
