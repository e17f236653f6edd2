"""The cases of `benchmarks/losses.py`: losses by our settings and by each peer's for the same, and random groups."""

import dataclasses
from typing import Any

import numpy as np

QUESTIONS, RESPONSES, MAX_NEW, PROMPT = 4, 4, 24, (1, 2, 3)
IMPORTANCE_CAP = 1.1
# Name: (options of its pip install, types it computes in).
PEERS = {"tunix": (["--no-deps"], ("float32",)), "trl": ([], ("float32", "float64"))}


@dataclasses.dataclass(frozen=True)
class Method:
    """One loss: our settings, and each peer's for the same; None where it has none.

    loss: fields of `LossOptions`; tunix: fields of its algorithm config; trl: fields of GRPOConfig.
    """

    advantage: str
    aggregation: str
    loss: dict[str, Any]
    tunix: dict[str, Any] | None = None
    trl: dict[str, Any] | None = None
    mask_truncated: bool = False
    float64_goal: float = 1e-11

    def goal(self, dtype: str) -> float:
        return 1e-5 if dtype == "float32" else self.float64_goal


MEAN = "sequence-mean-token-mean"
SEQUENCE = {"importance_sampling_level": "sequence"}
METHODS = {
    "grpo": Method("grpo", "response_mean", {}, dict(loss_agg_mode=MEAN), dict(loss_type="grpo")),
    "grpo, kl": Method(
        "grpo", "response_mean", dict(kl=0.1), dict(loss_agg_mode=MEAN, beta=0.1), dict(loss_type="grpo", beta=0.1)
    ),
    "grpo, dual clip": Method(
        "grpo",
        "response_mean",
        dict(dual_clip=1.4),
        dict(loss_agg_mode=MEAN, epsilon_c=1.4),
        dict(loss_type="grpo", delta=1.4),
    ),
    "grpo, importance": Method(
        "grpo",
        "response_mean",
        dict(importance_cap=IMPORTANCE_CAP, kl=0.1),
        dict(loss_agg_mode=MEAN, beta=0.1),
        dict(loss_type="grpo", beta=0.1, use_vllm=True),
    ),
    "grpo, truncated out": Method("grpo", "response_mean", {}, trl=dict(loss_type="grpo"), mask_truncated=True),
    "rloo": Method("rloo", "response_mean", {}, dict(loss_agg_mode=MEAN), dict(loss_type="grpo")),
    "dr_grpo": Method(
        "dr_grpo", "fixed_length", {}, dict(loss_agg_mode="sequence-mean-token-scale"), dict(loss_type="dr_grpo")
    ),
    "dr_grpo, kl, truncated out": Method(
        "dr_grpo", "fixed_length", dict(kl=0.1), trl=dict(loss_type="dr_grpo", beta=0.1), mask_truncated=True
    ),
    "dapo": Method(
        "grpo",
        "token_mean",
        dict(clip_high=0.28),
        dict(loss_agg_mode="token-mean", epsilon_high=0.28),
        dict(loss_type="dapo", epsilon_high=0.28),
    ),
    "token_mean, kl": Method(
        "grpo", "token_mean", dict(kl=0.1), dict(loss_agg_mode="token-mean", beta=0.1), dict(loss_type="bnpo", beta=0.1)
    ),
    "gspo": Method(
        "grpo",
        "response_mean",
        dict(objective="gspo", clip_low=3e-4, clip_high=4e-4),
        dict(loss_agg_mode=MEAN, loss_algo="gspo-token", epsilon=3e-4, epsilon_high=4e-4),
        dict(loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4, **SEQUENCE),
    ),
    "gspo, token_mean, kl": Method(
        "grpo",
        "token_mean",
        dict(objective="gspo", clip_low=0.05, clip_high=0.1, kl=0.1),
        dict(loss_agg_mode="token-mean", loss_algo="gspo-token", epsilon=0.05, epsilon_high=0.1, beta=0.1),
        dict(loss_type="dapo", epsilon=0.05, epsilon_high=0.1, beta=0.1, **SEQUENCE),
    ),
    "cispo": Method(
        "grpo",
        "token_mean",
        dict(objective="cispo", clip_low=1.0),
        trl=dict(loss_type="cispo", epsilon_high=1.2),
    ),
    "sapo": Method("grpo", "response_mean", dict(objective="sapo"), trl=dict(loss_type="sapo"), float64_goal=1e-7),
}
# Ours: the peer's name of the same estimator.
TUNIX_ADVANTAGES = {"grpo": "grpo", "rloo": "rloo", "dr_grpo": "drgrpo"}


@dataclasses.dataclass(frozen=True)
class Case:
    """Flat groups, float64. log_probs, old, ref, sampler: [Q, R, T], by the policy now, by the trainer when the tokens
    were drawn, by the reference, by the sampler (read with importance weights only); length, rewards: [Q, R]."""

    log_probs: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    sampler: np.ndarray
    length: np.ndarray
    rewards: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """[Q, R, T], the generated tokens."""
        return np.arange(MAX_NEW) < self.length[:, :, None]

    @property
    def truncated(self) -> np.ndarray:
        """[Q, R], the responses cut off at the limit."""
        return self.length == MAX_NEW


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    groups = (QUESTIONS, RESPONSES)
    log_probs = -rng.uniform(0.05, 4, (*groups, MAX_NEW))
    old, ref = (log_probs + 0.3 * rng.standard_normal(log_probs.shape) for _ in range(2))
    sampler = old + 0.1 * rng.standard_normal(old.shape)
    length = rng.integers(1, MAX_NEW, groups)
    length[rng.random(groups) < 0.2] = MAX_NEW
    length[-1, 0] = MAX_NEW
    rewards = rng.random(groups)
    rewards[0] = 1.0
    return Case(log_probs, old, ref, sampler, length, rewards)
