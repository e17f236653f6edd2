"""Reading files of records: every format gives the same records, each with the place where it stands."""

import csv
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ibtpo.data.records import BadRecord, extract_answer, find_field, find_paths, list_places, read_records
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


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_written_with_digits_only_and_reads_as_itself(value):
    text = extract_answer(value, "")
    assert set(text) <= set("-.0123456789") and float(text) == value
    assert "." not in text or not float(text).is_integer()


@pytest.mark.parametrize(
    "number, text",
    [("1e-7", "0.0000001"), ("-2.5e-10", "-0.00000000025"), ("1e2", "100"), ("1e22", "1" + "0" * 22), ("27.0", "27"),
     ("-0.0", "0"), ("0.1", "0.1"), ("1E+3", "1000")],
)  # fmt: skip
def test_a_json_number_stays_that_number(number, text, tmp_path):
    (tmp_path / "x.jsonl").write_text(f'{{"a": {number}}}')
    [(_, record)] = read_records(tmp_path / "x.jsonl")
    assert extract_answer(record["a"], "") == text


@pytest.mark.parametrize(
    "solution, answer",
    [
        (r"So $\boxed 2$.", "2"),
        (r"We get $x = \boxed 12.$ It costs $\$3$.", "12"),
        (r"$\boxed{3}$, then $\boxed 2$", "2"),
        (r"$\boxed 3$, then $\boxed{2}$", "2"),
        (r"\(\boxed \frac{1}{2}\)", r"\frac{1}{2}"),
        (r"$\boxed\frac12$", r"\frac12"),
        (r"{$\boxed -2}$", "-2"),
        (r"It is \boxed 2 apples for $3$.", "2"),
        (r"It is \boxed 1,200.", "1,200"),
        (r"\fbox 7", "7"),
        ("\\boxed\n{7}", "7"),
    ],
)
def test_a_box_without_braces_is_read(solution, answer):
    assert extract_answer(solution, "boxed") == answer


@pytest.mark.parametrize("solution", ["\\boxed", "$\\boxed $", r"\boxedx 3", r"\boxed{open"])
def test_a_box_without_content_is_a_bad_record(solution):
    with pytest.raises(BadRecord):
        extract_answer(solution, "boxed")


_BAD_TEXT = [rb'"\ud83d"', rb'"x\uDC00y"', rb'"\udc00\ud83d"', b'"\xff"', b'"\xed\xa0\x80"', b'"caf\xe9"']


@pytest.mark.parametrize("text", _BAD_TEXT)
def test_text_that_is_no_utf8_is_a_bad_record_in_its_place(text, tmp_path):
    good = rb'{"a": "\ud83d\ude00 \u00e9"}'
    for record in (b'{"a": %s}' % text, b'{"b": [{"c": %s}], "a": "x"}' % text, b'{%s: 1, "a": 2}' % text):
        (tmp_path / "x.jsonl").write_bytes(b"\n".join([good, record, good]))
        (tmp_path / "x.json").write_bytes(b"[" + b",".join([good, record, good]) + b"]")
        for name in ("x.jsonl", "x.json"):
            (_, first), (place, bad), (_, last) = read_records(tmp_path / name)
            assert first == last == {"a": "\U0001f600 é"} and place == 1
            assert isinstance(bad, BadRecord) and str(bad) == "text that is no UTF-8"


def test_text_of_a_parquet_that_is_no_utf8_is_a_bad_record_in_its_place(tmp_path):
    raw = pa.array([b"one", b"\xff", b"three", b"\xed\xa0\x80"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    parquet.write_table(pa.table({"a": text, "b": [1, 2, 3, 4]}), tmp_path / "x.parquet")
    records = [record for _, record in read_records(tmp_path / "x.parquet")]
    assert records[::2] == [{"a": "one", "b": 1}, {"a": "three", "b": 3}]
    assert [str(record) for record in records[1::2]] == ["text that is no UTF-8"] * 2
    assert len(list(read_records(tmp_path / "x.parquet", ["b"]))) == 4


def test_paths_are_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("b.jsonl", "a.jsonl", "c.parquet", ".hidden.jsonl", "._a.jsonl", "sub/e.jsonl", "x[1].jsonl"):
        name = f"d/{name}"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for begin in ("~", str(tmp_path)):
        for path, names in [
            ("d/a.jsonl", ["a.jsonl"]),
            ("d", ["a.jsonl", "b.jsonl", "x[1].jsonl"]),
            ("d/*.jsonl", ["a.jsonl", "b.jsonl", "x[1].jsonl"]),
            ("d/[ab].jsonl", ["a.jsonl", "b.jsonl"]),
            ("d/x[1].jsonl", ["x[1].jsonl"]),
            ("d/**/*.jsonl", ["a.jsonl", "b.jsonl", "e.jsonl", "x[1].jsonl"]),
            ("d/.hidden.jsonl", [".hidden.jsonl"]),
            ("d/none*", []),
            ("none", []),
        ]:
            assert [file.name for file in find_paths(f"{begin}/{path}", ".jsonl")] == names, path
    assert [file.name for file in find_paths("~/d")] == ["a.jsonl", "b.jsonl", "c.parquet", "x[1].jsonl"]


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
