"""Checkpoints are known by their place and their content."""

import json
import pathlib

import pytest

from ibtpo import hub
from ibtpo.errors import UserError
from ibtpo.evaluation.checkpoint import identify, open_checkpoint


def test_checkpoints_are_told_apart(tmp_path, tiny_model_dir):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    first = identify(tmp_path)
    assert first == identify(tmp_path) != identify(tiny_model_dir)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert identify(tmp_path) != first
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither a run .*checkpoint\.dir.*nor a Hugging Face model"):
        identify(tmp_path)


def test_a_run_is_known_by_its_folder_of_checkpoints(tmp_path):
    (tmp_path / "bucket" / "7").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"checkpoint": {"dir": str(tmp_path / "bucket")}}))
    expected = {"path": str(tmp_path / "bucket"), "step": 7}
    assert identify(tmp_path / "run") == identify(tmp_path / "bucket") == expected


def test_an_id_of_the_hub_is_fetched_and_its_folder_opened(tiny_config, tiny_model_dir, monkeypatch):
    """As `ibtpo evaluate` and `ibtpo filter` do it, model.path being the id."""
    commit = "0" * 40
    monkeypatch.setattr(hub.Repo, "pin", lambda self, asked: f"{asked or 'main'}@{commit}")
    monkeypatch.setattr(hub.Repo, "folder", lambda self, revision, patterns: pathlib.Path(tiny_model_dir))
    config = tiny_config(model__path="owner/name")
    path, identity, policy, _ = open_checkpoint(config, config.model.path)
    assert path == str(tiny_model_dir) == identity["path"] and "weights" in identity
    assert policy.model.num_params > 0
