"""Data sets of the hub by id: which files are a split, published sets among them, copies by revision; no network."""

import json
import pathlib

import pytest

from ibtpo import hub
from ibtpo.data.datasets import load_benchmark
from ibtpo.data.hub_sets import files_of, published
from ibtpo.data.problems import load_problems
from ibtpo.data.published import DATASETS
from ibtpo.errors import UserError
from tests.data.published_rows import write_rows

SHARDS = [f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)]


def card(text):
    return f"---\nlicense: mit\nconfigs:\n{text}---\n# A set\n"


ONE = card(
    "- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
    "  - {split: test, path: 'main/te?t*'}\n"
)
TWO = card(
    "- config_name: main\n  data_files:\n  - {split: train, path: main/*.parquet}\n"
    "- config_name: socratic\n"
    "  data_files: [{split: train, path: socratic/*}, {split: test, path: [s.jsonl, 't.jsonl']}]\n"
)
MARKED = TWO.replace("- config_name: socratic\n", "- config_name: socratic\n  default: true\n")
LISTED = card("- config_name: default\n  data_files: ['a/*.jsonl', 'b/**']\n")
FOLDER = card("- config_name: x\n  data_dir: ./x\n  data_files: {train: '*.json', dev: sub}\n")


@pytest.mark.parametrize(
    ("names", "text", "subset", "split", "files"),
    [
        # By the names of splits in paths, as without a card.
        (["train.jsonl", "test.jsonl"], "", "", "test", ["test.jsonl"]),
        ([*SHARDS, "data/test-00000-of-00001.parquet"], "", "", "train", SHARDS),
        (["train/b.csv", "train/a.csv", "val/c.csv"], "", "", "train", ["train/a.csv", "train/b.csv"]),
        (["train/b.parquet", "val/c.parquet"], "", "", "validation", ["val/c.parquet"]),
        (["my-dev.json", "x_train_y.json"], "", "", "validation", ["my-dev.json"]),
        (["a.jsonl", "b.jsonl"], "", "", "train", ["a.jsonl", "b.jsonl"]),  # no split has a name
        (["data/all.parquet"], "", "default", "train", ["data/all.parquet"]),
        (["test.jsonl", "trained.jsonl"], "", "", "test", ["test.jsonl"]),  # a part of a word is none
        (["train.jsonl", "dataset_infos.json"], "", "", "train", ["train.jsonl"]),
        (["en/train.jsonl", "de/train.jsonl"], "", "de", "train", ["de/train.jsonl"]),
        (["train.parquet", "README.md", "x.png"], "# no metadata", "", "train", ["train.parquet"]),
        (["train.parquet"], "---\n[: no yaml\n---\n", "", "train", ["train.parquet"]),
        (["train.parquet"], "---\nlicense: mit\n---\n", "", "train", ["train.parquet"]),
        # By the card.
        (["main/train-1.parquet", "main/test.parquet", "x/train.parquet"], ONE, "", "train", ["main/train-1.parquet"]),
        (["main/train-1.parquet", "main/test.parquet"], ONE, "main", "test", ["main/test.parquet"]),
        (["main/a.parquet", "s.jsonl", "t.jsonl"], TWO, "socratic", "test", ["s.jsonl", "t.jsonl"]),
        (["main/a.parquet", "socratic/b.parquet"], MARKED, "", "train", ["socratic/b.parquet"]),
        (["a/1.jsonl", "a/n/2.jsonl", "b/n/3.jsonl"], LISTED, "", "train", ["a/1.jsonl", "b/n/3.jsonl"]),
        (["x/1.json", "1.json", "x/sub/2.json"], FOLDER, "", "train", ["x/1.json"]),
        (["x/1.json", "x/sub/2.json", "x/sub/n/3.json"], FOLDER, "x", "dev", ["x/sub/2.json", "x/sub/n/3.json"]),
        (["train.parquet"], ONE.replace("\n", "\r\n"), "", "train", None),
    ],
)
def test_the_files_of_a_split(names, text, subset, split, files):
    if files is None:
        with pytest.raises(UserError, match=r"has no split 'train' but none"):
            files_of("a/b", names, text, subset, split)
    else:
        assert files_of("a/b", names[::-1], text, subset, split) == files


@pytest.mark.parametrize(
    ("names", "text", "subset", "split", "words"),
    [
        (["train.jsonl", "test.jsonl"], "", "", "tset", r"no split 'tset' but test, train; did you mean 'test'\?"),
        (["main/a.parquet"], TWO, "", "train", r"several configurations: set data\.subset to one of main, socratic"),
        (["main/a.parquet"], TWO, "man", "train", r"data\.subset='man'.*main, socratic; did you mean 'main'\?"),
        (["en/train.jsonl", "de/train.jsonl"], "", "", "train", r"several folders.*data\.subset to one of de, en"),
        (["en/train.jsonl"], "", "fr", "train", r"no folder of this name but en"),
        (["train.arrow", "x.txt"], "", "", "train", r"has no file of \.jsonl.*but of \.arrow, \.txt"),
        ([], "", "", "train", "but of nothing"),
        (["train.jsonl", "train.parquet"], "", "", "train", r"several formats \(\.jsonl, \.parquet\)"),
    ],
)
def test_what_is_not_clear_is_said(names, text, subset, split, words):
    with pytest.raises(UserError, match=words) as error:
        files_of("a/b", names, text, subset, split)
    assert "hf:a/b" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "subset", "name"),
    [
        ("hf:openai/gsm8k", "", "gsm8k"), ("hf:OpenAI/GSM8K", "main", "gsm8k"), ("hf:openai/gsm8k", "socratic", None),
        ("hf:HuggingFaceH4/MATH-500", "default", "math_500"), ("hf:EleutherAI/hendrycks_math", "", "math"),
        ("hf:EleutherAI/hendrycks_math", "algebra", None), ("hf:somebody/gsm8k", "", None),
        ("hf:BytedTsinghua-SIA/DAPO-Math-17k", "", "dapo_math_17k"),
    ],
)  # fmt: skip
def test_published_sets_are_known_by_their_ids(source, subset, name, data_config):
    found = published(data_config(source=source, subset=subset))
    assert (found and found.name) == name


class _Hub:
    """Folders in place of the hub: `main` is `commit`. Counts what is asked."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.commit, self.asked = folder, "a" * 40, []
        monkeypatch.setattr(hub.Repo, "pin", lambda repo, asked: asked if "@" in asked else f"main@{self.commit}")
        monkeypatch.setattr(hub.Repo, "files", lambda repo, revision: self.names(repo.id, revision))
        monkeypatch.setattr(hub.Repo, "file", lambda repo, name, revision: self.file(repo.id, name, revision))

    def place(self, id, revision=""):
        place = self.folder / (hub.commit_of(revision) or self.commit) / id
        place.mkdir(parents=True, exist_ok=True)
        return place

    def names(self, id, revision):
        place = self.place(id, revision)
        self.asked.append(id)
        return [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]

    def file(self, id, name, revision) -> pathlib.Path:
        self.asked.append(name)
        return self.place(id, revision) / name


@pytest.fixture
def server(tmp_path, monkeypatch):
    return _Hub(tmp_path / "hub", monkeypatch)


def lines(*pairs):
    return "".join(json.dumps({"q": {"text": q}, "a": a}) + "\n" for q, a in pairs)


def test_any_set_is_read_by_its_fields_prepared_once_and_anew_at_another_commit(server, data_config):
    place = server.place("me/sums")
    (place / "train.jsonl").write_text(lines(("1 + 1?", r"so \boxed{2}"), ("2 + 2?", r"\boxed{4}")) + "no json\n")
    (place / "test.jsonl").write_text(lines(("3 + 3?", r"\boxed{6}")))
    config = data_config(source="hf:me/sums", question_field="q.text", answer_field="a", answer_pattern="boxed")
    found = load_problems(config, "train")
    assert [(p.id, p.question, p.answer, p.kind) for p in found] == [(0, "1 + 1?", "2", ""), (1, "2 + 2?", "4", "")]
    assert [p.question for p in load_problems(config, "train[1:]")] == ["2 + 2?"]
    assert [p.question for p in load_problems(config, "test")] == ["3 + 3?"]
    asked = len(server.asked)
    assert load_problems(config, "train") == found and len(server.asked) == asked
    # Other fields and another commit are other problems.
    config.answer_pattern = ""
    assert load_problems(config, "train")[1].answer == r"\boxed{4}"
    server.commit = "b" * 40
    (server.place("me/sums") / "train.jsonl").write_text(lines(("5 + 5?", "10")))
    assert [p.answer for p in load_problems(config, "train")] == ["10"]
    config.revision = f"main@{'a' * 40}"
    assert [p.question for p in load_problems(config, "train")] == ["1 + 1?", "2 + 2?"]


def test_a_published_set_is_read_as_it_is_known(server, data_config):
    row = {"question": "How many?", "answer": "Many.\n#### 1,234"}
    write_rows(server.place("openai/gsm8k") / "main" / "train-00000-of-00001.parquet", [row])
    config = data_config(source="hf:openai/gsm8k", check_rows=False)
    [problem] = load_problems(config, "train")
    assert (problem.answer, problem.kind) == ("1234", DATASETS["gsm8k"].kind)
    assert server.asked == ["main/train-00000-of-00001.parquet"]
    server.commit = "b" * 40
    rows = [row, {**row, "question": "More?"}]
    write_rows(server.place("openai/gsm8k") / "main" / "train-00000-of-00001.parquet", rows)
    assert len(load_problems(config, "train")) == 2


def test_files_fetched_by_hand(server, data_config, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.Repo, "pin", lambda *_: pytest.fail("the hub was asked"))
    (tmp_path / "sums" / ".cache").mkdir(parents=True)
    (tmp_path / "sums" / ".cache" / "train.jsonl").write_text("rubbish")
    (tmp_path / "sums" / "train.jsonl").write_text(lines(("1 + 1?", 2)))
    config = data_config(source="hf:me/sums", question_field="q.text", answer_field="a", files=str(tmp_path / "sums"))
    assert [p.answer for p in load_problems(config, "train")] == ["2"]
    assert hub.data_repo(config) is None and server.asked == []
    config.files = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"data\.files=.*none': no folder.*`hf download me/sums --repo-type dataset"):
        load_problems(config, "train")


def test_a_benchmark_is_not_of_the_revision_of_the_source(server, data_config, tmp_path):
    write_rows(tmp_path / "math_500.jsonl", [{"problem": "P", "answer": "1"}])
    config = data_config(source="hf:me/sums", revision=f"v@{'c' * 40}", subset="x", files=str(tmp_path))
    config.check_rows = False
    assert [p.question for p in load_benchmark("math_500", config)] == ["P"]
    assert server.asked == []


def test_no_problem_is_an_error(server, data_config):
    (server.place("me/sums") / "train.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UserError, match=r"me/sums: no usable problem .*no field 'question'"):
        load_problems(data_config(source="hf:me/sums"), "train")
