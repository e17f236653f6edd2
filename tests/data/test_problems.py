"""Reading problems: every line is used or reported, answers are found, prompts fit."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ibtpo.data.problems import (
    Problem,
    PromptLengthError,
    format_prompt,
    load_problems,
)
from ibtpo.data.records import BadRecord, extract_answer
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.errors import UserError
from ibtpo.rewards.math import find_boxes


def _config(**values) -> ConfigDict:
    defaults = dict(
        source="",
        files="",
        check_rows=True,
        dir="",
        question_field="question",
        answer_field="answer",
        answer_pattern="",
        prompt="Question: {question}\nAnswer:\n",
        chat_template=False,
        system_prompt="",
        max_prompt_tokens=64,
        difficulty="normal",
        limit=0,
    )
    return ConfigDict(defaults | values)


def _write(path, rows) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


# ------------------------------------------------------------------------------------- JSON lines

_GOOD = {"question": "1+1?", "answer": 2}
_ROWS = st.lists(
    st.sampled_from(
        [
            _GOOD,
            {"question": "2?", "answer": 2.5},
            {"question": "no answer"},
            {"answer": "no question"},
            [1, 2],
            "{broken\n",
            {"question": " ", "answer": "1"},
            {"question": "?", "answer": ""},
            {"question": "?", "answer": None},
        ]
    )
)


@given(rows=_ROWS, limit=st.integers(0, 3))
def test_every_line_is_used_or_reported(rows, limit, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    config = _config(source=_write(path, [_GOOD, *rows]), limit=limit)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        problems = load_problems(config, "train")
    finally:
        logger.removeHandler(handler)
    usable = [
        i
        for i, row in enumerate([_GOOD, *rows])
        if isinstance(row, dict) and row.get("answer") and row.get("question", "").strip()
    ]
    kept = usable[:limit] if limit else usable
    assert [problem.id for problem in problems] == kept
    last_read = kept[-1] if limit and len(kept) == limit else len(rows)
    bad = [i + 1 for i in range(last_read + 1) if i not in usable]
    message = "".join(record.getMessage() for record in records)
    assert bool(message) == bool(bad)
    if bad:
        assert str(path) in message and f"{len(bad)} records left out, {len(kept)} used" in message
        for number in bad:
            assert f" {number}" in message


def test_bad_lines_are_named_with_their_reasons(tmp_path, caplog):
    rows = [_GOOD, "not json\n", {"question": "a"}, "\n", {"question": "b"}, _GOOD]
    source = _write(tmp_path / "x.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        problems = load_problems(_config(source=source), "train")
    assert [problem.id for problem in problems] == [0, 5]
    assert "x.jsonl: 3 records left out, 2 used (not JSON (1): line 2; no field 'answer' (2): line 3, 5)" in caplog.text


def test_long_prompts_are_left_out_and_reported(tmp_path, caplog, tokenizer):
    rows = [_GOOD, {"question": "x" * 100, "answer": 1}]
    config = _config(source=_write(tmp_path / "x.jsonl", rows))
    with caplog.at_level(logging.WARNING):
        assert [problem.id for problem in load_problems(config, "train", tokenizer)] == [0]
    assert "prompt longer than data.max_prompt_tokens=64 (1): line 2" in caplog.text
    assert len(load_problems(config, "train")) == 2


def test_where_all_prompts_are_too_long_a_length_that_would_do_is_named(tmp_path, tokenizer):
    rows = [{"question": "x" * length, "answer": 1} for length in (100, 170, 120)]
    config = _config(source=_write(tmp_path / "x.jsonl", [*rows, "broken\n"]))
    with pytest.raises(UserError, match=r"no usable problem \(prompt longer") as caught:
        load_problems(config, "train", tokenizer)
    longest = max(len(tokenizer(config.prompt.format(question=row["question"]))["input_ids"]) for row in rows)
    message = str(caught.value)
    assert message.endswith(f"the longest has {longest} tokens, set data.max_prompt_tokens={longest} or more")
    config.max_prompt_tokens = longest
    assert len(load_problems(config, "train", tokenizer)) == 3
    config.max_prompt_tokens = longest - 1
    assert len(load_problems(config, "train", tokenizer)) == 2


def test_files_of_a_folder_or_pattern_are_one_source(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").mkdir()
    rows = [{"question": "a", "answer": 1}, "broken\n", {"question": "b", "answer": 2}]
    _write(tmp_path / "set" / "a_train.jsonl", rows)
    _write(tmp_path / "set" / "b_train.jsonl", [])
    _write(tmp_path / "set" / "c_train.jsonl", ["broken\n", {"question": "c", "answer": 3}])
    _write(tmp_path / "set" / "._c_train.jsonl", ["\0"])
    for path in ("~/set", "~/set/*_{split}.jsonl", f"{tmp_path}/set", f"{tmp_path}/*/?_train.jsonl"):
        caplog.clear()
        problems = load_problems(_config(source=f"jsonl:{path}"), "train")
        assert [(problem.id, problem.question) for problem in problems] == [(0, "a"), (2, "b"), (4, "c")]
        assert "2 records left out, 3 used (not JSON (2): " in caplog.text
        assert "a_train.jsonl line 2, " in caplog.text and "c_train.jsonl line 1)" in caplog.text
        assert len(load_problems(_config(source=f"jsonl:{path}", limit=2), "train")) == 2
    for path in ("~/none", "~/set/*.json", "~"):
        with pytest.raises(UserError, match=r"data\.source names '~.*no folder with a \.jsonl file and no pattern"):
            load_problems(_config(source=f"jsonl:{path}"), "train")


def test_text_that_is_no_utf8_is_reported_by_line(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(b'{"question": "%s", "answer": 1}' % text for text in (b"a", rb"\ud800", b"\xff")))
    assert len(load_problems(_config(source=f"jsonl:{path}"), "train")) == 1
    assert "x.jsonl: 2 records left out, 1 used (text that is no UTF-8 (2): line 2, 3)" in caplog.text


@pytest.mark.parametrize("limit", [0, 1, 1500])
def test_lengths_are_checked_for_every_record_of_a_long_file(tmp_path, tokenizer, limit):
    rows = [[{"question": "x" * (index % 90), "answer": index}, "broken\n"][index % 7 == 3] for index in range(2600)]
    config = _config(source=_write(tmp_path / "x.jsonl", rows), limit=limit, max_prompt_tokens=40)
    problems = load_problems(config, "train", tokenizer)
    fitting = []
    for index, row in enumerate(rows):
        if index % 7 == 3 or not row["question"]:
            continue
        problem = Problem(index, row["question"], str(index))
        try:
            format_prompt(problem, config, tokenizer)
        except PromptLengthError:
            continue
        fitting.append(problem)
    assert 500 < len(fitting) < len(rows) / 2
    assert problems == fitting[: limit or None]


def test_split_in_the_path(tmp_path):
    _write(tmp_path / "a_train.jsonl", [{"question": "train", "answer": 1}])
    _write(tmp_path / "a_test.jsonl", [{"question": "test", "answer": 1}])
    config = _config(source=f"jsonl:{tmp_path}/a_{{split}}.jsonl")
    assert [load_problems(config, split)[0].question for split in ("train", "test")] == ["train", "test"]
    with pytest.raises(UserError, match=r"split 'train\[256:\]' is a slice.*set data\.train_split"):
        load_problems(config, "train[256:]")


def test_wrong_sources_are_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        load_problems(_config(source="jsonl:missing.jsonl"), "train")
    for source in ("", "jsonl:", "tfds:other", "math.jsonl"):
        with pytest.raises(UserError, match=f"unknown data.source '{source}'"):
            load_problems(_config(source=source), "train")
    with pytest.raises(UserError, match=r"empty\.jsonl: no usable problem \(it is empty\)"):
        load_problems(_config(source=_write(tmp_path / "empty.jsonl", [])), "train")
    with pytest.raises(UserError, match=r"bad\.jsonl: no usable problem \(not JSON \(1\): line 1\)"):
        load_problems(_config(source=_write(tmp_path / "bad.jsonl", ["?\n"])), "train")
    for pattern, message in [("(", "no regular expression"), ("a", "has 0 groups"), ("(a)(b)", "has 2 groups")]:
        with pytest.raises(UserError, match=message):
            load_problems(_config(source=_write(tmp_path / "x.jsonl", [_GOOD]), answer_pattern=pattern), "train")


# ----------------------------------------------------------------------------------- real problems


def test_all_of_math_and_its_answers(shared_data, caplog):
    config = _config(
        source=f"jsonl:{shared_data}/{{split}}.jsonl",
        question_field="problem",
        answer_field="solution",
        answer_pattern="boxed",
    )
    assert len(load_problems(config, "math4500_train")) == 4500
    boxed = load_problems(config, "math500_test")
    config.update(answer_field="answer", answer_pattern="")
    given_answers = load_problems(config, "math500_test")
    # The test set states its answers separately: an independent reading of the same boxes.
    assert [p.answer.replace(" ", "") for p in boxed] == [p.answer.replace(" ", "") for p in given_answers]
    assert not caplog.records


def test_all_of_gsm8k_and_its_answers(shared_data, caplog):
    config = _config(source=f"jsonl:{shared_data}/gsm8k_{{split}}.jsonl", answer_pattern=r"####\s*(.+)")
    problems = load_problems(config, "train") + load_problems(config, "test")
    assert len(problems) == 7473 + 1319 and not caplog.records
    assert all(problem.answer.lstrip("-").replace(".", "", 1).isdigit() for problem in problems)
    assert any(float(problem.answer) >= 1000 for problem in problems)


def test_whole_numbers_lose_the_decimal_point(shared_data):
    config = _config(source=f"jsonl:{shared_data}/amc23_test.jsonl")
    assert load_problems(config, "test")[0].answer == "27"


# ----------------------------------------------------------------------------------------- answers


_nested = st.recursive(
    st.text("ab1 ^_\\,$", max_size=3).map(lambda s: s.replace("\\", "\\{")),
    lambda inner: st.builds(lambda left, middle, right: f"{left}{{{middle}}}{right}", inner, inner, inner),
    max_leaves=6,
)


@given(_nested, st.text("ab }{\\\n", max_size=8), st.sampled_from(["\\boxed{", "\\fbox{", "\\boxed {"]))
def test_last_box_is_found_whatever_braces_it_holds(content, before, command):
    before = before + " "  # a backslash right before would escape the command's
    found = find_boxes(f"{before}\\boxed{{old}} then {command}{content}}}.")[0]
    assert found == (content if content.strip() else "old")  # an empty box hides none


def test_answer_examples():
    assert [find_boxes(text)[0] for text in ("no box", r"\boxed{open", r"\boxed5")] == [None] * 3
    assert find_boxes(r"\boxed{1} and \boxed{open") == ("1", 14)
    for value, pattern, expected in [
        ("1,234", "", "1,234"),
        (3, "", "3"),
        (0.5, "", "0.5"),
        (" 7 ", "", "7"),
        ("#### 10\n#### 1,234,567", r"####\s*(.+)", "1234567"),
        ("#### -1,234.5", r"####\s*(.+)", "-1234.5"),
        ("#### 1,2,3", r"####\s*(.+)", "1,2,3"),
        (r"so \boxed{\frac{1}{2}}.", "boxed", r"\frac{1}{2}"),
    ]:
        assert extract_answer(value, pattern) == expected
    for value, pattern in [
        ("no", "boxed"),
        (r"\boxed{ }", "boxed"),
        ("x", "####(.*)"),
        ("", ""),
        (True, ""),
        ([1], ""),
    ]:
        with pytest.raises(BadRecord):
            extract_answer(value, pattern)


# ----------------------------------------------------------------------------------------- prompts


def test_prompt_is_the_template_filled_in(tokenizer):
    problem = Problem(3, r"What is {x} in $\{1\}$?", "1")
    assert tokenizer.decode(format_prompt(problem, _config(), tokenizer)) == f"Question: {problem.question}\nAnswer:\n"
    doubled = _config(prompt="{question} \\boxed{{}}")
    assert tokenizer.decode(format_prompt(problem, doubled, tokenizer)) == problem.question + r" \boxed{}"


def test_chat_template_wraps_the_prompt(tokenizer):
    config = _config(prompt="{question}", chat_template=True)
    assert tokenizer.decode(format_prompt(Problem(0, "Hi", "1"), config, tokenizer)) == "User: Hi\nAnswer:\n"
    config.system_prompt = "Add {x}."
    prompt = tokenizer.decode(format_prompt(Problem(0, "Hi", "1"), config, tokenizer))
    assert prompt == "System: Add {x}.\nUser: Hi\nAnswer:\n"


def test_wrong_prompts_are_named(tokenizer, tmp_path):
    problem = Problem(7, "y" * 70, "1")
    with pytest.raises(PromptLengthError, match=r"problem 7 has 7. tokens, data.max_prompt_tokens allows 1 to 64"):
        format_prompt(problem, _config(), tokenizer)
    for prompt in ("\\boxed{}{question}", "{problem}", "{question", "no field", "{{question}}"):
        with pytest.raises(UserError, match=r"data.prompt"):
            format_prompt(problem, _config(prompt=prompt), tokenizer)
        with pytest.raises(UserError, match=r"data.prompt"):
            load_problems(_config(prompt=prompt, source=_write(tmp_path / "x.jsonl", [_GOOD])), "train")
    without = load_tokenizer(tokenizer.name_or_path)
    without.chat_template = None
    with pytest.raises(UserError, match=r"data.chat_template"):
        format_prompt(problem, _config(chat_template=True), without)
