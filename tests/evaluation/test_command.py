"""The command, as a user calls it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from configs import base
from ibtpo import evaluate
from ibtpo.config import ConfigError
from tests.evaluation.cases import read_lines


def command(repo_root, *arguments, module="ibtpo.evaluate"):
    program = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling is most of the time
    return subprocess.run(program, cwd=repo_root, env=environment, capture_output=True, text=True)


def test_the_command_on_real_problems_and_its_comparison(tiny_config, tiny_model_dir, shared_data, repo_root, tmp_path):
    changes = dict(data__files=str(shared_data), data__max_prompt_tokens=464, eval__questions=3, train__row_tokens=0)
    config = tiny_config(sampling__slots=2, sampling__max_new_tokens=16, tree__min_new_tokens=8, **changes)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    options = [
        f"--config={tmp_path / 'config.json'}",
        f"--checkpoint={tiny_model_dir}",
        f"--workdir={tmp_path}/results",
    ]
    # Rows of training, which hold none of these prompts, are no limit here.
    options += ["--config.train.row_tokens=64", "--config.eval.benchmarks=amc_2023,gsm8k"]
    done = command(repo_root, *options)
    assert done.returncode == 0, done.stderr
    for name in ("amc_2023", "gsm8k"):
        assert f"{name}: 3 questions, 2 responses each" in done.stdout
        assert len(read_lines(tmp_path / "results", name)) == 6
    assert str(tmp_path / "results" / "index.html") in done.stdout
    done = command(repo_root, f"--compare={tmp_path / 'results'}", f"--compare={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    assert "gsm8k, 3 questions" in done.stdout and "mean of 2 benchmarks" in done.stdout
    changes = [line.split()[-4:] for line in done.stdout.splitlines() if line.startswith("avg@2")]
    assert changes == [["pp", "0.0", "..", "0.0"]] * 3


def test_what_is_wrong_with_a_comparison_is_one_line(tmp_path, capsys):
    for arguments, message in (
        ([f"--compare={tmp_path}", f"--compare={tmp_path}"], f"error: --compare={tmp_path}: no evaluation there"),
        ([f"--compare={tmp_path}"], "must be given twice, not 1 times"),
        ([f"--compare={tmp_path}", "--config=configs/tiny.py"], "unrecognized arguments: --config"),
    ):
        with pytest.raises(SystemExit) as ended:
            evaluate.compare(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_its_flags_are_its_own(repo_root, tmp_path):
    done = command(
        repo_root, "--config=configs/tiny.py", f"--workdir={tmp_path}/run", "--checkpoint=runs/x", module="ibtpo.train"
    )
    assert done.returncode == 2 and "Unknown command line flag 'checkpoint'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_needs_no_model_imports_no_jax(repo_root):
    modules = ("results", "tables", "files", "page", "compare", "estimators", "benchmarks")
    script = f"""if True:
        import sys, ibtpo.evaluate
        for name in {modules}:
            __import__("ibtpo.evaluation." + name)
            assert not {{"jax", "flax", "orbax"}} & set(sys.modules), name
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_model_beside_the_checkpoint_is_found(tiny_model_dir, tmp_path, monkeypatch):
    """In a Hugging Face folder, on the hub, or in the configuration of a workdir; one that the configuration names
    stays."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir(), other.mkdir()
    model = {"path": "models/mine", "revision": "v1"}
    (run / "config.json").write_text(json.dumps(base.get_config().to_dict() | {"model": model}))
    for checkpoint, given, expected in (
        (tiny_model_dir, "", str(tiny_model_dir)),
        (run, "", "models/mine"),
        (run, "models/other", "models/other"),
        (tiny_model_dir, "models/other", "models/other"),
        ("hf:owner/name", "", "owner/name"),
        ("hf:owner/name", "models/other", "models/other"),
        (other, "", None),
    ):
        config = base.get_config()
        config.model.path, config.data.source = given, "tfds:gsm8k"
        monkeypatch.setattr(evaluate, "_CHECKPOINT", SimpleNamespace(value=str(checkpoint)))
        if expected is None:
            with pytest.raises(ConfigError, match=r"model\.path='' must be a folder in Hugging Face format"):
                evaluate.resolve(config)
        else:
            resolved = evaluate.resolve(config).model
            assert resolved.path == expected and resolved.revision == ("v1" if expected == "models/mine" else "")
