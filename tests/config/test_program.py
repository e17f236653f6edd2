"""A program as a user runs it, in a process of its own."""

import json
import re
import subprocess
import sys

import pytest

from tests.config_cases import ROOT, TINY

PROGRAM = """'''A program.'''
import json, sys
from ibtpo import config as config_lib, errors
def main(config, workdir):
    if config.train.seed == 13:
        raise config_lib.ConfigError("found by the program")
    if config.train.seed == 14:
        raise errors.UserError("a file that\\n  cannot be used")
    if config.train.seed == 16:
        raise errors.RunFailure("the disk is full")
    if config.train.seed == 17:
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    if config.train.seed == 15:
        raise ValueError("a fault of the program")
    print(json.dumps({"config": config_lib.flatten(config), "workdir": workdir, "jax": "jax" in sys.modules}))
config_lib.run(main)
"""


def command(*arguments, cwd=ROOT, program=PROGRAM):
    """A program run as a user runs it; `python -c` puts the current directory on the path as `python -m` does."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_program_from_another_directory(tmp_path):
    """Absolute paths work from anywhere, the order of arguments is free, and nothing heavy is imported."""
    result = command("--config.train.steps=3", "--config", TINY, f"--workdir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    output = json.loads(result.stdout)
    assert output["workdir"] == str(tmp_path) and output["config"]["train.steps"] == 3
    assert not output["jax"]


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--workdir=w"], "--config is missing"),
        ([f"--config={TINY}"], "--workdir is missing"),
        ([f"--config={TINY}", "--workdir=w", "--config.train.stps=3"], "train.steps"),
        ([f"--config={TINY}", "--workdir=w", "--config.train.seed=13"], "found by the program"),
        ([f"--config={TINY}", "--workdir=w", "--config.train.seed=14"], "a file that cannot be used"),
    ],
)
def test_program_stops_with_one_line_and_code_2(arguments, part):
    result = command(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"error: .*\n", result.stderr) and part in result.stderr


def test_a_failed_machine_is_one_line_and_code_1():
    result = command(f"--config={TINY}", "--workdir=w", "--config.train.seed=16")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "error: the disk is full\n")


def test_a_fault_of_the_program_keeps_its_traceback():
    result = command(f"--config={TINY}", "--workdir=w", "--config.train.seed=15")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ValueError: a fault of the program" in result.stderr


def test_program_help():
    result = command("--help", f"--config={TINY}")
    assert result.returncode == 0
    assert result.stdout.startswith("A program.") and "--config.train.steps=" in result.stdout


def test_ctrl_c_is_one_line_and_code_130():
    result = command(f"--config={TINY}", "--workdir=w", "--config.train.seed=17")
    assert result.returncode == 130 and result.stdout == ""
    assert result.stderr == "interrupted: what was written is whole; run the same command again\n"
