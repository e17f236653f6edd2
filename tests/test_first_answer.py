"""The first answer of a command comes before anything heavy is imported: help, a slip of the pen, a missing folder."""

import os
import subprocess
import sys

import pytest

HEAVY = (
    "etils", "flax", "grain", "huggingface_hub", "jax", "jaxlib", "math_verify", "matplotlib", "optax", "orbax",
    "pyarrow", "scipy", "sympy", "tensorboardX", "tensorflow_datasets", "tokenizers", "torch", "transformers",
)  # fmt: skip
# Runs a command as python -m does, and says which of these packages it has imported.
WATCH = """
import runpy, sys
module, heavy = sys.argv[1], sys.argv[2].split(",")
sys.argv[1:] = sys.argv[3:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported:", *[name for name in heavy if name in sys.modules])
"""
COMMANDS = ("train", "evaluate", "filter", "export", "report", "sft", "compile_check")
CONFIG = {"report": [], "sft": ["--config=tiny_sft"]}


def ask(module, arguments, folder, repo_root):
    """(exit code, what was printed but for the last line, what was said, what was imported)."""
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    line = [sys.executable, "-c", WATCH, module, ",".join(HEAVY), *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    *printed, imported = done.stdout.splitlines()
    return done.returncode, "\n".join(printed), done.stderr, imported.split()[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command, repo_root, tmp_path):
    code, printed, said, imported = ask(f"ibtpo.{command}", ["--help"], tmp_path, repo_root)
    assert code == 0 and "usage: " in printed and said == ""
    assert imported == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_imports_nothing_heavy(command, repo_root, tmp_path):
    arguments = [*CONFIG.get(command, ["--config=tiny"]), "--workdir=w", "--chekpnt=x"]
    code, printed, said, imported = ask(f"ibtpo.{command}", arguments, tmp_path, repo_root)
    assert code == 2 and printed == "" and "chekpnt" in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert imported == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module, arguments, words",
    [
        ("ibtpo", ["train", "--config=tyni", "--workdir=w"], "did you mean 'tiny'?"),
        ("ibtpo", ["train", "--workdir=w"], "--config is missing"),
        ("ibtpo", ["train", "--config=tiny"], "--workdir is missing"),
        ("ibtpo", ["train", "--config=tiny", "--workdir=w", "--config.tree.beta=-1"], "tree.beta=-1.0"),
        ("ibtpo", ["train", "--config=tiny", "--workdir=w", "--config.train.stps=3"], "nearest valid key"),
        ("ibtpo", ["train", "--config=tiny", "--workdir=w", "--config.mesh.fsdp=-1"], "only one axis"),
        ("ibtpo", ["evaluate", "--config=tiny", "--checkpoint=runs/nope"], "--checkpoint=runs/nope: there is no such"),
        ("ibtpo", ["filter", "--config=tiny", "--workdir=w", "--samples=0"], "--samples=0: at least one response"),
        ("ibtpo", ["filter", "--config=tiny", "--workdir=w", "--low=0.8", "--high=0.2"], "--low=0.8 --high=0.2: "),
        ("ibtpo", ["export", "--config=tiny", "--workdir=nope", "--out=o"], "--workdir=nope: there is no such folder"),
        ("ibtpo", ["sft", "--config=tiny", "--workdir=w"], "unknown key"),
        ("ibtpo", ["compile-check", "--config=tiny"], "--topology is missing"),
    ],
)
def test_what_is_wrong_is_said_before_anything_heavy_is_imported(module, arguments, words, repo_root, tmp_path):
    code, printed, said, imported = ask(module, arguments, tmp_path, repo_root)
    assert code == 2 and printed == "" and words in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert imported == [] and list(tmp_path.iterdir()) == []
