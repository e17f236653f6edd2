"""The sampler's benchmarks: what they compute from the measurements, and that they measure."""

import json
import math
import sys

import pytest

from benchmarks import engines as processes
from benchmarks import goals as computed
from benchmarks import gpu, gpu_sizes, sampler, workload

TINY = dict(vocab_size=512, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
PART_GOALS = {
    1: ["flat small: ratio to the better peer", "flat large: ratio to the better peer"],
    2: ["groups, prompt of 128 x 8 responses: ratio to the better peer"],
    3: [
        "ib (4,9,1,1): time per generated token / flat 12's",
        "ib (4,9,1,1): finished responses per second / flat 12's",
        "ib (4,3,4,1): time per generated token / flat 12's",
        "ib (4,3,4,1): finished responses per second / flat 12's",
    ],
    4: ["memory of ib (4,9,1,1): KV tokens in use / tokens held, pages of 8"],
    5: [
        "growth with questions: exponent",
        "growth with responses: exponent",
        "growth with tokens: exponent, attention's own growth included",
    ],
}


def silent(_):
    pass


@pytest.mark.parametrize("power", [0.0, 1.0, 1.3])
def test_exponent_is_the_slope_of_the_logarithms(power):
    sizes = [16, 32, 64, 256]
    assert computed.exponent(sizes, [0.3 * n**power for n in sizes]) == pytest.approx(power)
    # Least squares: noise that neither rises nor falls changes nothing.
    noisy = [n**power * f for n, f in zip([1, 2, 4, 8], [1.0, math.e, math.e, 1.0])]
    assert computed.exponent([1, 2, 4, 8], noisy) == pytest.approx(power)


def test_goals_are_met_from_the_right_side():
    assert computed.make_goal("a", 1.5, 1.5, at_least=True)["met"] is True
    assert computed.make_goal("a", 1.49, 1.5, at_least=True)["met"] is False
    assert computed.make_goal("a", 1.1, 1.1, at_least=False)["met"] is True
    assert computed.make_goal("a", 1.11, 1.1, at_least=False)["met"] is False
    # What counts is the value itself, not as it is shown.
    assert computed.make_goal("a", 1.10001, 1.1, at_least=False) == dict(name="a", value=1.1, goal=1.1, met=False)
    assert computed.make_goal("a", None, 1.5, at_least=True) == dict(name="a", value=None, goal=1.5, met=None)


def test_steps_end_behind_separators_and_at_the_end():
    import numpy as np

    separator = workload.SEPARATORS[0]
    assert workload.step_ends(np.array([100, separator, 200, separator])) == [2, 4]
    assert workload.step_ends(np.array([separator, 100])) == [1, 2]
    assert workload.step_ends(np.array([100, 0])) == [2]


@pytest.fixture
def engines(monkeypatch):
    """Engines that take a fixed time per token instead of computing: {command: seconds per token}."""
    speeds = {"ours": 1e-3, "transformers": 2e-3, "tunix": 4e-3}

    def run_jobs(command, jobs, devices=1):
        results = []
        for job in jobs:
            if isinstance(speeds[command[0]], str):
                raise processes.EngineError(speeds[command[0]])
            tree = job.get("tree", {})
            responses = tree.get("initial", 1) * job.get("questions", job.get("prompts"))
            tokens = responses * job["new_tokens"]
            # Trees of this engine finish six times as many responses for their tokens, which take twice the time.
            is_ib = tree.get("strategy") == "ib"
            seconds = tokens * speeds[command[0]] * (2 if is_ib else 1)
            stats = dict(
                generated_tokens=tokens, slot_steps=2 * tokens, tail_slot_steps=tokens, stall_seconds=seconds / 4
            )
            stats |= dict(responses=responses * (6 if is_ib else 1), preemptions=0, peak_pages=150)
            stats |= dict(tokens_at_peak=1000)
            results.append(
                dict(
                    name=job["name"],
                    seconds=[seconds, 100.0, 0.0],
                    tokens=tokens,
                    peak_rss_mb=100.0,
                    stats=stats,
                    lengths=dict(mean=9.0, p10=1, p50=8, p90=20),
                    versions={command[0]: "1.0"},
                )
            )
        return results

    monkeypatch.setattr(sampler, "run_jobs", run_jobs)
    monkeypatch.setattr(sampler, "our_command", lambda: ["ours"])
    monkeypatch.setattr(sampler, "peer_command", lambda name, log: [name])
    return speeds


def test_every_part_ends_in_its_goals(engines):
    figures = sampler.run(quick=True, log=silent, show=silent)
    goals = {goal["name"]: goal for goal in figures["goals"]}
    assert list(goals) == [name for part in sampler.PARTS for name in PART_GOALS[part]]
    for part in (1, 2):  # twice as fast as the faster of the two
        for name in PART_GOALS[part]:
            assert goals[name]["value"] == pytest.approx(2.0)
            assert goals[name]["met"] == (goals[name]["goal"] <= 2.0)
    for name in PART_GOALS[3]:
        ratio = "per generated token" in name
        assert (goals[name]["value"], goals[name]["met"]) == ((2.0, False) if ratio else (3.0, True))
    assert goals[PART_GOALS[4][0]] == dict(name=PART_GOALS[4][0], value=150 * 8 / 1000, goal=1.1, met=False)
    for name in PART_GOALS[5]:
        assert goals[name]["value"] == pytest.approx(1.0) and goals[name]["met"]
    assert figures["results"]["trees"]["flat 8"]["useful_share"] == 0.5
    assert figures["versions"]["tunix"] == "1.0"
    json.dumps(figures, allow_nan=False)


def test_without_peers_ratios_are_unknown_and_a_failed_peer_is_named(engines):
    figures = sampler.run(quick=True, parts=[1], peers=[], log=silent, show=silent)
    assert [(goal["value"], goal["met"]) for goal in figures["goals"]] == [(None, None)] * 2
    engines["transformers"] = "no module named torch"
    figures = sampler.run(quick=True, parts=[1], log=silent, show=silent)
    assert [goal["value"] for goal in figures["goals"]] == [4.0, 4.0]
    assert figures["results"]["flat"]["small"]["transformers"] == dict(error="no module named torch")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_engine_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(sampler, "SMALL", TINY)
    # Fewer shapes than --quick has, to compile less.
    tree_job = sampler.Benchmark.tree_job
    few = dict(questions=3, warm_questions=3, slots=2, new_tokens=24)
    monkeypatch.setattr(
        sampler.Benchmark, "tree_job", lambda self, name, **changes: tree_job(self, name, **few | changes)
    )
    monkeypatch.setattr(sampler, "PAGE_SIZES", (8, 16))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # of the process that is measured
    monkeypatch.setattr(sys, "argv", ["sampler.py", "--quick", "--json", "--peers=none", "--parts=3,4"])
    sampler.main()
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert [goal["name"] for goal in figures["goals"]] == PART_GOALS[3] + PART_GOALS[4]
    assert all(goal["value"] > 0 and goal["met"] is not None for goal in figures["goals"])
    assert "part 3" in captured.err and "flat 12" in captured.err
    for name, tree in figures["results"]["trees"].items():
        assert 0 < tree["useful_share"] <= 1 and 0 <= tree["stall_share"] < 1 and 0 <= tree["tail_share"] <= 1
        assert 1 <= tree["lengths"]["p10"] <= tree["lengths"]["p90"] <= 24
        if name.startswith("ib"):
            assert tree["responses_to_flat_12"] > 0
    sizes = {int(size): r["ratio"] for size, r in figures["results"]["memory"].items()}
    assert list(sizes) == [8, 16] and all(1 <= ratio < 3 for ratio in sizes.values())


def test_a_failed_engine_says_why():
    with pytest.raises(processes.EngineError, match="unexpected keyword"):
        processes.run_jobs(
            processes.our_command(),
            [dict(name="x", model=dict(TINY, width=1), questions=1, prompt_tokens=4, new_tokens=4)],
        )


@pytest.mark.slow
def test_gpu_on_any_device(monkeypatch, capsys):
    # Fewer shapes than --quick has, to compile less.
    monkeypatch.setattr(gpu_sizes, "QUICK", gpu_sizes.QUICK | dict(slots=1, prompts=1))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--json"])
    gpu.main()
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert "tiny: decode" in captured.err
    assert figures["goals"] == [
        dict(name="tiny: decode, share of memory bandwidth", value=None, goal=0.6, met=None),
        dict(name="tiny: update, model FLOP utilisation", value=None, goal=0.45, met=None),
    ]
    assert figures["results"]["tiny"]["update"]["tokens_per_second"] > 0
    trees = figures["results"]["tiny"]["trees"]
    assert set(trees) == {"flat 12", "ib (4,9,1,1)"}
    assert all(tree["tokens_per_second"] > 0 and 0 < tree["useful_share"] <= 1 for tree in trees.values())


def test_gpu_peaks_and_bytes():
    assert gpu_sizes.peaks("NVIDIA H100 80GB HBM3") == (3.35e12, 989e12)
    assert gpu_sizes.peaks("NVIDIA A100-SXM4-80GB") == (2.039e12, 312e12)
    assert gpu_sizes.peaks("NVIDIA H200")[0] == 4.8e12 and gpu_sizes.peaks("NVIDIA L4")[1] == 121e12
    for unknown in ("NVIDIA L40", "NVIDIA H100 PCIe", "cpu"):
        assert gpu_sizes.peaks(unknown) == (None, None)

    from ibtpo.models.presets import PRESETS

    small, large = (PRESETS[name] for name in gpu.MODELS)
    # A tied table is multiplied by; an input table of its own is only looked up.
    assert gpu_sizes.weight_bytes_per_step(small) == 2 * small.num_params
    assert gpu_sizes.weight_bytes_per_step(large) == 2 * (large.num_params - 151_936 * 4096)
    assert gpu_sizes.kv_bytes_per_token(large) == 147_456
    # One slot, two steps behind the first token: 11 and 12 tokens are read.
    expected = 2 * gpu_sizes.weight_bytes_per_step(small) + 23 * gpu_sizes.kv_bytes_per_token(small)
    assert gpu_sizes.decode_bytes(small, 1, 10, 3) == expected
    assert gpu_sizes.prefill_flops(small, 1000) == pytest.approx(2 * 1.41e9 * 1000, rel=0.05)


def test_lengths_are_log_normal_wherever_a_response_is_forked():
    import jax
    import numpy as np
    from flax import nnx
    from jax import numpy as jnp

    from benchmarks.lengths import hazards, timed_decoder
    from ibtpo.models.attention import tree_attend
    from ibtpo.models.config import ModelConfig

    hazard = hazards(100, 1000)
    alive = np.cumprod(np.concatenate([[1.0], 1 - hazard[:-1]]))
    lengths = alive * hazard  # the probability of each length
    assert lengths.sum() == pytest.approx(1, abs=1e-4)
    assert np.searchsorted(np.cumsum(lengths), 0.5) == pytest.approx(100, abs=1)
    logarithm = np.log(np.maximum(np.arange(1001), 1))
    deviation = np.sqrt((lengths * (logarithm - math.log(100)) ** 2).sum())
    assert deviation == pytest.approx(0.5, abs=0.01)

    # What the model says of the stop tokens together, at each token of a response.
    config = ModelConfig(family="qwen3", qk_norm=True, tie_embeddings=True, **TINY)
    graphdef, params = timed_decoder(config, stops=range(4), prompt_tokens=5, median=8, longest=20)
    tokens = jnp.asarray(np.random.default_rng(0).integers(4, 512, (1, 20)))
    decoder = nnx.merge(graphdef, params)
    hidden, _ = decoder(tokens, jnp.arange(20)[None], tree_attend(jnp.full((1, 20), 20)), ())
    stopping = jax.nn.softmax(decoder.logits(hidden[0]))[:, :4].sum(1)
    # The first token of a response to five tokens is drawn at position 4.
    np.testing.assert_allclose(stopping[4:], hazards(8, 20)[1:17], rtol=1e-3, atol=1e-6)
