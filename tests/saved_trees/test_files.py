"""Files of trees: read as they were written, bounded, resumed; and whatever else is in the folder is one line."""

import gzip
import itertools
import json
import os

import pytest

from ibtpo.errors import RunFailure, UserError
from ibtpo.saved_trees import TreeFolder, files, list_files, read_file, write_file
from tests.saved_trees.cases import grow, make_file

CONTENT = make_file([grow(0), grow(1)])


def content_of(step, kind="train"):
    return files.TreeFile(**{**vars(CONTENT), "step": step, "kind": kind})


def steps(folder, kind="train"):
    return [step for step, of, _ in list_files(folder) if of == kind]


def test_what_is_written_is_read(tmp_path):
    write_file(tmp_path / "new" / "x.json.gz", CONTENT)
    assert read_file(tmp_path / "new" / "x.json.gz") == CONTENT
    first = (tmp_path / "new" / "x.json.gz").read_bytes()
    write_file(tmp_path / "new" / "x.json.gz", CONTENT)
    assert (tmp_path / "new" / "x.json.gz").read_bytes() == first
    assert os.listdir(tmp_path / "new") == ["x.json.gz"]


def test_the_folder_is_bounded_and_covers_the_run(tmp_path):
    trees = TreeFolder(tmp_path, 5)
    for step in range(0, 200, 10):
        trees.write(content_of(step))
        trees.write(content_of(step, "eval"))
    found = steps(tmp_path / "trees")
    assert len(found) == 5 and (found[0], found[-1]) == (0, 190) and steps(tmp_path / "trees", "eval") == found
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps) <= 4 * min(gaps)


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    trees = TreeFolder(tmp_path, 10)
    for step in (0, 10, 20, 30):
        trees.write(content_of(step))
    (tmp_path / "trees" / "mine.json.gz").write_text("not ours")
    TreeFolder(tmp_path, 10, resume_step=20, active=False)
    assert steps(tmp_path / "trees") == [0, 10, 20, 30]
    TreeFolder(tmp_path, 10, resume_step=20)
    assert steps(tmp_path / "trees") == [0, 10, 20]
    TreeFolder(tmp_path, 10)
    assert steps(tmp_path / "trees") == [] and (tmp_path / "trees" / "mine.json.gz").is_file()


def test_another_host_writes_nothing(tmp_path):
    TreeFolder(tmp_path, 10, active=False).write(CONTENT)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "trees").write_text("a file where the folder should be")
    with pytest.raises(RunFailure, match=r"trees.* cannot be written .*log\.trees=0") as error:
        TreeFolder(tmp_path, 10).write(CONTENT)
    assert "\n" not in str(error.value)


def packed(found):
    return gzip.compress(json.dumps(found).encode())


def changed(tree=None, **changes):
    found = json.loads(json.dumps({"format": files.FORMAT, **vars(CONTENT), **changes}))
    if tree:
        found["trees"][1].update(tree)
    return packed(found)


GOOD = packed({"format": files.FORMAT, **vars(CONTENT)})
BAD = {
    "empty": b"",
    "text": b"trees",
    "half": GOOD[: len(GOOD) // 2],
    "a bit": GOOD[:-9] + bytes([GOOD[-9] ^ 1]) + GOOD[-8:],
    "not JSON": gzip.compress(b"{"),
    "deep": gzip.compress(b"[" * 100_000),
    "a list": packed([1]),
    "another format": packed({"format": "elsewhere", "version": 1}),
    "a version to come": changed(version=2),
    "no version": packed({"format": files.FORMAT}),
    "kind": changed(kind="test"),
    "step": changed(step=-1),
    "options": changed(options={}),
    "no score": changed(options={"score": None, "ib_weight": 0.1}),
    "vocabulary": changed(vocabulary={"0": "€"}),
    "unknown token": changed(vocabulary={}),
    "trees": changed(trees={}),
    "a tree": changed(trees=[None]),
    "no nodes": changed(tree={"parent": []}),
    "a parent to come": changed(tree={"parent": [-1, 5]}),
    "a loop": changed(tree={"parent": [0]}),
    "lengths": changed(tree={"length": [1]}),
    "negative length": changed(tree={"length": [-1] * len(CONTENT.trees[1]["parent"])}),
    "log_probs": changed(tree={"log_probs": ["<script>"]}),
    "a leaf outside": changed(tree={"leaf": [10**9] * len(CONTENT.trees[1]["leaf"])}),
    "rewards": changed(tree={"reward": [None] * len(CONTENT.trees[1]["leaf"])}),
    "infinite": changed(tree={"value": [float("inf")] * len(CONTENT.trees[1]["parent"])}),
    "A_low": changed(tree={"A_low": [1]}),
    "stated": changed(tree={"stated": [1] * len(CONTENT.trees[1]["leaf"])}),
    "question": changed(tree={"question": None}),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_another_file_is_one_line_with_its_name(tmp_path, data):
    path = tmp_path / "train_00000001.json.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match="train_00000001") as error:
        read_file(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_BYTES", 1000)
    (tmp_path / "x").write_bytes(gzip.compress(b" " * 2000))
    with pytest.raises(UserError, match="unpacks to more than"):
        read_file(tmp_path / "x")
    with pytest.raises(UserError, match="is not there"):
        read_file(tmp_path / "y")
