"""Objectives of the policy loss: one function per name of `choices.OBJECTIVES`, one signature.

    objective(terms, options) -> (objective [B, T], removed [B, T])

gives a token's contribution to the sum that is maximised, and which share of its advantage the clip takes the gradient
from. Each is linear in A for each sign, so that P and N of a token (`token_weights.TokenWeights`) are all it needs.
r: the token's ratio to the policy that drew it. sg: a constant to the gradient. lp: the token's log-probability.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from ibtpo import choices

if TYPE_CHECKING:
    from ibtpo.losses import LossOptions

SAPO_TEMPERATURES = (1.0, 1.05)  # of positive and negative advantages


class Terms(NamedTuple):
    """The arguments of an objective, [B, T]; positive, negative and log_probs are 0 where nothing is trained.

    positive, negative: P and N, times the weights of truncated importance sampling. ratio: r, 1 where nothing is
    trained. log_probs: lp, with its gradient.
    """

    positive: jax.Array
    negative: jax.Array
    ratio: jax.Array
    log_probs: jax.Array


Objective = Callable[[Terms, "LossOptions"], tuple[jax.Array, jax.Array]]


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def clip(terms: Terms, options: "LossOptions") -> tuple[jax.Array, jax.Array]:
    """PPO's and GRPO's: P min(r, 1 + clip_high) + N max(r, 1 - clip_low).

    With dual_clip = c, which bounds the loss of A < 0 by -c A, N's factor is min(max(r, 1 - clip_low), c).
    Source: DeepSeekMath, arXiv 2402.03300; dual clip: arXiv 1912.09729.
    """
    positive, negative, ratio, _ = terms
    upper, lower = 1 + options.clip_high, 1 - options.clip_low
    down, removed_negative = jnp.maximum(ratio, lower), ratio < lower
    if options.dual_clip:
        down = jnp.minimum(down, options.dual_clip)
        removed_negative |= ratio > options.dual_clip
    removed = jnp.where(ratio > upper, positive, 0) - jnp.where(removed_negative, negative, 0)
    return positive * jnp.minimum(ratio, upper) + negative * down, _share(removed, positive - negative)


def cispo(terms: Terms, options: "LossOptions") -> tuple[jax.Array, jax.Array]:
    """(P + N) sg(clip(r, 1 - clip_low, 1 + clip_high)) lp: no gradient is removed, it is only bounded.

    MiniMax-M1, arXiv 2506.13585, sets no lower bound: clip_low = 1. verl's (core_algos.py 1753-1758) is 0.2.
    """
    bounded = jax.lax.stop_gradient(jnp.clip(terms.ratio, 1 - options.clip_low, 1 + options.clip_high))
    return (terms.positive + terms.negative) * bounded * terms.log_probs, jnp.zeros_like(terms.ratio)


def sapo(terms: Terms, options: "LossOptions") -> tuple[jax.Array, jax.Array]:
    """P f(r, 1.0) + N f(r, 1.05) with f(r, t) = 4 / t sigmoid(t (r - 1)).

    Source: arXiv 2511.20347.
    """
    up, down = (4 / t * jax.nn.sigmoid(t * (terms.ratio - 1)) for t in SAPO_TEMPERATURES)
    return terms.positive * up + terms.negative * down, jnp.zeros_like(terms.ratio)


def gspo(terms: Terms, options: "LossOptions") -> tuple[jax.Array, jax.Array]:
    """P exp(lp - sg(lp)) + N, with P and N of `token_weights.sequence_weights`: the ratio is that of a whole response,
    and N holds the clipped part.

    Source: GSPO-token, arXiv 2507.18071.
    """
    positive, negative, _, own = terms
    scale = jnp.abs(positive) + jnp.abs(negative)
    return positive * jnp.exp(own - jax.lax.stop_gradient(own)) + negative, _share(jnp.abs(negative), scale)


OBJECTIVES: dict[str, Objective] = {name: globals()[name] for name in choices.OBJECTIVES}
