"""Uploads to a server that plays the hub: what goes there, who may see it, and that no token is anywhere."""

import json
import os
import subprocess
import sys

import pytest

from ibtpo import run_facts
from ibtpo.config import resolve
from ibtpo.errors import UserError
from ibtpo.push import Target, _said
from tests.config_cases import runnable
from tests.fake_hub import serving

PUSH = """
import sys
from ibtpo.errors import RunFailure, UserError
from ibtpo.push import Target
id, public, folder = sys.argv[1:]
try:
    target = Target.checked(id, public=public == "public")
    if folder == "gone":
        from ibtpo import hub
        hub.library().HfApi.upload_folder = lambda *_, **__: 1 / 0
    print(target.upload(folder))
except (UserError, RunFailure) as error:
    print(f"{type(error).__name__}: {error}")
"""
SECRET = "hf_secret"


@pytest.fixture
def server():
    with serving(token=SECRET) as found:
        yield found


@pytest.fixture
def push(server, tmp_path, repo_root):
    """push(id, "public" or "", folder, environment) gives what is printed."""

    def call(id="me/model", public="", folder=None, token=SECRET, **more):
        environment = server.environment(tmp_path / "home", PYTHONPATH=str(repo_root), **more)
        environment |= {"HF_TOKEN": token} if token else {}
        line = [sys.executable, "-c", PUSH, id, public, str(folder or tmp_path / "out")]
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr and done.stdout.count("\n") == 1
        return done.stdout.strip()

    return call


@pytest.fixture
def out(tmp_path):
    """A folder as an export leaves it, with things of somebody else in it."""
    files = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}", "README.md": "# card"}
    files |= {"notes.pdf": "mine", ".git/config": "mine", ".hidden.json": "mine"}
    files |= {"additional_chat_templates/a.jinja": "a"}
    for name, text in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    return tmp_path / "out"


WRITTEN = ["README.md", "additional_chat_templates/a.jinja", "config.json", "model.safetensors", "tokenizer.json"]


def test_an_export_is_uploaded_and_private(server, push, out):
    assert push() == f"{server.url}/me/model (private)"
    found = server.uploaded["models", "me/model"]
    assert found["private"] is True and sorted(found["files"]) == WRITTEN
    assert found["files"]["model.safetensors"] == b"weights"
    assert not any(SECRET.encode() in content for content in found["files"].values())
    # Again, over the first: weights of then that are not of now are gone, and what others put there is not.
    (out / "model.safetensors").rename(out / "model-00001-of-00001.safetensors")
    found["files"]["LICENSE"] = b"theirs"
    assert push().endswith("(private)")
    names = [name.replace("model.", "model-00001-of-00001.") for name in WRITTEN]
    assert sorted(found["files"]) == sorted([*names, "LICENSE"])


def test_public_only_where_it_is_asked_for(server, push, out):
    assert push(public="public") == f"{server.url}/me/model"
    assert server.uploaded["models", "me/model"]["private"] is False
    asked, said = len(server.asked), push()
    assert said == (
        "UserError: --push=me/model: that model is public: give --public to write to it, or choose another name"
    )
    assert not any(method == "POST" for method, _ in server.asked[asked:])


def test_what_keeps_it_from_being_uploaded_is_said_before_anything_is_computed(server, push):
    login = "log in with `hf auth login`"
    assert push(token="") == f"UserError: --push=me/model: no token: {login}, or set HF_TOKEN"
    for more in ({"token": "hf_wrong"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        said = push(**more)
        assert said.startswith("UserError: --push=me/model: the hub does not take the token, or cannot be reached (")
        assert login in said and "hf_wrong" not in said
    assert push(id="model").startswith("UserError: --push='model' is no name of a model on the hub: give user/name")
    assert server.uploaded == {}


def test_an_upload_that_fails_leaves_the_folder_and_says_how_to_go_on(server, push):
    said = push(folder="gone")
    assert said.startswith("RunFailure: --push=me/model: gone is written and was not uploaded (ZeroDivisionError")
    assert "`hf upload me/model gone . --private`" in said


def test_public_belongs_to_push():
    assert Target.checked(None, public=False) is None
    with pytest.raises(UserError, match="--public belongs to --push"):
        Target.checked(None, public=True)


def test_nothing_like_a_token_is_said():
    said = _said(RuntimeError("401 for hf_AbCdEf0123 with Bearer abc.def"))
    assert "hf_" not in said and "abc.def" not in said and "401 for" in said


def test_export_refuses_before_it_loads_anything(repo_root, tmp_path):
    (tmp_path / "w").mkdir()
    line = [sys.executable, "-m", "ibtpo.export", "--config=tiny", "--workdir=w", "--out=out", "--push=nobody"]
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --push='nobody' is no name of a model on the hub")
    assert not (tmp_path / "out").exists()


# --- what a card says -----------------------------------------------------------------------------------------------


def configured(**changes):
    return resolve(runnable(**changes))


def test_facts_of_a_run_on_ids_of_the_hub():
    commit, other = "a" * 40, "b" * 40
    config = configured(
        model__path="Qwen/Qwen3-0.6B", model__revision=f"main@{commit}", method="grpo", data__source="hf:me/sums",
        data__revision=f"v1@{other}",
    )  # fmt: skip
    rows = run_facts.facts(config, 1234)
    assert rows["Base model"] == "Qwen/Qwen3-0.6B" and rows["Revision"] == f"`{commit}`" and rows["Updates"] == "1,234"
    assert rows["Method"] == "grpo" and rows["Problems"] == f"me/sums@{other}"
    assert run_facts.base_id(config.model) == "Qwen/Qwen3-0.6B" and run_facts.data_id(config.data) == "me/sums"


@pytest.mark.parametrize(
    ("source", "shown", "id"),
    [
        ("tfds:gsm8k", "GSM8K", "openai/gsm8k"), ("tfds:amc_2024", "AMC 24", ""), ("jsonl:/home/x.json", "x.json", ""),
        ("tfds:navigation", "tfds:navigation", ""), ("reasoning_gym:chain_sum", "reasoning_gym:chain_sum", ""),
    ],
)  # fmt: skip
def test_problems_are_named_without_a_folder(source, shown, id):
    data = configured(data__source=source).data
    assert run_facts.problems(data) == shown and run_facts.data_id(data) == id


def test_the_configuration_of_a_card_says_nothing_of_a_machine():
    config = configured(
        model__path="/home/me/models/mine", data__source="jsonl:/home/me/train.jsonl", data__dir="/home/me/data",
        data__files="/home/me/files", checkpoint__dir="gs://mine/x", log__project="home", compilation_cache="/home/c",
        data__decontaminate="math_500, jsonl:/home/me/test.jsonl",
    )  # fmt: skip
    shown = json.loads(run_facts.shown_config(config))
    assert "/home" not in json.dumps(shown) and "gs://" not in json.dumps(shown)
    assert shown["model.path"] == "mine" and shown["data.source"] == "jsonl:train.jsonl"
    assert shown["data.decontaminate"] == "math_500, jsonl:test.jsonl"
    assert shown["tree.beta"] == 5.0 and shown["method"] == "ibtpo"
    assert not any(key.startswith(("log.", "checkpoint.", "mesh.")) for key in shown)


def test_metrics_of_the_exported_update(tmp_path):
    config = configured()

    def row(step, accuracy):
        bounds = {"eval/avg_low": accuracy - 0.1, "eval/avg_high": accuracy + 0.1}
        return {"step": step, "eval/avg_at_k": accuracy, "eval/k": 8, **bounds}

    assert run_facts.metrics(config, tmp_path, 4) == {}
    rows = [row(0, 0.4), {"step": 1, "train/loss": 1.0}, row(2, 0.5), row(4, 0.6), row(6, 0.7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert run_facts.metrics(config, tmp_path, 5) == {
        "Held out": "update 0: held-out avg@8 = 40.0 %, 95 % interval 30.0 .. 50.0; "
        "update 4: held-out avg@8 = 60.0 %, 95 % interval 50.0 .. 70.0"
    }
    (tmp_path / "evaluation").mkdir()
    summary = {"k": 4, "questions": 1319, "avg_at_k": 0.5, "avg_low": 0.4, "avg_high": 0.6}
    content = {"checkpoint": {"path": "x", "step": 5}, "benchmarks": {"gsm8k": summary}}
    (tmp_path / "evaluation" / "summary.json").write_text(json.dumps(content))
    found = run_facts.metrics(config, tmp_path, 5)
    assert found["Evaluation: gsm8k"] == "1,319 questions; avg@4 50.0 % (40.0 .. 60.0)"
    assert "Evaluation: gsm8k" not in run_facts.metrics(config, tmp_path, 4)  # of another update
