"""The command that compiles for absent chips, as a user sees it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ibtpo.compile_check", "--config=configs/tiny.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
    result = command("--topology=v5e:2x2")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error:") and "requirements-tpu.txt" in line


def test_a_missing_topology_is_asked_for():
    result = command()
    assert result.returncode == 2 and "--topology is missing" in result.stderr and "v5e:4x4" in result.stderr


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu (requirements-tpu.txt)")
def test_the_command_compiles_for_a_tpu():
    result = command(
        "--topology=v5e:2x2",
        "--json",
        "--programs=serve,start,decode",
        "--config.mesh.data=-1",
        "--config.mesh.tensor=2",
        "--config.sampling.pages=512",
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    assert report["chips"] == 4 and report["mesh"] == {"data": 2, "fsdp": 1, "tensor": 2}
    assert set(report["programs"]) == {"serve", "start", "decode"}
    assert report["decode_step"]["bytes"] > 0 and report["capacity"]["pages"] > 512
    assert {"name", "value", "goal", "met"} == set(report["goals"][0])
