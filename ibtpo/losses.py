"""The policy loss over packed trees: log-probabilities and objective.

Dimension letters: B rows, T tokens, D model, V vocabulary.

Metrics are {name: (sum, weight)}; a metric is sum / weight, and the sums and weights of
microbatches add (`add_metrics`). The one exception is a name that ends in "_max": there the larger pair is kept.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from ibtpo import choices
from ibtpo.errors import UserError
from ibtpo.models.attention import tree_attend
from ibtpo.models.decoder import Decoder
from ibtpo.objectives import OBJECTIVES, Terms
from ibtpo.packing import TokenBatch
from ibtpo.parallel import constrain
from ibtpo.tree import Array
from ibtpo.vocabulary import KEPT, log_prob_and_entropy

Metrics = dict[str, tuple[jax.Array, jax.Array]]

# A ratio beyond exp(20) says nothing more to a clipped loss, and exp overflows float32 at 88.
MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The loss of `policy_loss`: an objective of `ibtpo.objectives`, whose ratio is clipped to [1 - clip_low,
    1 + clip_high] (sapo: not at all), and weights of the terms added to it. With
    `importance_cap` > 0 the sampler's own numerics are corrected for by weights of at most that."""

    objective: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.001
    dual_clip: float | None = None  # None or 0: off
    importance_cap: float = 0.0  # 0: off
    max_old_probability: float = 1.0  # 1: every token is trained
    entropy_bonus: float = 0.0
    entropy_advantage: float = 0.0

    def __post_init__(self):
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise UserError(
                f"loss.clip_low={self.clip_low} must lie in [0, 1], and loss.clip_high={self.clip_high} be at least 0"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise UserError(
                f"loss.dual_clip={self.dual_clip} must exceed 1 (3 is usual): a smaller bound "
                "stops the on-policy gradient too; 0 turns it off"
            )
        if self.objective not in choices.OBJECTIVES:
            raise UserError(f"loss.objective={self.objective!r} is none of {', '.join(choices.OBJECTIVES)}")
        if self.objective == "gspo" and (self.importance_cap or self.entropy_advantage):
            raise UserError("loss.objective='gspo' needs loss.importance_cap=0 and loss.entropy_advantage=0")
        if self.dual_clip and self.objective != "clip":
            raise UserError(f"loss.dual_clip={self.dual_clip} belongs to loss.objective='clip', not {self.objective!r}")
        if not 0 < self.max_old_probability <= 1:
            raise UserError(
                f"loss.max_old_probability={self.max_old_probability} must be above 0 and at most 1 (1: every token)"
            )
        for name in ("kl", "importance_cap", "entropy_bonus", "entropy_advantage"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be at least 0")

    @classmethod
    def from_config(cls, loss) -> "LossOptions":
        """Reads the `loss` section of a config."""
        return cls(**{field.name: loss[field.name] for field in dataclasses.fields(cls)})

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss has a gradient through the entropy."""
        return self.entropy_bonus > 0 or self.entropy_advantage > 0


def token_log_probs(
    decoder: Decoder,
    batch: TokenBatch,
    *,
    temperature: float | jax.Array = 1.0,
    token_block: int = 128,
    remat: str = "none",
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every token given its path, and the entropy of the distribution it was drawn from.

        log_probs[b, t] = log_softmax(logits(hidden[b, parent_token[b, t]]) / temperature)[token]

    over the full vocabulary, in the type of the decoder's logits (float32). Logits exist for
    B * token_block tokens at a time, forwards and backwards, never for all [B, T, V].

    Args:
      decoder: the policy.
      batch: rows [B, T]; only tokens, positions, subtree_end and parent_token are read.
      temperature: of the policy; traced, so a new value does not compile again.
      token_block: columns whose logits are held at a time; T need not divide it.
      remat: the parts that the backward pass recomputes, see `Decoder.__call__`.
      entropy_gradient: whether gradients flow through the entropy.

    Returns:
      (log_probs [B, T], entropy [B, T]), in nats. Tokens that are their own parent (the first of a
      prompt, padding) have no distribution and get 0 in both.
    """

    tokens, parent = jnp.asarray(batch.tokens), jnp.asarray(batch.parent_token)
    num_rows, num_tokens = tokens.shape
    hidden, _ = decoder(tokens, jnp.asarray(batch.positions), tree_attend(jnp.asarray(batch.subtree_end)), remat=remat)
    hidden = jnp.take_along_axis(hidden, parent[:, :, None], axis=1)

    def block_log_probs(block):
        block_hidden, block_tokens = block  # [B, block, D], [B, block]
        logits = constrain(decoder.logits(block_hidden) / temperature, "rows", None, "vocab")
        return log_prob_and_entropy(logits, block_tokens, entropy_gradient)

    # The backward pass computes the logits again, and reads them once.
    in_block = jax.checkpoint(block_log_probs, policy=jax.checkpoint_policies.save_only_these_names(KEPT))

    # Blocks are columns, not rows: a mesh that splits the rows has work for all in every block.
    block = min(token_block, num_tokens)
    num_blocks = -(-num_tokens // block)
    pad = num_blocks * block - num_tokens

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(num_rows, num_blocks, block, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(num_rows, num_blocks * block)[:, :num_tokens]

    log_probs, entropy = jax.lax.map(in_block, (split(hidden), split(tokens)))
    predicted = parent != jnp.arange(num_tokens)
    return jnp.where(predicted, join(log_probs), 0), jnp.where(predicted, join(entropy), 0)


def policy_loss(
    log_probs: jax.Array,
    batch: TokenBatch,
    *,
    entropy: jax.Array | None = None,
    options: LossOptions,
) -> tuple[jax.Array, Metrics]:
    """The objective, by default GRPO's clipped one, with a KL penalty, summed over packed tokens.

    With P, N, W = batch.positive, negative, weight, r = exp(log_probs - batch.log_probs) and
    d = batch.ref_log_probs - log_probs,

        loss = sum over tokens of  - P min(r, 1 + clip_high) - N max(r, 1 - clip_low)
                                   + kl W (exp(d) - d - 1)

    This is the sum over the responses i through each token of w_i (-min(r A_i, clip(r) A_i) + kl k3):
    for A > 0 the minimum is A min(r, 1 + clip_high), for A < 0 it is A max(r, 1 - clip_low), and
    both are linear in A. The other objectives that may stand for the first two terms are in `ibtpo.objectives`.

    The entropy H of the distribution a token was drawn from may be added:

        - entropy_bonus W H - entropy_advantage (P + N) H

    Truncated importance sampling (importance_cap > 0): the sampler computes in other shapes, or in another type, than
    the trainer, so that batch.log_probs are not quite the policy's own. Then the ratio is taken to the trainer's,
    r = exp(log_probs - batch.old_log_probs), and P and N are multiplied by the constants

        min(exp(batch.old_log_probs - batch.log_probs), importance_cap)

    Without old_log_probs the current parameters are those that drew the tokens. Tokens that the sampler gave a
    probability of options.max_old_probability or more are left out, if that is below 1; the weights of the others stay
    as they are.

    Log-ratios are clamped to +-20 before exp, in r, in these and in k3. Tokens of weight 0 contribute exactly
    nothing, whatever they hold.

    Args:
      log_probs: [B, T], current policy.
      batch: rows [B, T]; its weights are normalised already (`token_weights`), so the loss is a plain sum.
      entropy: [B, T], of `token_log_probs`, with its gradient where the loss has one through it (`needs_entropy`).

    Returns:
      (scalar loss, metrics). Means over tokens, weighted by W as the loss is: `kl` (with a reference), `clip_fraction`
      (share of |A| whose gradient the clip removes), `ratio`, `entropy` (also of what max_old_probability leaves
      out), `sampler_gap` = |log_probs - batch.log_probs| and, with importance_cap > 0, `importance` and
      `importance_capped` (share at the cap); `ratio_max` is a maximum.

    Raises:
      ValueError: options.kl > 0 without batch.ref_log_probs, or a weight of the entropy without it.

    Source: DeepSeekMath, arXiv 2402.03300 (objective, k3); SPO, arXiv 2505.23564 (max_old_probability); IBRO, arXiv
    2507.18391 (entropy_advantage); truncated importance sampling: Ionides 2008, Journal of Computational and Graphical
    Statistics 17 (2); docs/method.md (packing).
    """
    _check_needs(batch, entropy, options)
    positive, negative, weight = map(jnp.asarray, (batch.positive, batch.negative, batch.weight))
    trained, counted = weight > 0, weight
    if options.max_old_probability < 1:
        trained &= jnp.asarray(batch.log_probs) < math.log(options.max_old_probability)
        positive, negative, weight = (jnp.where(trained, x, 0) for x in (positive, negative, weight))

    clamped_difference = functools.partial(_clamped_difference, where=trained)
    advantage = positive + negative
    gap = log_ratio = clamped_difference(log_probs, batch.log_probs)
    if options.importance_cap:
        old = jax.lax.stop_gradient(log_probs if batch.old_log_probs is None else batch.old_log_probs)
        log_ratio = clamped_difference(log_probs, old)
        importance = jnp.exp(clamped_difference(old, batch.log_probs))
        capped, importance = importance > options.importance_cap, jnp.minimum(importance, options.importance_cap)
        positive, negative = positive * importance, negative * importance
    ratio = jnp.exp(log_ratio)
    positive, negative, own = (jnp.where(trained, x, 0) for x in (positive, negative, log_probs))
    objective, removed = OBJECTIVES[options.objective](Terms(positive, negative, ratio, own), options)
    if options.needs_entropy and entropy is not None:
        objective += (options.entropy_bonus * weight + options.entropy_advantage * advantage) * entropy
    loss = -jnp.where(trained, objective, 0).sum()
    total = weight.sum()
    metrics = {
        "clip_fraction": ((weight * removed).sum(), total),
        "ratio": ((weight * ratio).sum(), total),
        "ratio_max": (jnp.where(trained, ratio, 0).max(), jnp.ones_like(total)),
        "sampler_gap": ((weight * jnp.abs(gap)).sum(), total),
    }
    if options.importance_cap:
        metrics["importance"] = ((weight * importance).sum(), total)
        metrics["importance_capped"] = ((weight * capped).sum(), total)
    if entropy is not None:
        metrics["entropy"] = (jnp.where(counted > 0, counted * entropy, 0).sum(), counted.sum())
    if batch.ref_log_probs is not None:
        d = clamped_difference(batch.ref_log_probs, log_probs)
        divergence = (weight * (jnp.exp(d) - d - 1)).sum()
        loss = loss + options.kl * divergence
        metrics["kl"] = (divergence, total)
    return loss, jax.lax.stop_gradient(metrics)


def _check_needs(batch: TokenBatch, entropy: jax.Array | None, options: LossOptions) -> None:
    if options.kl > 0 and batch.ref_log_probs is None:
        raise ValueError(f"loss.kl={options.kl} needs batch.ref_log_probs; fill them or set loss.kl=0")
    if options.needs_entropy and entropy is None:
        raise ValueError("loss.entropy_bonus and loss.entropy_advantage need the entropy; pass it or set them to 0")


def _clamped_difference(a: Array, b: Array, where: jax.Array) -> jax.Array:
    """a - b within +-MAX_LOG_RATIO, 0 elsewhere."""
    # Selecting before the subtraction, not after exp, keeps NaN out of the gradient as well.
    difference = jnp.where(where, a, 0) - jnp.where(where, b, 0)
    return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def add_metrics(first: Metrics, second: Metrics) -> Metrics:
    """Metrics of two parts of a batch as those of both."""
    return {
        name: jax.tree.map(jnp.maximum if name.endswith("_max") else jnp.add, pair, second[name])
        for name, pair in first.items()
    }
