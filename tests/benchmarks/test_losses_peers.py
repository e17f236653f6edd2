"""The comparison with other libraries' losses: our side of it, and that a difference is noticed."""

import json
import sys

import numpy as np
import pytest

from benchmarks import losses

CASES = [losses.random_case(seed) for seed in (0, 1)]


def responses(case, method):
    """(weights [Q, R] of one token, advantages [Q, R]) by the definitions, response by response."""
    count, tokens = case.length.size, case.length.sum()
    weights = {
        "response_mean": 1 / (count * case.length),
        "token_mean": np.full(case.length.shape, 1 / tokens),
        "fixed_length": np.full(case.length.shape, 1 / (count * losses.MAX_NEW)),
    }[method.aggregation]
    mean, std = case.rewards.mean(axis=1, keepdims=True), case.rewards.std(axis=1, ddof=1, keepdims=True)
    advantages = {
        "grpo": (case.rewards - mean) / (std + 1e-6),
        "dr_grpo": case.rewards - mean,
        "rloo": (case.rewards - mean) * losses.RESPONSES / (losses.RESPONSES - 1),
    }[method.advantage]
    return np.where(case.truncated & method.mask_truncated, 0, weights), advantages


def obvious_loss(case, method, log_probs):
    options = dict(clip_low=0.2, clip_high=0.2, kl=0.0, objective="clip", dual_clip=None) | method.loss
    weights, advantages = responses(case, method)
    total = 0.0
    for q, r in np.ndindex(*case.length.shape):
        n, A = case.length[q, r], advantages[q, r]
        now, old, ref = (x[q, r, :n] for x in (log_probs, case.old, case.ref))
        ratio = np.exp((now - old).mean()) if options["objective"] == "gspo" else np.exp(now - old)
        clipped = np.clip(ratio, 1 - options["clip_low"], 1 + options["clip_high"])
        loss = np.broadcast_to(-np.minimum(ratio * A, clipped * A), n)
        if options["dual_clip"] and A < 0:
            loss = np.minimum(loss, -options["dual_clip"] * A)
        if options["objective"] == "sapo":
            t = 1.0 if A > 0 else 1.05
            loss = -A * 4 / t / (1 + np.exp(-t * (ratio - 1)))
        if "importance_cap" in options:
            loss = loss * np.minimum(np.exp(old - case.sampler[q, r, :n]), options["importance_cap"])
        total += weights[q, r] * (loss + options["kl"] * (np.exp(ref - now) - (ref - now) - 1)).sum()
    return total


# cispo's gradient is not that of its value.
@pytest.mark.parametrize("name", [name for name in losses.METHODS if name != "cispo"])
def test_our_loss_and_gradient_are_those_of_the_definition(name):
    method, case = losses.METHODS[name], CASES[0]
    loss, gradient = losses.our_loss(case, method, "float64")
    assert loss == pytest.approx(obvious_loss(case, method, case.log_probs), rel=1e-12)
    assert not gradient[~case.mask].any()
    direction = np.random.default_rng(0).standard_normal(gradient.shape)
    steps = [obvious_loss(case, method, case.log_probs + h * direction) for h in (-1e-6, 1e-6)]
    assert (gradient * direction).sum() == pytest.approx((steps[1] - steps[0]) / 2e-6, rel=1e-5)
    single, rounded = losses.our_loss(case, method, "float32")
    assert single == pytest.approx(loss, rel=1e-4) and losses.relative_error(rounded, gradient) < 1e-5


def test_the_cases_have_what_makes_methods_differ():
    for case in CASES:
        ratio = np.exp(case.log_probs - case.old)[case.mask]
        assert (ratio > 1.4).any() and (ratio < 0.8).any() and ((0.8 < ratio) & (ratio < 1.2)).any()
        importance = np.exp(case.old - case.sampler)[case.mask]
        assert (importance > losses.IMPORTANCE_CAP).any() and (importance < losses.IMPORTANCE_CAP).any()
        assert case.truncated.any() and not case.truncated.all() and len(np.unique(case.length)) > 4
        equal = case.rewards.std(axis=1) == 0
        assert equal[0] and not equal[1:].any()


@pytest.fixture
def peers(monkeypatch):
    """Peers that answer what we would, in float64, times 1 + `wrong` of their methods; an exception is raised."""
    wrong = {}

    def run_peer(peer, arrays, log):
        if isinstance(wrong.get(peer), Exception):
            raise wrong[peer]
        found = {"versions": np.array(json.dumps({peer: "1"}))}
        for name in json.loads(str(arrays["settings"])):
            for i, case in enumerate(CASES):
                assert arrays[f"{i}/{name}/mask"].shape == arrays[f"{i}/log_probs"].shape
                loss, gradient = losses.our_loss(case, losses.METHODS[name], "float64")
                for dtype in losses.PEERS[peer][1]:
                    key = f"{i}/{name}/{dtype}"
                    found[f"{key}/loss"] = np.array(loss)
                    found[f"{key}/gradient"] = gradient.reshape(-1, losses.MAX_NEW) * (1 + wrong.get(name, 0))
        for i, case in enumerate(CASES):
            for ours, theirs in losses.TUNIX_ADVANTAGES.items():
                values = losses.response_advantages(case, ours, np.float64)
                found[f"{i}/advantages/{theirs}"] = values.reshape(-1)
        return found

    monkeypatch.setattr(losses, "run_peer", run_peer)
    return wrong


def main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["losses.py", "--quick", "--json", *arguments])
    with pytest.raises(SystemExit) as ended:
        losses.main()
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_equal_losses_meet_every_goal(peers, monkeypatch, capsys):
    code, figures = main(monkeypatch, capsys)
    assert code == 0 and all(goal["met"] for goal in figures["goals"])
    names = [goal["name"] for goal in figures["goals"]]
    assert "tunix, gspo: gradient, float32" in names and "trl, sapo: loss, float64" in names
    assert not any(name.startswith("tunix") and "float64" in name for name in names)
    for peer in losses.PEERS:
        compared = [name for name, method in losses.METHODS.items() if getattr(method, peer) is not None]
        assert len([name for name in names if name.startswith(f"{peer}, ") and ": loss, float32" in name]) == len(
            compared
        )


def test_another_gradient_or_no_answer_misses_its_goal(peers, monkeypatch, capsys):
    peers |= {"dapo": 1e-4, "tunix": RuntimeError("tunix failed: no module named jax")}
    code, figures = main(monkeypatch, capsys)
    missed = {goal["name"] for goal in figures["goals"] if not goal["met"]}
    assert code == 1
    assert missed == {"tunix: runs", "trl, dapo: gradient, float32", "trl, dapo: gradient, float64"}
    assert figures["results"]["tunix"]["error"] == "tunix failed: no module named jax"
