"""The benchmark of pods, but for the compiler: its pods are configs, its processes as long as they say."""

import jax
import numpy as np
import pytest

from benchmarks import pods
from ibtpo.models.presets import PRESETS


@pytest.mark.parametrize("pod", pods.PODS)
def test_every_pod_is_a_config_for_as_many_chips(pod):
    name, topology = pod.split("@")
    config = pods.load(name, pods.PODS[pod])
    chips = np.prod([int(n) for n in topology.split(":")[1].split("x")])
    assert chips % (config.mesh.fsdp * config.mesh.tensor) == 0
    assert config.model.preset in PRESETS
    assert config.sampling.questions_in_flight == config.sampling.pages == 0  # sized by themselves


def test_the_processes_have_the_lengths_that_goals_are_for():
    for name, mean in ((pods.PAPERS, 12_035 / 12), (pods.LOG_NORMAL, 940)):
        process = pods.processes(0)[name]
        plans = [process.respond(question, 0, [process.begin(question)]) for question in range(600)]
        lengths = np.array([len(plan.kinds) for plan in plans]) * process.unit_tokens
        assert abs(lengths.mean() - mean) < 4 * lengths.std() / np.sqrt(len(lengths)) + 2 * process.unit_tokens


def test_a_pods_figures_and_goals(monkeypatch):
    """On this machine's compiler, told to be a chip, with the tiny model."""
    from ibtpo.compiler import check as check_lib
    from ibtpo.compiler.chips import CHIPS, Chip
    from tests.compiler.small import MODEL, small

    device = jax.devices()[0]
    monkeypatch.setitem(CHIPS, device.device_kind, Chip("test", 1e12, 1e9, 1e11, 1e10))
    monkeypatch.setattr(check_lib, "load_model_config", lambda config: MODEL)
    monkeypatch.setattr(check_lib, "get_devices", lambda topology: [device])
    monkeypatch.setattr(check_lib, "usable_hbm", lambda device: 1e9)
    monkeypatch.setattr(pods, "load", lambda name, changes: small(tree__min_new_tokens=1))
    found = pods.run(["qwen7b@v5e:4x4"], lambda text: None)
    of_pod = found["figures"]["qwen7b@v5e:4x4"]
    assert 0 < of_pod["fullest_program"] < 1 and of_pod[pods.PAPERS]["preemptions"] == 0
    assert [goal["goal"] for goal in found["goals"]] == [1.45, 0.85, 1.2, 0.85, 1.25]
    assert all(goal["met"] == (goal["value"] >= goal["goal"]) for goal in found["goals"][:-1])
