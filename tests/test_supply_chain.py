"""What is installed is what was locked, and nothing that a run reads is run: no pickle, no code of a checkpoint, model
or data set."""

import ast
import json
import pathlib
import pickle
import re

import pytest

from ibtpo import config as config_lib
from ibtpo.config import ConfigError
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.errors import UserError
from ibtpo.models import hf

ROOT = pathlib.Path(__file__).parents[1]
MODEL = ROOT / "assets" / "qwen3-tiny"
SOURCES = sorted(file for folder in ("ibtpo", "configs", "benchmarks") for file in (ROOT / folder).rglob("*.py"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """{package: version} of a list of requirements; one may be there with several markers, but with one version."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def locked() -> list[str]:
    """The entries of the lock, each with its continuation lines."""
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    return [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]


def test_the_lock_holds_the_pins_and_every_package_has_hashes():
    own, all_of_them = pins("requirements.txt"), pins("requirements.lock")
    assert len(own) > 15 and len(all_of_them) > len(own)
    assert {name: all_of_them.get(name) for name in own} == own
    assert len(locked()) >= len(all_of_them)
    for entry in locked():
        assert re.match(r"[A-Za-z0-9_.-]+==\S+( ; [^\\]+)? \\\n", entry), entry
        assert re.findall(r"--hash=(\w+):", entry) and set(re.findall(r"--hash=(\w+):", entry)) == {"sha256"}, entry


def test_the_lock_names_no_place_to_fetch_from():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "index-url" not in text and "find-links" not in text and " @ " not in text


def test_make_env_installs_with_hashes():
    makefile = (ROOT / "Makefile").read_text()
    assert "REQUIREMENTS ?= requirements.lock" in makefile and "--require-hashes" in makefile


FORBIDDEN = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_unpickles_or_runs_text(file):
    """Of the peers' benchmarks, which run in environments of their own, only the peers' sides import torch."""
    allowed = {"torch"} if (ROOT / "benchmarks" / "peers") in file.parents else set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & (FORBIDDEN - allowed)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN - allowed
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            assert name not in ("eval", "exec")
            for keyword in node.keywords:
                assert keyword.arg != "trust_remote_code"
                assert keyword.arg != "allow_pickle" or keyword.value.value is False


@pytest.fixture
def canary(tmp_path):
    """A file that is there once code has run that should not."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def model_with(tmp_path: pathlib.Path, canary: pathlib.Path) -> pathlib.Path:
    """A copy of the tiny model with code beside it that leaves the canary."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code = f"open({str(canary)!r}, 'w')\nclass Model: pass\nclass Tokenizer: pass\nclass Config: pass\n"
    for name in ("modeling.py", "tokenization.py", "configuration.py", "__init__.py", "setup.py"):
        (folder / name).write_text(code)
    return folder


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_of_a_model_is_refused_and_not_run(tmp_path, canary):
    folder = model_with(tmp_path, canary)
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"] = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="auto_map"):
        hf.load(folder)


def test_code_of_a_tokenizer_is_not_run(tmp_path, canary):
    folder = model_with(tmp_path, canary)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", "tokenization.Tokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        return
    assert tokenizer.encode("1") == load_tokenizer(MODEL).encode("1")


def test_pickled_weights_are_not_read(tmp_path, canary):
    folder = model_with(tmp_path, canary)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is of another format"):
        hf.load(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="no safetensors file"):
        hf.load(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% import 'os' as os %}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(template):
    from ibtpo.data.prompts import apply_chat_template

    tokenizer = load_tokenizer(MODEL)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="chat template"):
        apply_chat_template(tokenizer, [{"role": "user", "content": "1 + 1"}], "set data.chat_template=False")


def test_the_saved_configuration_of_a_run_is_data(tmp_path, canary):
    """A run's folder may come from others: its config.json is JSON, whatever it holds, and a config.py is ignored."""
    (tmp_path / "config.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (tmp_path / "config.json").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(ConfigError, match="is damaged"):
        config_lib.load_saved(str(tmp_path))
    (tmp_path / "config.json").write_text('{"train": {"steps": 3}}')
    assert config_lib.load_saved(str(tmp_path)).train.steps == 3
