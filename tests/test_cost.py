"""Rates of a step against counts by hand, and memory where the backend says it."""

import jax
import numpy as np
import pytest

from ibtpo.compiler.chips import CHIPS, peak_flops
from ibtpo.compiler.model import matmul_params
from ibtpo.metrics import cost
from ibtpo.metrics.cost import StepCost, device_memory, work
from ibtpo.models.lora import LoraOptions
from ibtpo.models.presets import PRESETS
from ibtpo.tree import Response, build_tree, stack_trees

MODEL = PRESETS["Qwen/Qwen3-8B"]


def trees():
    """Two trees: 2 + 3 tokens of a prompt and one response; the same with a second response that forks behind its first
    token, and has two of its own."""
    nothing = np.zeros(3, np.float32)
    first = Response(0, -1, 0, 0, np.zeros(3, np.int32), nothing, "length", 0.0)
    second = Response(1, 0, 1, 1, np.zeros(3, np.int32), nothing, "length", 1.0)
    return stack_trees([build_tree([0, 0], each, lambda _: range(1, 3)) for each in ([first], [first, second])])


def test_work_counts_unique_tokens_and_what_each_sees():
    chain, fork = 5 * 6 // 2, 5 * 6 // 2 + 4 + 5  # the fork's two tokens see prompt, first token, and themselves
    assert work(trees(), [True, False]).tolist() == [5, chain]
    assert work(trees(), [True, True]).tolist() == [12, chain + fork]
    assert work(trees(), [False, False]).tolist() == [0, 0]


def test_rates_are_over_their_own_seconds():
    found = StepCost(MODEL, 2, 1e15).metrics(trees(), [True, True], 300, {"sample_s": 3.0, "update_s": 0.5})
    assert found["time/sampled_tokens_per_s"] == 100 and found["time/trained_tokens_per_s"] == 48
    pairs = 15 + 24
    flops = 6 * matmul_params(MODEL) * 24 + 12 * MODEL.head_dim * MODEL.num_heads * MODEL.num_layers * 2 * pairs
    assert found["time/mfu"] == pytest.approx(flops / (0.5 * 1e15))


def test_frozen_weights_need_no_gradient_of_their_own(tiny_config, monkeypatch):
    """Counted matrix by matrix, as multiply-adds of forward pass, inputs' gradient and weights' gradient."""
    adapters = LoraOptions(16, 32.0, "attention")
    found = StepCost(MODEL, 1, 1e15, adapters).metrics(trees(), [True, False], 1, {"sample_s": 1.0, "update_s": 0.5})
    D, heads, kv = MODEL.embed_dim, MODEL.num_heads * MODEL.head_dim, MODEL.num_kv_heads * MODEL.head_dim
    frozen = MODEL.num_layers * (2 * D * heads + 2 * D * kv + 3 * D * MODEL.mlp_dim) + MODEL.vocab_size * D
    own = MODEL.num_layers * 16 * ((D + heads) * 2 + (D + kv) * 2)  # A and B of q, k, v and o
    attention = 3 * 2 * 2 * MODEL.head_dim * MODEL.num_heads * MODEL.num_layers * 15
    assert found["time/mfu"] == pytest.approx((5 * 2 * (2 * frozen + 3 * own) + attention) / (0.5 * 1e15))
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    config = tiny_config(model__dtype="bfloat16", model__lora_rank=4, model__lora_targets="mlp")
    assert StepCost.from_config(config, MODEL).adapters == LoraOptions(4, 32.0, "mlp")
    assert StepCost.from_config(tiny_config(model__dtype="bfloat16"), MODEL).adapters is None


def test_without_a_known_peak_there_is_no_mfu():
    found = StepCost(MODEL, 1, None).metrics(trees(), [False, False], 3, {"sample_s": 0.0, "update_s": 0.0})
    assert "time/mfu" not in found and found["time/trained_tokens_per_s"] == 0


class Device:
    device_kind = "NVIDIA H100 80GB HBM3"

    def __init__(self, stats=None):
        self.memory_stats = lambda: stats


def test_the_peak_is_that_of_all_devices_in_the_type_it_is_published_for(monkeypatch, tiny_config):
    monkeypatch.setattr(jax, "devices", lambda: [Device(), Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert StepCost.from_config(tiny_config(model__dtype="bfloat16"), MODEL).peak == 2 * 989e12
    assert StepCost.from_config(tiny_config(), MODEL).peak is None  # float32


@pytest.mark.parametrize(
    "kind, peak",
    [
        *((kind, chip.flops) for kind, chip in CHIPS.items()),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A1000", None),
        ("NVIDIA H100 80GB", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_only_known_devices_have_a_peak(kind, peak):
    assert peak_flops(kind) == peak


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    stats = [{"peak_bytes_in_use": 30, "bytes_limit": 100}, {"peak_bytes_in_use": 40}, None, {}]
    monkeypatch.setattr(cost.jax, "local_devices", lambda: [Device(each) for each in stats])
    assert device_memory() == {"memory/peak_bytes": 40, "memory/peak_share": 0.3}
    monkeypatch.setattr(cost.jax, "local_devices", lambda: [Device(None)])
    assert device_memory() == {}
