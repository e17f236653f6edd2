"""Two processes, connected by jax.distributed over loopback, train as one does."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tiny
from ibtpo import checkpoints, metrics, parallel, saved_trees
from ibtpo import config as config_lib
from ibtpo.policy import load_policy

# Compiling is nearly all of the cost. Trees have as many responses as questions of an evaluation, and so share their
# programs; four devices have a slot each, and a single one two: fewer widths of decoding.
CHANGES = {
    "data.limit": 64,
    "tree.initial": 3,
    "tree.rounds": 3,
    "sampling.max_new_tokens": 48,
    "sampling.slots": 4,
    "sampling.questions_in_flight": 4,
    "train.steps": 3,
    "train.questions_per_step": 4,
    "train.row_tokens": 512,
    "train.rows_per_step": 4,
    "mesh.fsdp": 2,
    "eval.every": 3,
    "eval.questions": 4,
    "eval.samples": 5,
    "checkpoint.every": 3,
    "log.tensorboard": "false",
    "reward.workers": 1,
}
SINGLE = {"mesh.fsdp": 1, "sampling.slots": 2}


def train(repo_root, model_dir, workdir, changes, *, devices, processes=1):
    """Runs the training command in `processes` processes with `devices` CPU devices each."""
    flags = CHANGES | {"model.path": model_dir, "data.dir": repo_root / "build" / "tfds"} | changes
    command = ["-m", "ibtpo.train", "--config=configs/tiny.py", f"--workdir={workdir}-PROCESS"]
    command += [f"--config.{key}={value}" for key, value in flags.items()]
    return run_python(repo_root, command, devices=devices, processes=processes, timeout=600)


def run_python(repo_root, arguments, *, devices, processes, timeout):
    """(exit codes, outputs) of connected Python processes; PROCESS in an argument is the number of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for index in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        command = [sys.executable, *(argument.replace("PROCESS", str(index)) for argument in arguments)]
        running.append(
            subprocess.Popen(
                command, cwd=repo_root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], outputs


@pytest.fixture(scope="module")
def runs(repo_root, tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multihost")
    for name, devices, processes in (("one", 1, 1), ("two", 2, 2)):
        changes = {"checkpoint.dir": folder / name / "checkpoints"} | (SINGLE if name == "one" else {})
        codes, outputs = train(repo_root, tiny_model_dir, folder / name, changes, devices=devices, processes=processes)
        assert codes == [0] * processes, outputs
    return folder


def parameters(folder, tiny_model_dir):
    config = tiny.get_config()
    config.model.path = str(tiny_model_dir)
    like = load_policy(config_lib.resolve(config)).params
    return jax.tree.map(np.asarray, (like, checkpoints.load_params(folder / "checkpoints", like)))


def test_two_processes_end_with_the_parameters_of_one(runs, tiny_model_dir):
    start, one = parameters(runs / "one", tiny_model_dir)
    _, two = parameters(runs / "two", tiny_model_dir)
    moved = error = 0.0
    for a, b, c in zip(*map(jax.tree.leaves, (start, one, two))):
        moved += float(((b - a) ** 2).sum())
        error += float(((c - b) ** 2).sum())
    # Adam divides by the gradient's own size, so rounding shows where a gradient is nearly zero.
    assert moved > 0 and (error / moved) ** 0.5 < 1e-3


def test_two_processes_sample_and_grade_as_one(runs):
    one, two = (list(metrics.read(f"{runs / name}-0")) for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2, 3, 3]
    for a, b in zip(one, two):
        for name in ("train/avg_rate", "train/generated_tokens", "train/eff_rate", "eval/avg_at_k", "eval/mean_length"):
            assert a.get(name) == b.get(name), (a["step"], name)


def test_only_the_first_process_writes_the_files(runs):
    assert json.loads((runs / "two-0" / "config.json").read_text())["train"]["steps"] == 3
    assert (runs / "two-0" / "learning_curve.png").is_file() and (runs / "two-0" / "report.html").is_file()
    assert [step for step, *_ in saved_trees.list_files(runs / "two-0" / "trees")] == [0, 3, 3]
    assert not (runs / "two-1").exists()


def test_an_error_in_grading_ends_all_processes(repo_root):
    """And what they tell each other has one size."""
    command = ["-m", "tests.sampling.failing_grades"]
    codes, outputs = run_python(repo_root, command, devices=1, processes=2, timeout=180)
    assert codes == [0, 0], outputs
    zero, one = ([line for line in output.splitlines() if ": " in line] for output in outputs)

    def said(lines, name):
        [line] = [line for line in lines if line.startswith(f"{name}: ")]
        return line.removeprefix(f"{name}: ")

    other = r"RuntimeError: process {} could not grade response \d of question \d; it raises the error itself"
    assert said(one, "raises_on_1") == "ZeroDivisionError: the grader's own words"
    assert re.fullmatch(other.format(1).replace(r"question \d", "question 3"), said(zero, "raises_on_1"))
    assert said(zero, "fails_later_on_0") == "ZeroDivisionError: division by zero"
    assert re.fullmatch(other.format(0), said(one, "fails_later_on_0"))
    assert said(one, "no_probability_on_1").startswith("UserError: response ")
    assert re.fullmatch(other.format(1), said(zero, "no_probability_on_1"))
    rewards = said(zero, "rewards")
    assert said(one, "rewards") == rewards and "0.0" in rewards and "1.0" in rewards
    assert said(zero, "sizes") == said(one, "sizes") == "{(512,)}"


@pytest.mark.slow
def test_checkpoints_that_the_hosts_do_not_share_are_refused(repo_root, tiny_model_dir, tmp_path):
    changes = {"checkpoint.dir": tmp_path / "PROCESS"}  # a folder of its own for each
    codes, outputs = train(repo_root, tiny_model_dir, tmp_path / "run", changes, devices=2, processes=2)
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "is seen by 1 of 2 hosts only; set it to storage that all of them share" in output


def test_incomplete_addresses_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="JAX_PROCESS_ID='' must be a number"):
        parallel.initialize()
