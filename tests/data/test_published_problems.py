"""Published problem sets: each publisher's format is read, counted and reported; prepared once; no network."""

import collections
import csv
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from ibtpo.data import published, published_problems
from ibtpo.data.datasets import load_benchmark, load_training
from ibtpo.data.iterator import ProblemIterator
from ibtpo.data.problems import format_prompt, load_problems
from ibtpo.data.published import BENCHMARKS, DATASETS, find_files
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.rewards.math import fast_grade

# Rows of our own in the format of each publisher: (rows, questions, answers). GPQA has a test of its own.
_INSTRUCTION = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer on its "
    'own line after "Answer:".'
)


def _dapo(question, answer, index):
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": _INSTRUCTION.format(question), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


_IFEVAL = {
    "key": 7,
    "prompt": "Write two lines without a comma.\nUse at least 5 words. ",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 5}],
}
_MATH_ROW = {"problem": "What is $\\frac{3}{6}$?", "level": "Level 1", "type": "Algebra"}
_MATH_ROW |= {"solution": "Half: $\\boxed{3}$ over 6, so $\\boxed{\\frac{1}{2}}$."}
FORMATS = {
    "dapo_math_17k": (
        [_dapo("One plus one?", "2", "a"), _dapo("Two plus two?", "4", "b"), _dapo("One plus one?", "2", "c")],
        ["One plus one?", "Two plus two?"],
        ["2", "4"],
    ),
    "gsm8k": (
        [{"question": "How much is it?", "answer": "It is <<2*600=1200>>1200.\n#### 1,200"}],
        ["How much is it?"],
        ["1200"],
    ),
    "math": ([_MATH_ROW], [_MATH_ROW["problem"]], ["\\frac{1}{2}"]),
    "math_500": (
        [{**_MATH_ROW, "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}],
        [_MATH_ROW["problem"]],
        ["\\frac{1}{2}"],
    ),
    "aime_2024": (
        [{"id": 60, "problem": "How many?", "solution": "So $25$.", "answer": "025", "url": "u", "year": "2024"}],
        ["How many?"],
        ["25"],
    ),
    "aime_2025": (
        [{"question": "How many?", "answer": "000"}, {"question": "Which angle?", "answer": "336^\\circ"}],
        ["How many?", "Which angle?"],
        ["0", "336"],
    ),
    "amc_2023": ([{"id": 0, "question": "How far?", "answer": 27.0, "url": "u"}], ["How far?"], ["27"]),
    "amc_2024": (
        [{"problem": "How far?", "answer": "\\frac{1}{3}", "solution": "s", "year": 2024, "url": "u"}],
        ["How far?"],
        ["\\frac{1}{3}"],
    ),
    "ifeval": ([_IFEVAL], [_IFEVAL["prompt"]], None),
}


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _split(name):
    return DATASETS[name].eval_split or "train"


# --- formats --------------------------------------------------------------------------------------------------------


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
    file = _write(tmp_path / f"rows{suffix}", rows)
    config = data_config(source=f"tfds:{name}", files=str(file), check_rows=False)
    for _ in range(2):  # prepared, then read again
        problems = load_problems(config, _split(name))
        assert [problem.id for problem in problems] == list(range(len(questions)))
        assert [problem.question.strip() for problem in problems] == [question.strip() for question in questions]
        assert {(problem.kind, problem.prompt) for problem in problems} == {
            (DATASETS[name].kind, DATASETS[name].prompt)
        }
        if answers:
            assert [problem.answer for problem in problems] == answers


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_instructions_keep_their_arguments_and_nothing_else(suffix, data_config, tmp_path):
    other = {**_IFEVAL, "instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    # In a parquet, as in the copy on the hub, every argument stands in every row, null where it is not given.
    file = _write(tmp_path / f"input_data{suffix}", [_IFEVAL, other])
    problems = load_problems(data_config(source="tfds:ifeval", files=str(file), check_rows=False), "test")
    for problem, row in zip(problems, (_IFEVAL, other)):
        assert json.loads(problem.answer) == {key: row[key] for key in ("instruction_id_list", "kwargs", "prompt")}
        assert problem.question == row["prompt"]  # to the last blank: it may have to be repeated word for word


def test_content_belongs_to_the_version():
    """Prepared copies are reused by version: whoever changes what a record becomes must raise VERSION too."""
    assert str(published_problems.PublishedProblems.VERSION) == "1.0.0"
    parsed = [DATASETS[name].parse(row) for name, (rows, _, _) in FORMATS.items() for row in rows]
    parsed.append(DATASETS["gpqa_diamond"].parse(_gpqa("Which?", "wxyz")))
    digest = hashlib.sha256(json.dumps(parsed).encode()).hexdigest()
    assert digest[:16] == "24f61cf805613d8d"


def test_the_repeated_problems_of_dapo_are_left_out_and_counted(data_config, tmp_path, capsys):
    # One-character answers are the same object in Python, longer ones are not; neither may matter.
    unique = [_dapo(f"Question {i}?", str(i if i % 2 else 1000 + i), str(i)) for i in range(20)]
    rows = [row for _ in range(5) for row in unique] + [_dapo("Question 3?", "33", "x")]
    file = _write(tmp_path / "dapo-math-17k.parquet", rows)
    problems = load_problems(data_config(source="tfds:dapo_math_17k", files=str(file), check_rows=False), "train")
    assert [p.question for p in problems] == [f"Question {i}?" for i in range(20)]
    assert problems[3].answer == "3"
    said = "101 records, of which 81 repeat a question and are left out (1 of them with another answer)"
    assert said in capsys.readouterr().err
    # The processed copies: the bare problem as text, the answer as `solution`.
    rows = [{"prompt": "Question 1?", "solution": "34", "source_prompt": []}]
    file = _write(tmp_path / "processed.parquet", rows)
    config = data_config(source="tfds:dapo_math_17k", files=str(file), check_rows=False)
    assert [(p.question, p.answer) for p in load_problems(config, "train")] == [("Question 1?", "34")]


# --- multiple choice ------------------------------------------------------------------------------------------------

_LETTER = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


def _gpqa(question, options):
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return {"Record ID": "r", "Question": question, **dict(zip(names, options))}


def _options(text):
    return dict(re.findall(r"^([A-D])\) (.*)$", text, re.MULTILINE))


@given(_LETTER, st.lists(_LETTER, min_size=4, max_size=4, unique=True), st.permutations(range(3)))
def test_the_letter_is_that_of_the_right_option(question, options, order):
    text, letter = published._parse_gpqa(_gpqa(question, options))
    assert text.startswith(question + "\n\nA) ")
    assert sorted(_options(text).values()) == sorted(options) and _options(text)[letter] == options[0]
    # The place of the answer depends on the question alone, not on the options or the order of the wrong ones.
    swapped = [options[0], *(options[1 + i] for i in order)]
    assert published._parse_gpqa(_gpqa(question, swapped))[1] == letter


def test_right_options_are_spread_over_the_letters():
    texts = [published._parse_gpqa(_gpqa(f"Question {i}?", "wxyz")) for i in range(2000)]
    counts = collections.Counter(letter for _, letter in texts)
    assert set(counts) == set("ABCD") and max(abs(count - 500) for count in counts.values()) < 100  # 5 sigma
    orders = collections.Counter("".join(_options(text).values()) for text, _ in texts)
    assert len(orders) == 24
    # The same on every machine and for ever: figures on GPQA are of these questions.
    assert "".join(letter for _, letter in texts[:12]) == "BDAABCCDBAAC"


def test_gpqa_comes_from_a_csv_of_several_lines_a_record(data_config, tmp_path, tiny_tokenizer_dir):
    rows = [_gpqa(f'Which {i}?\nTell\nme, "now".', [f" right {i}\n", "wrong, a", "wrong b", 3]) for i in range(5)]
    _write(tmp_path / "gpqa_diamond.csv", rows)
    config = data_config(files=str(tmp_path), check_rows=False, max_prompt_tokens=1000)
    problems = load_benchmark("gpqa_diamond", config)
    assert len(problems) == 5
    for i, problem in enumerate(problems):
        assert _options(problem.question)[problem.answer] == f"right {i}" and problem.kind == "multiple_choice"
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    prompt = tokenizer.decode(format_prompt(problems[0], config, tokenizer))
    assert prompt.startswith("Which 0?\nTell") and "letter" in prompt and "\\boxed{}" in prompt


# --- counts and bad records -----------------------------------------------------------------------------------------


def test_another_number_of_rows_is_refused_or_reported(data_config, tmp_path, caplog):
    file = _write(tmp_path / "test.jsonl", FORMATS["math_500"][0] * 3)
    config = data_config(source="tfds:math_500", files=str(file))
    for _ in range(2):  # also of the prepared copy
        with pytest.raises(
            ValueError, match=r"test\.jsonl has 3 records, the published set 500: .*data\.check_rows=False"
        ):
            load_problems(config, "test")
    config.check_rows = False
    assert len(load_problems(config, "test")) == 3
    assert "has 3 records, the published set 500; used as it is" in caplog.text
    config.check_rows = True
    with pytest.raises(ValueError, match="has 3 records"):
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
        ("ifeval", {**_IFEVAL, "kwargs": [{}]}, "2 instructions with 1 kwargs"),
        ("ifeval", {**_IFEVAL, "instruction_id_list": []}, "no list of names"),
        ("ifeval", {**_IFEVAL, "kwargs": [1, 2]}, "kwargs no list of objects"),
        ("dapo_math_17k", _dapo(" ", "1", "a"), "nothing but instructions"),
        ("dapo_math_17k", {"prompt": [], "reward_model": {}}, "no field|not a non-empty"),
        ("gsm8k", {"question": "x", "answer": "no hashes"}, "does not match"),
        ("math", {"problem": "x", "solution": "no box"}, "no .*boxed"),
        ("gpqa_diamond", _gpqa("x", ["a", "b", "", "d"]), "empty answer"),
        ("amc_2023", {"q": "x", "answer": 1}, "no field 'problem' or 'question'"),
    ],
)
def test_files_of_another_format_are_an_error(name, record, reason, data_config, tmp_path):
    file = _write(tmp_path / "rows.jsonl", [record])
    config = data_config(source=f"tfds:{name}", files=str(file), check_rows=False)
    with pytest.raises(ValueError, match=rf"no usable problem in .*rows\.jsonl \(.*({reason}).*line 1\)"):
        load_problems(config, _split(name))
    assert not list(tmp_path.glob("tfds/**/*incomplete*"))


# --- where the files are --------------------------------------------------------------------------------------------


def _layouts():
    """(name, split, files below the folder that are to be found, files that are in the way)"""
    for name, dataset in DATASETS.items():
        for split, files in (dataset.files or {}).items():
            yield name, split, list(files), []  # as `hf download --local-dir` leaves them
            yield name, split, [f"{name}/{file}" for file in files], ["other/test.jsonl"]
        for alias in (name, *dataset.aliases):
            for split in dataset.rows:
                yield name, split, [f"{alias}_{split}.jsonl"], [f"x{alias}_{split}.jsonl", f"{alias}_dev.jsonl"]
    yield "gsm8k", "test", ["gsm8k/test.jsonl"], ["gsm8k/train.jsonl", "test.jsonl"]
    yield "math", "test", ["math/test-1.parquet", "math/test-2.parquet"], ["math/train-1.parquet"]
    yield "math", "train", ["MATH/train/algebra/1.json", "MATH/train/geometry/2.json"], ["MATH/test/algebra/1.json"]
    yield "math", "test", ["test/algebra/1.json"], ["train/algebra/1.json"]
    yield "amc_2024", "test", ["amc24.csv"], ["amc23.csv"]
    yield "math_500", "test", ["math500_test.parquet"], ["test.jsonl"]
    yield "math_500", "test", ["math_500/test.jsonl"], ["test.jsonl", "math_500_test.jsonl"]
    yield "math", "train", [], ["math500_test.jsonl", "train.jsonl"]  # whose, nobody knows


@pytest.mark.parametrize(("name", "split", "found", "others"), _layouts())
def test_files_are_found_in_a_folder(name, split, found, others, tmp_path):
    for file in [*found, *others]:
        _write(tmp_path / file, [{}])
    files = find_files(DATASETS[name], str(tmp_path), split)
    assert [str(file.relative_to(tmp_path)) for file in files] == found


def test_a_file_is_itself_and_its_name_may_hold_the_split(data_config, tmp_path):
    row = FORMATS["gsm8k"][0][0]
    for split, number in (("train", 2), ("test", 1)):
        _write(tmp_path / f"mine_{split}.jsonl", [row] * number)
    config = data_config(source="tfds:gsm8k", files=f"{tmp_path}/mine_{{split}}.jsonl", check_rows=False)
    assert [len(load_problems(config, split)) for split in ("train", "test", "train[1:]")] == [2, 1, 1]
    config.files = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"data\.files=.*missing.*no file or folder"):
        load_problems(config, "train")
    with pytest.raises(ValueError, match=r"GSM8K has no split 'dev': use 'train' or 'test', or a slice"):
        load_problems(config, "dev")
    with pytest.raises(ValueError, match=r"no split 'train\["):
        config.files = f"{tmp_path}/mine_{{split}}.jsonl"
        load_problems(config, "train[x")


class _Hub:
    """The hub, as hf_hub_download shows it, with the files of a folder; counts what is asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, repo_id, filename, *, repo_type):
        assert repo_type == "dataset"
        self.asked.append((repo_id, filename))
        path = self.folder / repo_id / filename
        if not path.is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"cannot reach {filename}")
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = _Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    return hub


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.repo])
def test_what_is_not_local_comes_through_the_hub_once(name, hub, data_config):
    dataset, split = DATASETS[name], _split(name)
    rows = [_gpqa("Which?", "abcd")] if name == "gpqa_diamond" else FORMATS[name][0]
    for file in dataset.files[split]:
        _write(hub.folder / dataset.repo / file, rows)
    config = data_config(source=f"tfds:{name}", check_rows=False)
    first = load_problems(config, split)
    assert hub.asked == [(dataset.repo, file) for file in dataset.files[split]]
    shutil.rmtree(hub.folder)
    assert load_problems(config, split) == first and len(hub.asked) == len(dataset.files[split])


def test_without_network_the_error_says_where_to_get_the_files(hub, data_config, tmp_path):
    (tmp_path / "empty").mkdir()
    for files, found in (("", 'data.files="" names no files'), (str(tmp_path / "empty"), "has no files of it")):
        with pytest.raises(FileNotFoundError, match=rf"GPQA-Diamond.*{found}.*hf download Idavidrein/gpqa.*gated"):
            load_benchmark("gpqa_diamond", data_config(files=files))
        with pytest.raises(FileNotFoundError, match=rf"AMC 24.*{found}.*not on the hub.*amc_22-24.*data\.files"):
            load_benchmark("amc_2024", data_config(files=files))
    assert [repo for repo, _ in hub.asked] == ["Idavidrein/gpqa"] * 2


def test_benchmarks_look_into_the_folder_but_not_into_the_file_of_the_source(hub, data_config, tmp_path):
    rows = FORMATS["math_500"][0]
    file = _write(tmp_path / "files" / "math_500.jsonl", rows)
    _write(hub.folder / "HuggingFaceH4/MATH-500/test.jsonl", rows * 2)
    config = data_config(source="tfds:dapo_math_17k", check_rows=False, limit=1)
    for files, number in (("", 2), (str(file.parent), 1), (str(file), 2)):
        config.files = files
        assert len(load_benchmark("math_500", config)) == number
    # Of the source's splits there may be some only, and not the benchmark's.
    _write(tmp_path / "files" / "dapo_train.jsonl", [{}])
    config.update(files=f"{tmp_path}/files/dapo_{{split}}.jsonl", train_split="train[256:]", eval_split="train[:256]")
    assert len(load_benchmark("math_500", config)) == 2
    config.update(source="tfds:math_500", files=str(file))
    assert len(load_benchmark("math_500", config)) == 1
    assert config.limit == 1 and config.files == str(file)
    for name in ("dapo_math_17k", "chained_arithmetic", "math500"):
        with pytest.raises(ValueError, match=f"unknown benchmark '{name}': use one of gsm8k, math, "):
            load_benchmark(name, config)


def test_a_wrong_place_for_the_files_is_said_for_benchmarks_too(hub, data_config, tmp_path, monkeypatch):
    rows = FORMATS["math_500"][0]
    file = _write(tmp_path / "files" / "test" / "math_500.jsonl", rows)
    _write(tmp_path / "files" / "mine.jsonl", [{"problem": "What is 1 + 2?", "answer": "3"}])
    _write(hub.folder / "HuggingFaceH4/MATH-500/test.jsonl", rows * 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = f"jsonl:{tmp_path}/files/mine.jsonl"
    config = data_config(source=source, question_field="problem", check_rows=False, decontaminate="math_500")
    for files in ("~/file/test", "~/files/{split}x", str(file.with_suffix(".json"))):
        config.files = files
        for load in (functools.partial(load_benchmark, "math_500"), load_training):
            with pytest.raises(FileNotFoundError, match=r"data\.files='.*no file or folder") as caught:
                load(config)
            assert repr(files) in str(caught.value)
    # Folders: the hub has twice as many problems. A file is the source's, however it is written.
    for files, number in (("~/files/{split}", 1), ("~/files/test", 1), ("~/files/{split}/math_500.jsonl", 2)):
        config.files = files
        assert len(load_benchmark("math_500", config)) == number


def test_a_resumed_run_goes_on_with_the_problems_of_the_file(shared_data, data_config):
    config = data_config(source="tfds:gsm8k", files=str(shared_data))
    whole = ProblemIterator(load_problems(config, "train"), 100, seed=1)
    batches = [whole.next_batch() for _ in range(80)]  # beyond the first of its epochs
    first = ProblemIterator(load_problems(config, "train"), 100, seed=1)
    first.take(4_030)
    state = json.loads(json.dumps(first.state()))
    resumed = ProblemIterator(load_problems(config, "train"), 100, seed=1)
    resumed.restore(state)
    assert resumed.take(70) == batches[40][30:] and [resumed.next_batch() for _ in range(39)] == batches[41:]
    epoch = [problem.question for batch in batches[:74] for problem in batch]
    assert len(set(epoch)) == 7_400


# --- prepared once --------------------------------------------------------------------------------------------------


def test_several_may_prepare_at_once(data_config, tmp_path, monkeypatch):
    """Three builders generate side by side before any of them finishes; all end with the same data and report."""
    rows = [{"question": f"Question {i}?", "answer": str(i)} for i in range(29)]
    file = _write(tmp_path / "aime25.jsonl", [*rows, {"question": "no answer"}])
    config = data_config(source="tfds:aime_2025", files=str(file))
    barrier = threading.Barrier(3, timeout=30)
    original = published_problems.PublishedProblems._generate_examples

    def meet(self):
        barrier.wait()
        yield from original(self)

    monkeypatch.setattr(published_problems.PublishedProblems, "_generate_examples", meet)
    results: list = [None] * 3

    def work(index):
        try:
            results[index] = load_problems(config, "test")
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2] and len(results[0]) == 29
    assert not list(tmp_path.glob("tfds/**/incomplete*"))
    # With the report too: the file is complete only with the record that was left out.
    assert published_problems.load(DATASETS["aime_2025"], "test", config)


def test_a_fresh_process_reads_the_prepared_copy_without_tensorflow(data_config, tmp_path):
    file = _write(tmp_path / "amc23.parquet", [{"question": f"Q{i}?", "answer": f"{i}.0"} for i in range(40)])
    config = data_config(source="tfds:amc_2023", files=str(file))
    problems = load_problems(config, "test")
    script = (
        "import json, sys; from ml_collections import ConfigDict; from ibtpo.data.problems import load_problems\n"
        "problems = load_problems(ConfigDict(json.loads(sys.argv[1])), 'test')\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules\n"
        "print(json.dumps([[p.question, p.answer] for p in problems]))"
    )
    command = [sys.executable, "-c", script, json.dumps(config.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[p.question, p.answer] for p in problems] and not done.stderr


# --- real files -----------------------------------------------------------------------------------------------------

REAL = {
    ("gsm8k", "train"): "gsm8k_train.jsonl",
    ("gsm8k", "test"): "gsm8k_test.jsonl",
    ("math_500", "test"): "math500_test.jsonl",
    ("aime_2024", "test"): "aime24_test.jsonl",
    ("aime_2025", "test"): "aime25_test.jsonl",
    ("amc_2023", "test"): "amc23_test.jsonl",
}


@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_sets_are_read_whole_and_graded_right(name, split, shared_data, read_questions, data_config, caplog):
    config = data_config(source=f"tfds:{name}", files=str(shared_data))
    problems = load_problems(config, split)
    assert not caplog.records
    assert [problem.question for problem in problems] == [q.strip() for q in read_questions(REAL[name, split])]
    assert len(problems) in DATASETS[name].rows[split]
    raw = [json.loads(line) for line in (shared_data / REAL[name, split]).read_bytes().splitlines()]
    for problem, record in zip(problems, raw):
        given = str(record["answer"]).split("####")[-1]  # by other code than the builder's
        assert problem.answer == given.strip() or fast_grade(f"\\boxed{{{given}}}", problem.answer) == 1.0
    if name != "math_500":
        assert all(re.fullmatch(r"-?[\d.]+", problem.answer) for problem in problems)


def test_real_training_problems_that_are_no_published_split_have_to_be_asked_for(shared_data, data_config, caplog):
    config = data_config(source="tfds:math", files=str(shared_data / "math4500_train.jsonl"))
    with pytest.raises(ValueError, match=r"has 4,500 records, the published set 7,500"):
        load_problems(config, "train")
    config.check_rows = False
    problems = load_problems(config, "train")
    assert len(problems) == 4500 and "4,500 records" in caplog.text
    config.update(
        source=f"jsonl:{shared_data}/math4500_train.jsonl",
        question_field="problem",
        answer_field="solution",
        answer_pattern="boxed",
    )
    for built, read in zip(problems, load_problems(config, "train"), strict=True):
        assert (built.id, built.question, built.answer) == (read.id, read.question.strip(), read.answer)


def test_any_parquet_of_problems_is_a_source(shared_data, data_config, tmp_path, caplog):
    records = [json.loads(line) for line in (shared_data / "gsm8k_test.jsonl").read_bytes().splitlines()]
    rows = [_dapo(record["question"], record["answer"], "0") for record in records]
    rows[7]["reward_model"]["ground_truth"] = "no answer"
    _write(tmp_path / "x_test.parquet", rows)
    config = data_config(
        source=f"parquet:{tmp_path}/x_{{split}}.parquet",
        question_field="prompt.0.content",
        answer_field="reward_model.ground_truth",
        answer_pattern=r"####\s*(.+)",
    )
    problems = load_problems(config, "test")
    assert len(problems) == 1318 and [p.id for p in problems[6:8]] == [6, 8]
    assert "does not match (1): row 8" in caplog.text
    assert all(record["question"] in rows[p.id]["prompt"][0]["content"] for p, record in zip(problems[:7], records))
    with pytest.raises(ValueError, match=r"no field 'prompt\.0\.text' \(1319\): row 1, 2, .* and 1299 more"):
        config.question_field = "prompt.0.text"
        load_problems(config, "test")


def test_prompts_that_are_too_long_are_counted_for_published_sets(shared_data, data_config, tiny_tokenizer_dir, caplog):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    config = data_config(source="tfds:gsm8k", files=str(shared_data), max_prompt_tokens=300)
    problems, all_of_it = load_problems(config, "test", tokenizer), load_problems(config, "test")
    lengths = [len(tokenizer(config.prompt.format(question=p.question))["input_ids"]) for p in all_of_it]
    assert [p.id for p in problems] == [i for i, length in enumerate(lengths) if length <= 300]
    left_out = sum(length > 300 for length in lengths)
    assert 0 < left_out < 1319
    assert f"gsm8k, split test: {left_out} records left out, {1319 - left_out} used" in caplog.text
    assert f"prompt longer than data.max_prompt_tokens=300 ({left_out}): example " in caplog.text
