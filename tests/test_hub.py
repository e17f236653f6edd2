"""Models and data sets by their id on the hub, against a server on this machine that plays it."""

import json
import os
import subprocess
import sys

import pytest

from ibtpo import hub
from ibtpo.config import ConfigError, check_same, resolve
from ibtpo.errors import UserError
from tests.config_cases import runnable
from tests.fake_hub import serving

ID, COMMIT, OTHER = "Qwen/Qwen3-0.6B", "a" * 40, "b" * 40


@pytest.fixture
def server():
    with serving() as found:
        yield found


def call(code, environment, folder, *arguments):
    """The finished process of Python code that may import the checkout, in `folder`."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    line = [sys.executable, "-c", code, *arguments]
    return subprocess.run(line, cwd=folder, env=environment | {"PYTHONPATH": root}, capture_output=True, text=True)


FETCH = """
import json, sys
from ibtpo import hub
from ibtpo.errors import UserError
from ibtpo.models.locate import configured_folder
found = []
for revision in sys.argv[2:]:
    try:
        model = {"path": sys.argv[1], "revision": hub.Repo.model(sys.argv[1]).pin(revision)}
        folder = configured_folder(model)
        found.append([model["revision"], str(folder), sorted(file.name for file in folder.iterdir())])
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def fetch(environment, folder, *revisions, id=ID):
    done = call(FETCH, environment, folder, id, *revisions)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def test_a_model_is_fetched_once_into_the_cache_and_used_from_there_without_a_network(server, tmp_path):
    own = {"config.json": b"{}", "model.safetensors": b"x" * 999, "tokenizer.json": b"[]", "chat_template.jinja": b"t"}
    others = {"original/model.safetensors": b"y", "pytorch_model.bin": b"z", "README.md": b"# card"}
    commit = server.add("models", ID, own | others)
    older = server.add("models", ID, own | {"config.json": b"{ }"}, "v1")
    [first, named] = fetch(server.environment(tmp_path / "home"), tmp_path, "", "v1")
    assert first[0] == f"main@{commit}" and named[0] == f"v1@{older}"
    assert first[1].endswith(commit) and first[2] == named[2] == sorted(own)
    asked = len(server.asked)
    offline = server.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert fetch(offline, tmp_path, "", "v1", f"main@{commit}", older) == [first, named, first, [older, *named[1:]]]
    assert len(server.asked) == asked
    # Where nobody forbade it, it is said that the hub was not asked.
    done = call(FETCH, server.environment(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9"), tmp_path, ID, "")
    assert json.loads(done.stdout) == [first] and done.stderr.count("\n") == 1
    assert "the hub cannot be asked (" in done.stderr and f"as the cache knows it, {commit}" in done.stderr
    # The name means another commit now; a pin does not.
    newer = server.add("models", ID, own | {"config.json": b"{\n}"})
    [moved, kept] = fetch(server.environment(tmp_path / "home"), tmp_path, "", f"main@{commit}")
    assert moved[0] == f"main@{newer}" and kept == first


def test_what_cannot_be_fetched_is_one_line_with_the_way_out(server, tmp_path):
    command = f"`hf download {ID} --local-dir models/Qwen3-0.6B`"
    server.add("models", ID, {"config.json": b"{}"})
    server.gated.add("meta/Llama")
    missing, tagged = fetch(server.environment(tmp_path / "home"), tmp_path, "", "v9", id=ID.lower())
    assert "the hub has no model qwen/qwen3-0.6b" in missing and "hf auth login" in tagged
    [revision] = fetch(server.environment(tmp_path / "home"), tmp_path, "v9")
    assert "no revision 'v9': set model.revision" in revision
    [gated] = fetch(server.environment(tmp_path / "home"), tmp_path, "", id="meta/Llama")
    assert "is gated: accept its terms there and log in with `hf auth login`" in gated
    offline = server.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    away = server.environment(tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    [set_so], [no_network, at_tag, pinned] = fetch(offline, tmp_path, ""), fetch(away, tmp_path, "", "v1", COMMIT)
    assert "(HF_HUB_OFFLINE is set)" in set_so and "Connection refused" in no_network
    for said in (set_so, no_network):
        assert said.startswith(f"model.path={ID}: no folder of this name in {tmp_path}, and")
        assert command in said and said.endswith("set --config.model.path=models/Qwen3-0.6B") and "\n" not in said
    assert "--revision v1 " in at_tag and f"--revision {COMMIT} " in pinned


def test_of_several_processes_one_fetches(server, tmp_path):
    server.add("models", ID, {"config.json": b"{}", "model.safetensors": b"x" * 5000})
    server.seconds = 0.3
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = server.environment(tmp_path / "home") | {"PYTHONPATH": root}
    line = [sys.executable, "-c", FETCH, ID, ""]
    options = dict(cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(line, **options) for _ in range(3)]
    found = [json.loads(process.communicate()[0])[0] for process in processes]
    assert found[0] == found[1] == found[2] and found[0][2] == ["config.json", "model.safetensors"]
    assert [path for method, path in server.asked if method == "GET" and path.endswith("model.safetensors")] == [
        f"/{ID}/resolve/{found[0][0].split('@')[1]}/model.safetensors"
    ]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Qwen/Qwen3-0.6B", True), ("a/b", True), ("openai/gsm8k", True), ("x_y/z.w-v", True),
        ("gpt2", False), ("a/b/c", False), ("/abs/path", False), ("./x/y", False), ("../x", False), ("a/b--c", False),
        ("a/..", False), ("a /b", False), ("~/models", False), ("gs://bucket", False), ("a/-b", False), ("", False),
    ],
)  # fmt: skip
def test_the_form_of_an_id(name, is_one):
    assert hub.is_id(name) is is_one


def test_a_folder_of_that_name_wins_and_so_does_one_that_a_preset_is_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"path": ID, "preset": ""}
    assert hub.model_repo(model).id == ID
    assert hub.model_repo({**model, "preset": ID}).id == ID
    assert hub.model_repo({"path": "models/Qwen3-8B", "preset": "Qwen/Qwen3-8B"}) is None
    assert hub.model_repo({"path": "assets/qwen3-tiny"}) is hub.model_repo({"path": "models/Qwen3-8B"}) is None
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    assert hub.model_repo(model) is None


def configured(**changes):
    return resolve(runnable(**changes))


@pytest.fixture
def pinning(monkeypatch):
    """The hub's main is COMMIT; what was asked of it."""
    asked = []

    def pin(repo, revision):
        asked.append((repo.id, revision))
        return f"{revision or 'main'}@{COMMIT}"

    monkeypatch.setattr(hub.Repo, "pin", pin)
    return asked


def test_pins_of_a_new_run(pinning):
    config = configured(model__path=ID, data__source="hf:me/sums", data__revision="v1")
    found = hub.pins(config)
    assert found == {"model": f"main@{COMMIT}", "data": f"v1@{COMMIT}"}
    assert pinning == [(ID, ""), ("me/sums", "v1")]
    changed = hub.with_pins(config, found)
    assert changed.model.revision == f"main@{COMMIT}" and changed.data.revision == f"v1@{COMMIT}" and changed.is_locked
    assert config.model.revision == "" and hub.with_pins(config, {}) is config


@pytest.mark.parametrize("asked", ["", "main", COMMIT, f"main@{COMMIT}"])
def test_a_resumed_run_goes_on_with_its_pin_and_asks_nothing(asked, pinning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = configured(model__path=ID, model__revision=f"main@{COMMIT}").to_dict()
    config = configured(model__path=ID, model__revision=asked)
    for there in (False, True):  # also where a folder has that name by now: its content is compared elsewhere
        assert hub.with_pins(config, hub.pins(config, saved)).model.revision == f"main@{COMMIT}"
        if not there:
            (tmp_path / ID).mkdir(parents=True)
    assert pinning == []


@pytest.mark.parametrize("asked", ["v2", OTHER, f"main@{OTHER}"])
def test_another_revision_is_another_run(asked, pinning):
    saved = configured(model__path=ID, model__revision=f"main@{COMMIT}").to_dict()
    config = configured(model__path=ID, model__revision=asked)
    now = hub.with_pins(config, hub.pins(config, saved))
    with pytest.raises(ConfigError, match=r"model\.revision: 'main@a+' -> '"):
        check_same("w", saved, now.to_dict(), "choose another")


def test_a_run_from_before_there_were_revisions_goes_on(pinning):
    config = configured()
    saved = config.to_dict()
    del saved["model"]["revision"], saved["data"]["revision"], saved["data"]["subset"]
    check_same("w", saved, config.to_dict(), "choose another")
    assert hub.pins(config, saved) == {} and pinning == []


def test_a_data_set_that_cannot_be_fetched_has_its_own_command_and_key():
    said = hub.Repo.dataset("me/sums")._refusal(f"v1@{COMMIT}", ConnectionError("no route"))
    assert said.startswith("data.source=hf:me/sums: me/sums cannot be fetched from the hub (")
    assert f"`hf download me/sums --repo-type dataset --revision {COMMIT} --local-dir problems/sums`" in said
    assert said.endswith("set --config.data.files=problems/sums")


@pytest.mark.parametrize("value", ["-x", "a b", "v1@123", "../x", "a\n"])
def test_a_revision_of_no_such_form_is_refused(value):
    with pytest.raises(ConfigError, match=r"model\.revision=.* must be a branch, a tag or a commit"):
        configured(model__revision=value)


@pytest.mark.parametrize("source", ["hf:gsm8k", "hf:", "hf:a/b/c", "hf:a b/c", "hf:openai/gsm8k@main"])
def test_a_source_of_no_such_form_is_refused(source):
    with pytest.raises(ConfigError, match=r"data\.source=.*hf:<owner>/<name>"):
        configured(data__source=source)


def test_a_checkpoint_of_the_hub():
    model = {"path": ID, "preset": ""}
    assert hub.checkpoint_repo(model, f"hf:{ID}").key == "--checkpoint"
    assert hub.checkpoint_repo(model, ID).key == "model.path" and hub.checkpoint_repo(model, "runs/tiny") is None
    assert hub.checkpoint_repo(model, "hf:no") is None


@pytest.mark.slow
def test_commands_say_one_line_where_there_is_no_network(tmp_path, repo_root):
    """Each command that needs the model, as a user runs it."""
    environment = {"PYTHONPATH": str(repo_root), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    tiny = ["--config=tiny", f"--config.model.path={ID}", "--config.data.difficulty=easy"]
    commands = {"train": tiny, "sft": ["--config=tiny_sft", f"--config.model.path={ID}"]}
    for command, arguments in commands.items():
        line = [sys.executable, "-m", f"ibtpo.{command}", *arguments, "--workdir=w"]
        done = subprocess.run(line, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert done.stderr.startswith(f"error: model.path={ID}: ") and done.stderr.count("\n") == 1
        assert f"hf download {ID} --local-dir models/Qwen3-0.6B" in done.stderr
    assert not (tmp_path / "w").exists()


def test_sizes_of_a_published_model_are_known_without_asking(monkeypatch):
    from ibtpo.compiler.model import load_model_config

    monkeypatch.setattr(hub.Repo, "folder", lambda *_: pytest.fail("the hub was asked"))
    assert load_model_config(configured(model__path="Qwen/Qwen3-8B")).num_layers == 36
    monkeypatch.setattr(hub.Repo, "folder", lambda *asked: (_ for _ in ()).throw(UserError(str(asked[2]))))
    with pytest.raises(UserError, match=r"\['config\.json'\]"):
        load_model_config(configured(model__path="somebody/theirs"))


@pytest.mark.slow
def test_a_run_on_ids_of_the_hub_keeps_its_commits_when_resumed_evaluated_and_exported(
    server, tmp_path, repo_root, tiny_model_dir
):
    commit = server.add_folder("models", "me/tiny", tiny_model_dir)
    rows = [json.dumps({"question": f"Start with {i}. Add 1.", "answer": str(i + 1)}) for i in range(20)]
    files = {f"{split}.jsonl": "\n".join(rows).encode() for split in ("train", "test")}
    data = server.add("datasets", "me/sums", files)
    environment = server.environment(tmp_path / "home", PYTHONPATH=str(repo_root), JAX_PLATFORMS="cpu")
    small = ["train.questions_per_step=2", "eval.questions=2", "eval.samples=2", "eval.every=0", "checkpoint.every=1"]
    small += ["model.path=me/tiny", "data.source=hf:me/sums", "data.dir=data", "reward.workers=1", "log.trees=0"]
    small += ["compilation_cache=", "sampling.max_new_tokens=32", "sampling.slots=4", "train.row_tokens=640"]
    options = ["--config=tiny", *(f"--config.{change}" for change in small)]

    def command(name, *arguments, **more):
        line = [sys.executable, "-m", f"ibtpo.{name}", *options, *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = command("train", "--workdir=w", "--config.train.steps=1")
    assert f"me/tiny: revision main@{commit}\nhf:me/sums: revision main@{data}\n" in printed
    saved = json.loads((tmp_path / "w" / "config.json").read_text())
    assert saved["model"]["revision"] == f"main@{commit}" and saved["data"]["revision"] == f"main@{data}"
    # Both names mean something else now, which would be no model and no problems.
    server.add("models", "me/tiny", {"config.json": b"{}"})
    server.add("datasets", "me/sums", {"other.txt": b""})
    server.add("datasets", "me/sums", files, "older")
    printed = command("train", "--workdir=w", "--config.train.steps=2")
    assert "Continuing at update 1 of 2" in printed
    command("evaluate", "--checkpoint=w")  # whose problems come from the commit too
    command("export", "--workdir=w", "--out=out", HF_HUB_OFFLINE="1")
    printed = command("export", "--workdir=w", "--out=out", "--push=me/pushed", HF_TOKEN=server.token)
    assert f"pushed: {server.url}/me/pushed (private)" in printed
    pushed = server.uploaded["models", "me/pushed"]
    card = pushed["files"]["README.md"].decode()
    assert "| Base model | me/tiny |" in card and f"`{commit}`" in card and "# me/pushed\n" in card
    assert "base_model: me/tiny\ndatasets:\n- me/sums\n" in card and '"method": "ibtpo"' in card
    assert "| Evaluation: " in card and "; avg@2 " in card
    assert str(tmp_path) not in card and pushed["private"] and "model.safetensors" in pushed["files"]
    assert not any(server.token.encode() in content for content in pushed["files"].values())
    command("evaluate", "--checkpoint=hf:me/tiny", "--workdir=e", f"--config.model.revision={commit}",
            f"--config.data.revision={data}", HF_HUB_OFFLINE="1")  # fmt: skip
    assert commit in json.loads((tmp_path / "e" / "summary.json").read_text())["checkpoint"]["path"]
    options[:] = ["--config=tiny_sft", "--config.model.path=me/tiny", f"--config.model.revision={commit}"]
    options += ["--config.tokenizer=me/tiny", "--config.train.steps=1", "--config.output=fitted"]
    options += ["--config.optimizer.warmup_steps=0"]
    command("sft", "--workdir=s", HF_HUB_OFFLINE="1")
    assert (tmp_path / "fitted" / "model.safetensors").is_file()
