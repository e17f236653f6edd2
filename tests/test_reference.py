"""Help, the printed configuration and the pages of keys and metrics: made from the code, complete and up to date."""

import ast
import json
import re
import subprocess
import sys

import pytest

from configs import base, tiny, tiny_sft
from ibtpo import config as config_lib
from ibtpo import reference
from ibtpo.config import METHODS, RULES, SFT_RULES, flatten
from ibtpo.config.describe import BASE, SFT, by_method, comments, help_text, in_order
from ibtpo.metrics.meanings import find, meanings


@pytest.mark.parametrize("name", ["keys.md", "metrics.md"])
def test_a_page_is_what_the_code_says(name, repo_root):
    """Out of date: python -m ibtpo.reference docs."""
    assert (repo_root / "docs" / name).read_text(encoding="utf-8") == reference.pages()[name]


def test_the_page_has_every_key_with_its_comment_and_rule():
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+?) \|$", reference.pages()["keys.md"], re.MULTILINE)
    assert [row[0] for row in rows] == list(comments("base")) and {row[0] for row in rows} == set(RULES)
    assert all(len(row[2]) > 5 for row in rows)


def test_comments_are_those_of_the_file_in_its_order():
    said = comments("base")
    assert set(said) == set(RULES) and all(said.values())
    assert list(said)[:3] == ["method", "compilation_cache", "model.path"] and list(said)[-1].startswith("log.")
    assert said["tree.beta"] == "beta, weight of the information term of the bottleneck [paper]"  # behind the value
    assert said["tree.strategy"].startswith("ib | random | entropy | fixed_width | ")  # above it
    assert said["eval.samples"].startswith("k of avg@k")  # its section has another name in the file
    assert set(comments("tiny_sft")) == set(SFT_RULES)
    assert list(comments("tiny_sft")).index("model.architecture.family") == 5


@pytest.mark.parametrize("method", ["ibtpo", "gspo", "treepo"])
def test_help_has_every_key_with_its_comment_choices_default_and_the_methods_value(method):
    config = tiny.get_config()
    config.method = method
    text = help_text(BASE, config, "tests")
    keys = re.findall(r"^  --config\.([\w.]+)=", text, re.MULTILINE)
    assert keys == list(comments("base"))
    resolved = flatten(config_lib.resolve(config))
    flat = " ".join(text.split())
    defaults = flatten(base.get_config())
    for key, comment in comments("base").items():
        assert f"--config.{key}={resolved[key]!r}" in text
        assert " ".join(comment.split()) in flat
        if key in METHODS[method]:
            assert f"--config.{key}={resolved[key]!r}  (from method={method})" in text
        elif defaults[key] != resolved[key]:
            assert f"--config.{key}={resolved[key]!r}  (default {defaults[key]!r})" in text
        start = text.index(f"  --config.{key}=")
        block = text[start : text.find("\n  --config.", start + 1) if key != keys[-1] else None]
        assert all(choice in block for choice in RULES[key].choices), key


def test_help_says_where_a_value_replaces_the_methods():
    config = tiny.get_config()
    config.loss.kl = 0.5
    assert "--config.loss.kl=0.5  (method=ibtpo says 0.001)" in help_text(BASE, config, "tests")


def test_help_of_supervised_training_has_its_keys():
    text = help_text(SFT, tiny_sft.get_config(), "tests")
    assert re.findall(r"^  --config\.([\w.]+)=", text, re.MULTILINE) == list(comments("tiny_sft"))


def test_by_method_names_every_method_once():
    for key in METHODS["ibtpo"]:
        text = by_method(key)
        if not text.endswith("for every method"):
            assert sorted(re.findall(r"\w+", re.sub(r"(^|; )\S+: ", " ", text))) == sorted(METHODS)


def test_the_printed_configuration_is_complete_ordered_and_read_again(repo_root, tmp_path):
    command = [sys.executable, "-m", "ibtpo.train", "--config=tiny", "--config.method=dapo", "--print_config"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    (tmp_path / "printed.json").write_text(done.stdout)
    read = config_lib.resolve(config_lib.load(str(tmp_path / "printed.json")))
    wanted = tiny.get_config()
    wanted.method = "dapo"
    assert flatten(read) == flatten(config_lib.resolve(wanted))
    assert list(flatten(json.loads(done.stdout))) == list(comments("base"))
    wrong = subprocess.run([*command, "--config.tree.beta=-1"], cwd=repo_root, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and "tree.beta=-1.0" in wrong.stderr


def test_keys_that_the_file_has_not_come_last():
    config = tiny.get_config()
    config.train.more = 1
    assert list(in_order(BASE, config)["train"])[-1] == "more"


def written_metrics(repo_root):
    """The names under which the code writes metrics, read off its source: keys of dicts and targets of assignments."""
    for file in sorted((repo_root / "ibtpo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"(train|eval|time|memory|sft)/\w+", node.value):
                    yield node.value


def test_every_metric_that_the_code_names_has_a_meaning(repo_root):
    names = set(written_metrics(repo_root))
    assert len(names) > 15
    assert {name for name in names if find(name) is None} == set()


def test_meanings_are_whole_and_name_each_metric_once():
    every = [each for group in meanings().values() for each in group]
    assert len(every) > 50 and len({each.name for each in every}) == len(every)
    form = re.compile(r"(train|eval|time|memory|sft)/[\w*]+")
    assert all(form.fullmatch(each.name) and len(each.words) > 8 for each in every)
    assert find("train/no_such") is None and find("train/term_format").name == "train/term_*"
    assert find("eval/prompt_strict").name == "eval/prompt_*" and find("eval/avg_low").name == "eval/*_low"
