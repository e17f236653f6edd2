"""Published problem sets: each publisher's format is read, counted and reported."""

import collections
import dataclasses
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data import published, published_problems
from ibtpo.data.datasets import load_benchmark
from ibtpo.data.problems import format_prompt, load_problems
from ibtpo.data.published import BENCHMARKS, DATASETS
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.errors import UserError
from tests.data.published_rows import FORMATS, IFEVAL_ROW, dapo_row, eval_split, gpqa_row, write_rows


def test_every_set_is_complete():
    for name, dataset in DATASETS.items():
        assert dataset.name == name and dataset.homepage and set(dataset.files or dataset.rows) == set(dataset.rows)
        assert bool(dataset.files) == bool(dataset.repo)
        assert dataset.eval_split in ("", *dataset.rows)
        assert "{question}" in (dataset.prompt or "{question}")
        assert dataset.kind in ("math", "multiple_choice", "instructions")
    assert set(FORMATS) | {"gpqa_diamond"} == set(DATASETS)
    assert set(BENCHMARKS) == set(DATASETS) - {"dapo_math_17k"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_publishers_format_is_read(name, suffix, data_config, tmp_path):
    rows, questions, answers = FORMATS[name]
    file = write_rows(tmp_path / f"rows{suffix}", rows)
    config = data_config(source=f"tfds:{name}", files=str(file), check_rows=False)
    for _ in range(2):  # prepared, then read again
        problems = load_problems(config, eval_split(name))
        assert [problem.id for problem in problems] == list(range(len(questions)))
        assert [problem.question.strip() for problem in problems] == [question.strip() for question in questions]
        assert {(problem.kind, problem.prompt) for problem in problems} == {
            (DATASETS[name].kind, DATASETS[name].prompt)
        }
        if answers:
            assert [problem.answer for problem in problems] == answers


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_instructions_keep_their_arguments_and_nothing_else(suffix, data_config, tmp_path):
    other = {**IFEVAL_ROW, "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    # In a parquet, as in the copy on the hub, every argument stands in every row, null where it is not given.
    file = write_rows(tmp_path / f"input_data{suffix}", [IFEVAL_ROW, other])
    problems = load_problems(data_config(source="tfds:ifeval", files=str(file), check_rows=False), "test")
    for problem, row in zip(problems, (IFEVAL_ROW, other)):
        assert json.loads(problem.answer) == {key: row[key] for key in ("instruction_id_list", "kwargs", "prompt")}
        assert problem.question == row["prompt"]  # to the last blank: it may have to be repeated word for word


def test_content_belongs_to_the_version():
    """Prepared copies are reused by version: whoever changes the conversion of a record must raise VERSION too."""
    assert str(published_problems.PublishedProblems.VERSION) == "1.1.0"
    parsed = [DATASETS[name].parse(row) for name, (rows, _, _) in FORMATS.items() for row in rows]
    parsed.append(DATASETS["gpqa_diamond"].parse(gpqa_row("Which?", "wxyz")))
    digest = hashlib.sha256(json.dumps(parsed).encode()).hexdigest()
    assert digest[:16] == "24f61cf805613d8d"


def test_the_repeated_problems_of_dapo_are_left_out_and_counted(data_config, tmp_path, capsys):
    # One-character answers are the same object in Python, longer ones are not; neither may matter.
    unique = [dapo_row(f"Question {i}?", str(i if i % 2 else 1000 + i), str(i)) for i in range(20)]
    rows = [row for _ in range(5) for row in unique] + [dapo_row("Question 3?", "33", "x")]
    file = write_rows(tmp_path / "dapo-math-17k.parquet", rows)
    problems = load_problems(data_config(source="tfds:dapo_math_17k", files=str(file), check_rows=False), "train")
    assert [p.question for p in problems] == [f"Question {i}?" for i in range(20)]
    assert problems[3].answer == "3"
    said = "101 records, of which 81 repeat a question and are left out (1 of them with another answer)"
    assert said in capsys.readouterr().err
    # The processed copies: the bare problem as text, the answer as `solution`.
    rows = [{"prompt": "Question 1?", "solution": "34", "source_prompt": []}]
    file = write_rows(tmp_path / "processed.parquet", rows)
    config = data_config(source="tfds:dapo_math_17k", files=str(file), check_rows=False)
    assert [(p.question, p.answer) for p in load_problems(config, "train")] == [("Question 1?", "34")]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize("form", ["turns", "JSON turns", "JSON all"])
def test_the_question_of_dapo_is_the_user_turn_whatever_stands_before_it(form, suffix, data_config, tmp_path):
    rows = []
    for i in range(20):
        row = dapo_row(f"Question {i}?", str(i), str(i))
        row["prompt"] = [{"content": "You are a helpful assistant.", "role": "system"}, *row["prompt"]]
        if form != "turns" or suffix == ".csv":
            row["prompt"] = json.dumps(row["prompt"])
        if form == "JSON all" or suffix == ".csv":
            row["reward_model"] = json.dumps(row["reward_model"])
        rows.append(row)
    file = write_rows(tmp_path / f"rows{suffix}", rows)
    problems = load_problems(data_config(source="tfds:dapo_math_17k", files=str(file), check_rows=False), "train")
    assert [(p.question, p.answer) for p in problems] == [(f"Question {i}?", str(i)) for i in range(20)]


@pytest.mark.parametrize("prompt", ["[1, 2] is an interval?", "{1} and [2]?", '["a"]', "[", '[{"a": 1}'])
def test_a_question_of_dapo_that_looks_like_json_is_a_question(prompt):
    assert DATASETS["dapo_math_17k"].parse({"prompt": prompt, "solution": "[1, 2]"}) == (prompt, "[1, 2]")


def test_a_set_that_folds_is_an_error_with_the_reason(data_config, tmp_path, monkeypatch):
    dataset = dataclasses.replace(DATASETS["dapo_math_17k"], rows={"train": (40,)})
    monkeypatch.setitem(DATASETS, "dapo_math_17k", dataset)
    same = [dapo_row("Solve it.", str(i), str(i)) for i in range(40)]
    half = [dapo_row(f"Question {i // 2}?", "1", str(i)) for i in range(40)]
    file = tmp_path / "dapo.jsonl"
    for rows, said, check_rows in [
        (same, "40 records fold into 1 different questions; 39 repeat one, 39 of them with another answer", True),
        (same, "40 records fold into 1 different questions", False),
        (half[:38] + half[:2], "40 records fold into 19 different questions; 21 repeat one, 0 of them", True),
    ]:
        config = data_config(source="tfds:dapo_math_17k", files=str(write_rows(file, rows)), check_rows=check_rows)
        for _ in range(2):  # also of the prepared copy
            with pytest.raises(UserError, match=rf"{said}.* name the publisher's files in data\.files, or read yours"):
                load_problems(config, "train")
    write_rows(file, half)
    assert len(load_problems(data_config(source="tfds:dapo_math_17k", files=str(file)), "train")) == 20


_LETTER = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


def _options(text):
    return dict(re.findall(r"^([A-D])\) (.*)$", text, re.MULTILINE))


@given(_LETTER, st.lists(_LETTER, min_size=4, max_size=4, unique=True), st.permutations(range(3)))
def test_the_letter_is_that_of_the_right_option(question, options, order):
    text, letter = published._parse_gpqa(gpqa_row(question, options))
    assert text.startswith(question + "\n\nA) ")
    assert sorted(_options(text).values()) == sorted(options) and _options(text)[letter] == options[0]
    # The place of the answer depends on the question alone, not on the options or the order of the wrong ones.
    swapped = [options[0], *(options[1 + i] for i in order)]
    assert published._parse_gpqa(gpqa_row(question, swapped))[1] == letter


def test_right_options_are_spread_over_the_letters():
    texts = [published._parse_gpqa(gpqa_row(f"Question {i}?", "wxyz")) for i in range(2000)]
    counts = collections.Counter(letter for _, letter in texts)
    assert set(counts) == set("ABCD") and max(abs(count - 500) for count in counts.values()) < 100  # 5 sigma
    orders = collections.Counter("".join(_options(text).values()) for text, _ in texts)
    assert len(orders) == 24
    # The same on every machine and for ever: figures on GPQA are of these questions.
    assert "".join(letter for _, letter in texts[:12]) == "BDAABCCDBAAC"


def test_gpqa_comes_from_a_csv_of_several_lines_a_record(data_config, tmp_path, tiny_tokenizer_dir):
    rows = [gpqa_row(f'Which {i}?\nTell\nme, "now".', [f" right {i}\n", "wrong, a", "wrong b", 3]) for i in range(5)]
    write_rows(tmp_path / "gpqa_diamond.csv", rows)
    config = data_config(files=str(tmp_path), check_rows=False, max_prompt_tokens=1000)
    problems = load_benchmark("gpqa_diamond", config)
    assert len(problems) == 5
    for i, problem in enumerate(problems):
        assert _options(problem.question)[problem.answer] == f"right {i}" and problem.kind == "multiple_choice"
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    prompt = tokenizer.decode(format_prompt(problems[0], config, tokenizer))
    assert prompt.startswith("Which 0?\nTell") and "letter" in prompt and "\\boxed{}" in prompt


def test_another_number_of_rows_is_refused_or_reported(data_config, tmp_path, caplog):
    file = write_rows(tmp_path / "test.jsonl", FORMATS["math_500"][0] * 3)
    config = data_config(source="tfds:math_500", files=str(file))
    for _ in range(2):  # also of the prepared copy
        with pytest.raises(
            UserError, match=r"test\.jsonl has 3 records, the published set 500: .*data\.check_rows=False"
        ):
            load_problems(config, "test")
    config.check_rows = False
    assert len(load_problems(config, "test")) == 3
    assert "has 3 records, the published set 500; used as it is" in caplog.text
    config.check_rows = True
    with pytest.raises(UserError, match="has 3 records"):
        load_problems(config, "test")


def test_bad_records_are_named_by_file_and_line_every_time(data_config, tmp_path, caplog):
    good = json.dumps({"question": "How many?", "answer": "5"})
    bad = ["{", json.dumps({"question": "How many?"}), json.dumps({"question": "x", "answer": "1000"})]
    (tmp_path / "aime2025-I.jsonl").write_text("\n".join([good] * 12 + bad))
    (tmp_path / "aime2025-II.jsonl").write_text("\n".join(["", *[good] * 14, "[]"]))
    config = data_config(source="tfds:aime_2025", files=str(tmp_path))
    for _ in range(2):
        caplog.clear()
        problems = load_problems(config, "test")  # 30 records, as published
        assert len(problems) == 26
        [message] = [record.getMessage() for record in caplog.records]
        assert message.startswith("AIME 25: 4 records left out (")
        for part in (
            f"not JSON (1): {tmp_path}/aime2025-I.jsonl line 13",
            f"no field 'answer' (1): {tmp_path}/aime2025-I.jsonl line 14",
            f"answer '1000' is no whole number from 0 to 999 (1): {tmp_path}/aime2025-I.jsonl line 15",
            f"not a JSON object (1): {tmp_path}/aime2025-II.jsonl line 16",
        ):
            assert part in message
    # A changed file is another set, not the prepared one.
    (tmp_path / "aime2025-II.jsonl").write_text("\n".join([good] * 15))
    assert len(load_problems(config, "test")) == 27


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("ifeval", {**IFEVAL_ROW, "kwargs": [{}]}, "2 instructions with 1 kwargs"),
        ("ifeval", {**IFEVAL_ROW, "instruction_id_list": []}, "no list of names"),
        ("ifeval", {**IFEVAL_ROW, "kwargs": [1, 2]}, "kwargs no list of objects"),
        ("dapo_math_17k", dapo_row(" ", "1", "a"), "nothing but instructions"),
        ("dapo_math_17k", {"prompt": [], "reward_model": {}}, "no field|not a non-empty"),
        ("gsm8k", {"question": "x", "answer": "no hashes"}, "does not match"),
        ("math", {"problem": "x", "solution": "no box"}, "no .*boxed"),
        ("dapo_math_17k", {"prompt": [{"role": "system", "content": "x"}]}, "no field 'prompt' with a user turn"),
        ("gsm8k", {"question": "\ud800", "answer": "#### 1"}, "text that is no UTF-8"),
        ("gpqa_diamond", gpqa_row("x", ["a", "b", "", "d"]), "empty answer"),
        ("amc_2023", {"q": "x", "answer": 1}, "no field 'problem' or 'question'"),
    ],
)
def test_files_of_another_format_are_an_error(name, record, reason, data_config, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [record])
    config = data_config(source=f"tfds:{name}", files=str(file), check_rows=False)
    with pytest.raises(UserError, match=rf"no usable problem in .*rows\.jsonl \(.*({reason}).*line 1\)"):
        load_problems(config, eval_split(name))
    assert not list(tmp_path.glob("tfds/**/*incomplete*"))
