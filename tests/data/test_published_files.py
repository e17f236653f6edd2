"""Where the files of published problem sets are: a file, a folder in any usual layout, or the hub; no network."""

import functools
import shutil

import huggingface_hub
import pytest

from ibtpo.data.datasets import load_benchmark, load_training
from ibtpo.data.problems import load_problems
from ibtpo.data.published import DATASETS, find_files
from ibtpo.errors import UserError
from tests.data.published_rows import FORMATS, eval_split, gpqa_row, write_rows


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
        write_rows(tmp_path / file, [{}])
    files = find_files(DATASETS[name], str(tmp_path), split)
    assert [str(file.relative_to(tmp_path)) for file in files] == found


def test_a_file_is_itself_and_its_name_may_hold_the_split(data_config, tmp_path):
    row = FORMATS["gsm8k"][0][0]
    for split, number in (("train", 2), ("test", 1)):
        write_rows(tmp_path / f"mine_{split}.jsonl", [row] * number)
    config = data_config(source="tfds:gsm8k", files=f"{tmp_path}/mine_{{split}}.jsonl", check_rows=False)
    assert [len(load_problems(config, split)) for split in ("train", "test", "train[1:]")] == [2, 1, 1]
    config.files = str(tmp_path / "missing")
    with pytest.raises(UserError, match=r"data\.files=.*missing.*no file or folder"):
        load_problems(config, "train")
    with pytest.raises(UserError, match=r"GSM8K has no split 'dev': use 'train' or 'test', or a slice"):
        load_problems(config, "dev")
    with pytest.raises(UserError, match=r"no split 'train\["):
        config.files = f"{tmp_path}/mine_{{split}}.jsonl"
        load_problems(config, "train[x")


def test_hidden_files_are_skipped_and_patterns_and_the_home_folder_expanded(data_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "test"):
        for name in ("algebra/1.json", "algebra/._1.json", ".cache/2.json", "geometry/2.json"):
            write_rows(tmp_path / "MATH" / split / name, FORMATS["math"][0])
    (tmp_path / "MATH/test/algebra/._1.json").write_bytes(b"\xff\0")
    for files in ("~", "~/MATH", "~/MATH/{split}/*/*.json", f"{tmp_path}/M*/{{split}}/**/*.json"):
        config = data_config(source="tfds:math", files=files, check_rows=False)
        assert [len(load_problems(config, split)) for split in ("train", "test")] == [2, 2], files
    with pytest.raises(UserError, match=r"data\.files='~/MATH/\*\.csv': no file or folder"):
        load_problems(data_config(source="tfds:math", files="~/MATH/*.csv"), "test")
    config = data_config(source="tfds:math", files="~/MATH", check_rows=False)
    config.dir = "~/prepared"
    assert len(load_problems(config, "test")) == 2 and (tmp_path / "prepared" / "published_problems").is_dir()


class _Hub:
    """The hub, as hf_hub_download shows it, with the files of a folder; counts the requests."""

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
    dataset, split = DATASETS[name], eval_split(name)
    rows = [gpqa_row("Which?", "abcd")] if name == "gpqa_diamond" else FORMATS[name][0]
    for file in dataset.files[split]:
        write_rows(hub.folder / dataset.repo / file, rows)
    config = data_config(source=f"tfds:{name}", check_rows=False)
    first = load_problems(config, split)
    assert hub.asked == [(dataset.repo, file) for file in dataset.files[split]]
    shutil.rmtree(hub.folder)
    assert load_problems(config, split) == first and len(hub.asked) == len(dataset.files[split])


def test_without_network_the_error_says_where_to_get_the_files(hub, data_config, tmp_path):
    (tmp_path / "empty").mkdir()
    for files, found in (("", 'data.files="" names no files'), (str(tmp_path / "empty"), "has no files of it")):
        with pytest.raises(UserError, match=rf"GPQA-Diamond.*{found}.*hf download Idavidrein/gpqa.*gated"):
            load_benchmark("gpqa_diamond", data_config(files=files))
        with pytest.raises(UserError, match=rf"AMC 24.*{found}.*not on the hub.*amc_22-24.*data\.files"):
            load_benchmark("amc_2024", data_config(files=files))
    assert [repo for repo, _ in hub.asked] == ["Idavidrein/gpqa"] * 2


def test_benchmarks_look_into_the_folder_but_not_into_the_file_of_the_source(hub, data_config, tmp_path):
    rows = FORMATS["math_500"][0]
    file = write_rows(tmp_path / "files" / "math_500.jsonl", rows)
    write_rows(hub.folder / "HuggingFaceH4/MATH-500/test.jsonl", rows * 2)
    config = data_config(source="tfds:dapo_math_17k", check_rows=False, limit=1)
    for files, number in (("", 2), (str(file.parent), 1), (str(file), 2), (f"{file.parent}/m*.jsonl", 2)):
        config.files = files
        assert len(load_benchmark("math_500", config)) == number
    # Of the source's splits there may be some only, and not the benchmark's.
    write_rows(tmp_path / "files" / "dapo_train.jsonl", [{}])
    config.update(files=f"{tmp_path}/files/dapo_{{split}}.jsonl", train_split="train[256:]", eval_split="train[:256]")
    assert len(load_benchmark("math_500", config)) == 2
    config.update(source="tfds:math_500", files=str(file))
    assert len(load_benchmark("math_500", config)) == 1
    assert config.limit == 1 and config.files == str(file)
    for name in ("dapo_math_17k", "chained_arithmetic", "math500"):
        with pytest.raises(UserError, match=f"unknown benchmark '{name}': use one of gsm8k, math, "):
            load_benchmark(name, config)


def test_a_wrong_place_for_the_files_is_said_for_benchmarks_too(hub, data_config, tmp_path, monkeypatch):
    rows = FORMATS["math_500"][0]
    file = write_rows(tmp_path / "files" / "test" / "math_500.jsonl", rows)
    write_rows(tmp_path / "files" / "mine.jsonl", [{"problem": "What is 1 + 2?", "answer": "3"}])
    write_rows(hub.folder / "HuggingFaceH4/MATH-500/test.jsonl", rows * 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    source = f"jsonl:{tmp_path}/files/mine.jsonl"
    config = data_config(source=source, question_field="problem", check_rows=False, decontaminate="math_500")
    for files in ("~/file/test", "~/files/{split}x", str(file.with_suffix(".json"))):
        config.files = files
        for load in (functools.partial(load_benchmark, "math_500"), load_training):
            with pytest.raises(UserError, match=r"data\.files='.*no file or folder") as caught:
                load(config)
            assert repr(files) in str(caught.value)
    # Folders: the hub has twice as many problems. A file is the source's, however it is written.
    for files, number in (("~/files/{split}", 1), ("~/files/test", 1), ("~/files/{split}/math_500.jsonl", 2)):
        config.files = files
        assert len(load_benchmark("math_500", config)) == number
