"""The policy loss over packed trees: log-probabilities and objective.

Dimension letters: B rows, T tokens, D model, V vocabulary.

Metrics are {name: (sum, weight)}; a metric is sum / weight, and the sums and weights of
microbatches add. The one exception is a name that ends in "_max": there the larger pair is kept.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from ibtpo.models.attention import tree_attend
from ibtpo.models.decoder import Decoder
from ibtpo.packing import TokenBatch
from ibtpo.parallel import constrain

Metrics = dict[str, tuple[jax.Array, jax.Array]]

OBJECTIVES = ("clip", "cispo", "sapo", "gspo")
SAPO_TEMPERATURES = (1.0, 1.05)  # of positive and negative advantages

# A ratio beyond exp(20) says nothing more to a clipped loss, and exp overflows float32 at 88.
MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """What `policy_loss` computes: one of OBJECTIVES, whose ratio is clipped to [1 - clip_low, 1 + clip_high] (cispo:
    from above only; sapo: not at all), and weights of what is added to it. With `importance_cap` > 0 the sampler's own
    numerics are corrected for by weights of at most so much."""

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
            raise ValueError(
                f"loss.clip_low={self.clip_low} must lie in [0, 1], and loss.clip_high={self.clip_high} be at least 0"
            )
        if self.dual_clip and self.dual_clip <= 1:
            raise ValueError(
                f"loss.dual_clip={self.dual_clip} must exceed 1 (3 is usual): a smaller bound "
                "stops the on-policy gradient too; 0 turns it off"
            )
        if self.objective not in OBJECTIVES:
            raise ValueError(f"loss.objective={self.objective!r} is none of {', '.join(OBJECTIVES)}")
        if self.objective == "gspo" and (self.importance_cap or self.entropy_advantage):
            raise ValueError("loss.objective='gspo' needs loss.importance_cap=0 and loss.entropy_advantage=0")
        if self.dual_clip and self.objective != "clip":
            raise ValueError(
                f"loss.dual_clip={self.dual_clip} belongs to loss.objective='clip', not {self.objective!r}"
            )
        if not 0 < self.max_old_probability <= 1:
            raise ValueError(
                f"loss.max_old_probability={self.max_old_probability} must be above 0 and at most 1 (1: every token)"
            )
        for name in ("kl", "importance_cap", "entropy_bonus", "entropy_advantage"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name}={getattr(self, name)} must be at least 0")

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
    """Log-probability of every token given its path, and the entropy of what it was drawn from.

        log_probs[b, t] = log_softmax(logits(hidden[b, parent_token[b, t]]) / temperature)[token]

    over the full vocabulary, in the type of the decoder's logits (float32). Logits exist for
    B * token_block tokens at a time, forwards and backwards, never for all [B, T, V].

    Args:
      decoder: the policy.
      batch: rows [B, T]; only tokens, positions, subtree_end and parent_token are read.
      temperature: of the policy; traced, so a new value does not compile again.
      token_block: columns whose logits are held at a time; T need not divide it.
      remat: what the backward pass recomputes, see `Decoder.__call__`.
      entropy_gradient: whether gradients flow through the entropy.

    Returns:
      (log_probs [B, T], entropy [B, T]), in nats. Tokens that are their own parent (the first of a
      prompt, padding) have no distribution and get 0 in both.
    """

    tokens, parent = jnp.asarray(batch.tokens), jnp.asarray(batch.parent_token)
    num_rows, num_tokens = tokens.shape
    hidden, _ = decoder(tokens, jnp.asarray(batch.positions), tree_attend(batch.subtree_end), remat=remat)
    hidden = jnp.take_along_axis(hidden, parent[:, :, None], axis=1)

    def block_log_probs(block):
        block_hidden, block_tokens = block  # [B, block, D], [B, block]
        logits = constrain(decoder.logits(block_hidden) / temperature, "rows", None, "vocab")
        log_pi = jax.nn.log_softmax(logits, axis=-1)
        # A masked sum, not an index: where the vocabulary is split, each device adds up its own part.
        own = jnp.arange(log_pi.shape[-1]) == block_tokens[:, :, None]
        log_probs = jnp.where(own, log_pi, 0).sum(axis=-1)
        log_pi = log_pi if entropy_gradient else jax.lax.stop_gradient(log_pi)
        return log_probs, -(jnp.exp(log_pi) * log_pi).sum(axis=-1)

    # Blocks are columns, not rows: a mesh that splits the rows has work for all in every block.
    block = min(token_block, num_tokens)
    num_blocks = -(-num_tokens // block)
    pad = num_blocks * block - num_tokens

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(num_rows, num_blocks, block, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(num_rows, num_blocks * block)[:, :num_tokens]

    log_probs, entropy = jax.lax.map(jax.checkpoint(block_log_probs), (split(hidden), split(tokens)))
    predicted = parent != jnp.arange(num_tokens)
    return jnp.where(predicted, join(log_probs), 0), jnp.where(predicted, join(entropy), 0)


def policy_loss(
    log_probs: jax.Array,
    batch: TokenBatch,
    ref_log_probs: jax.Array | None = None,
    *,
    old_log_probs: jax.Array | None = None,
    entropy: jax.Array | None = None,
    options: LossOptions,
) -> tuple[jax.Array, Metrics]:
    """The objective, by default GRPO's clipped one with a KL penalty, summed over packed tokens.

    With P, N, W = batch.positive, negative, weight, r = exp(log_probs - batch.log_probs) and
    d = ref_log_probs - log_probs,

        loss = sum over tokens of  - P min(r, 1 + clip_high) - N max(r, 1 - clip_low)
                                   + kl W (exp(d) - d - 1)

    This is the sum over the responses i through each token of w_i (-min(r A_i, clip(r) A_i) + kl k3):
    for A > 0 the minimum is A min(r, 1 + clip_high), for A < 0 it is A max(r, 1 - clip_low), and
    both are linear in A. Dual clip bounds the loss of A < 0 by -c A; that loss is
    -A min(max(r, 1 - clip_low), c), so N's factor becomes min(max(r, 1 - clip_low), c).

    Instead of the first two terms, options.objective may ask for (sg: a constant to the gradient, lp: log_probs)

        cispo:  -(P + N) sg(min(r, 1 + clip_high)) lp
        sapo:   -P f(r, 1.0) - N f(r, 1.05)   with f(r, t) = 4 / t sigmoid(t (r - 1))

    Both are linear in A for each sign too. Of gspo, whose ratio is that of a whole response, P and N are made by
    `packing.sequence_weights`, and the two terms are

        gspo:   -P exp(lp - sg(lp)) - N

    The entropy H of what a token was drawn from may be added:

        - entropy_bonus W H - entropy_advantage (P + N) H

    Truncated importance sampling (importance_cap > 0): what drew the tokens computes in other shapes, or in another
    type, than what is trained, so that batch.log_probs are not quite the policy's own. Then the ratio is taken to the
    trainer's, r = exp(log_probs - old_log_probs), and P and N are multiplied by the constants

        min(exp(old_log_probs - batch.log_probs), importance_cap)

    Tokens that the sampler gave a probability of options.max_old_probability or more are left out, if that is below 1;
    what the others weigh stays as it is.

    Log-ratios are clamped to +-20 before exp, in r, in these and in k3. Tokens of weight 0 contribute exactly
    nothing, whatever they hold.

    Args:
      log_probs: [B, T], current policy.
      batch: rows [B, T]; its weights are normalised already (`packing.token_weights`), so the loss
        is a plain sum.
      ref_log_probs: [B, T] of the frozen reference; None leaves the KL term and its metric out.
      old_log_probs: [B, T], of the trainer with the parameters that drew the tokens; read with importance_cap > 0 only.
        None: those parameters are the current ones.
      entropy: [B, T], of `token_log_probs`, with its gradient where the loss has one through it (`needs_entropy`).

    Returns:
      (scalar loss, metrics). Means over tokens, weighted by W as the loss is: `kl`, `clip_fraction`
      (share of |A| whose gradient the clip removes), `ratio`, `entropy` (also of what max_old_probability leaves
      out), `sampler_gap` = |log_probs - batch.log_probs| and, with importance_cap > 0, `importance` and
      `importance_capped` (share at the cap); `ratio_max` is a maximum.

    Raises:
      ValueError: options.kl > 0 without ref_log_probs, or a weight of the entropy without it.

    Source: DeepSeekMath, arXiv 2402.03300 (objective, k3); MiniMax-M1, arXiv 2506.13585 (cispo); arXiv 2511.20347
    (sapo); GSPO-token, arXiv 2507.18071; SPO, arXiv 2505.23564 (max_old_probability); IBRO, arXiv 2507.18391
    (entropy_advantage); arXiv 1912.09729 (dual clip); truncated importance sampling: Ionides 2008, Journal of
    Computational and Graphical Statistics 17 (2); docs/method.md (packing).
    """
    if options.kl > 0 and ref_log_probs is None:
        raise ValueError(f"loss.kl={options.kl} needs ref_log_probs; pass them or set loss.kl=0")
    if options.needs_entropy and entropy is None:
        raise ValueError("loss.entropy_bonus and loss.entropy_advantage need the entropy; pass it or set them to 0")
    positive, negative, weight = map(jnp.asarray, (batch.positive, batch.negative, batch.weight))
    trained, counted = weight > 0, weight
    if options.max_old_probability < 1:
        trained &= jnp.asarray(batch.log_probs) < math.log(options.max_old_probability)
        positive, negative, weight = (jnp.where(trained, x, 0) for x in (positive, negative, weight))

    def clamped_difference(a, b):
        # Selecting before the subtraction, not after exp, keeps NaN out of the gradient as well.
        difference = jnp.where(trained, a, 0) - jnp.where(trained, b, 0)
        return jnp.clip(difference, -MAX_LOG_RATIO, MAX_LOG_RATIO)

    advantage = positive + negative
    gap = log_ratio = clamped_difference(log_probs, batch.log_probs)
    if options.importance_cap:
        old = jax.lax.stop_gradient(log_probs if old_log_probs is None else old_log_probs)
        log_ratio = clamped_difference(log_probs, old)
        importance = jnp.exp(clamped_difference(old, batch.log_probs))
        capped = importance > options.importance_cap
        importance = jnp.minimum(importance, options.importance_cap)
        positive, negative = positive * importance, negative * importance
    ratio = jnp.exp(log_ratio)
    upper, lower = 1 + options.clip_high, 1 - options.clip_low
    removed_positive, removed_negative = ratio > upper, ratio < lower
    if options.objective == "clip":
        down = jnp.maximum(ratio, lower)
        if options.dual_clip:
            down = jnp.minimum(down, options.dual_clip)
            removed_negative |= ratio > options.dual_clip
        objective = positive * jnp.minimum(ratio, upper) + negative * down
    else:  # no gradient is removed, it is only bounded
        removed_positive = removed_negative = jnp.zeros_like(trained)
        if options.objective == "cispo":
            bounded = jax.lax.stop_gradient(jnp.minimum(ratio, upper))
            objective = (positive + negative) * bounded * jnp.where(trained, log_probs, 0)
        elif options.objective == "gspo":
            own = jnp.where(trained, log_probs, 0)
            objective = positive * jnp.exp(own - jax.lax.stop_gradient(own)) + negative
        else:
            up, down = (4 / t * jax.nn.sigmoid(t * (ratio - 1)) for t in SAPO_TEMPERATURES)
            objective = positive * up + negative * down
    if options.needs_entropy:
        objective += (options.entropy_bonus * weight + options.entropy_advantage * advantage) * entropy
    loss = -jnp.where(trained, objective, 0).sum()

    total = weight.sum()
    removed = jnp.where(removed_positive, positive, 0) - jnp.where(removed_negative, negative, 0)
    scale = jnp.where(trained, positive - negative, 0)
    if options.objective == "gspo":  # the clipped part is what N holds
        removed, scale = jnp.abs(negative), jnp.abs(positive) + jnp.abs(negative)
    share = jnp.where(scale > 0, removed / jnp.where(scale > 0, scale, 1), 0)
    metrics = {
        "clip_fraction": ((weight * share).sum(), total),
        "ratio": ((weight * ratio).sum(), total),
        "ratio_max": (jnp.where(trained, ratio, 0).max(), jnp.ones_like(total)),
        "sampler_gap": ((weight * jnp.abs(gap)).sum(), total),
    }
    if options.importance_cap:
        metrics["importance"] = ((weight * importance).sum(), total)
        metrics["importance_capped"] = ((weight * capped).sum(), total)
    if entropy is not None:
        metrics["entropy"] = (jnp.where(counted > 0, counted * entropy, 0).sum(), counted.sum())
    if ref_log_probs is not None:
        d = clamped_difference(ref_log_probs, log_probs)
        divergence = (weight * (jnp.exp(d) - d - 1)).sum()
        loss = loss + options.kl * divergence
        metrics["kl"] = (divergence, total)
    return loss, jax.lax.stop_gradient(metrics)


def reduce_metrics(stacked: Metrics) -> Metrics:
    """Metrics of several microbatches, stacked along axis 0, as those of the whole batch."""
    return {
        name: jax.tree.map(lambda x, m=name: x.max(0) if m.endswith("_max") else x.sum(0), pair)
        for name, pair in stacked.items()
    }
