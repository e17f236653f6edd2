"""From logits to a token: temperature, truncation and one uniform draw per token.

Letters: S slots, V vocabulary.
"""

from typing import Any

import jax
import numpy as np
from flax import struct
from jax import lax
from jax import numpy as jnp

BLOCK = 128  # tokens of the vocabulary that a draw takes together at first


@struct.dataclass
class SamplingParams:
    """How tokens are drawn. All are traced scalars: changing them never recompiles.

    temperature: > 0; logits are divided by it.
    top_k: keep the k likeliest tokens; 0 keeps all.
    top_p: keep the smallest set of likeliest tokens whose mass reaches top_p; 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the likeliest; 0 keeps all.
    Tokens exactly as likely as the last one kept are kept too.
    """

    temperature: float | jax.Array = 1.0
    top_k: int | jax.Array = 0
    top_p: float | jax.Array = 1.0
    min_p: float | jax.Array = 0.0

    @classmethod
    def from_config(cls, config: Any) -> "SamplingParams":
        """Reads temperature, top_k, top_p and min_p from a config section."""
        return cls(config.temperature, config.top_k, config.top_p, config.min_p)

    def traced(self) -> "SamplingParams":
        """The same values as arrays of fixed types, so that one compilation serves them all."""
        new: Any = SamplingParams
        return new(np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p), np.float32(self.min_p))


def _largest_threshold(probs: jax.Array, enough) -> jax.Array:
    """The largest float32 t for which enough(probs >= t), per row; probs [S, V] in [0, 1].

    `enough` maps a mask [S, V] to bool [S] and is monotone: true for t = 0, and once false stays so.
    Non-negative floats are ordered like their bit patterns, so 31 halvings of the pattern find t
    exactly, without sorting the vocabulary and with one [S, V] reduction each.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        ok = enough(probs >= lax.bitcast_convert_type(middle, jnp.float32)[:, None])
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    low = jnp.zeros(probs.shape[0], jnp.int32)
    high = jnp.full(probs.shape[0], 0x3F800001, jnp.int32)  # the pattern after 1.0
    low, _ = lax.fori_loop(0, 31, halve, (low, high))
    return lax.bitcast_convert_type(low, jnp.float32)[:, None]


def truncate(probs: jax.Array, params: SamplingParams) -> jax.Array:
    """Sets to zero the probabilities [S, V] that top-k, then top-p, then min-p exclude.

    top_p counts mass among the tokens top_k left, as the usual samplers do. Not renormalised.
    """
    vocab_size = probs.shape[-1]
    k = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, vocab_size), vocab_size)
    kept = jnp.where(probs >= _largest_threshold(probs, lambda m: jnp.sum(m, -1) >= k), probs, 0)
    # top_p = 1 keeps everything, whatever the rounding of the sums.
    target = jnp.where(params.top_p < 1, params.top_p * jnp.sum(kept, -1), 0)
    nucleus = _largest_threshold(kept, lambda m: jnp.sum(jnp.where(m, kept, 0), -1) >= target)
    kept = jnp.where(kept >= jnp.where(params.top_p < 1, nucleus, 0), kept, 0)
    return jnp.where(kept >= params.min_p * jnp.max(kept, -1, keepdims=True), kept, 0)


def _first_above(masses: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per row of masses [S, n]: the first index at which their running sum exceeds target [S], and how much of the
    target is left for it."""
    cumulative = jnp.cumsum(masses, axis=-1)
    # Summed in a tree, it may rise by rounding where there is no mass: such an entry is not to be found.
    reached = jnp.where(masses > 0, cumulative, 0)
    # Strictly below the total, so that some entry exceeds it.
    target = jnp.minimum(target, jnp.nextafter(jnp.max(reached, axis=-1), 0.0))
    index = jnp.argmax(reached > target[:, None], axis=-1).astype(jnp.int32)
    before = jnp.take_along_axis(cumulative, jnp.maximum(index - 1, 0)[:, None], axis=-1)[:, 0]
    return index, target - jnp.where(index > 0, before, 0)


def _draw(probs: jax.Array, uniform: jax.Array) -> jax.Array:
    """Inverts the distribution function of probs [S, V], not normalised, at uniform [S] in [0, 1).

    First the block of tokens, then the token in it: the vocabulary is read once, and never as running sums.
    """
    num_slots, vocab_size = probs.shape
    blocks = jnp.pad(probs, ((0, 0), (0, -vocab_size % BLOCK))).reshape(num_slots, -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    block, rest = _first_above(sums, uniform * jnp.sum(sums, axis=-1))
    index, _ = _first_above(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], rest)
    return block * BLOCK + index


def sample(logits: jax.Array, keys: jax.Array, params: SamplingParams) -> tuple[jax.Array, jax.Array]:
    """Draws one token per slot.

    logits: [S, V] float32. keys: typed PRNG keys [S]; row s depends on keys[s] alone.
    Returns (tokens [S] int32, log_probs [S] float32), where log_probs is the *full-vocabulary*
    log-softmax of logits / temperature: truncation changes the draw, not log_probs.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits / params.temperature, axis=-1)
    uniform = jax.vmap(jax.random.uniform)(keys)

    def draw(keep=lambda probs: probs):
        return _draw(keep(jnp.exp(logits / params.temperature - normaliser[:, None])), uniform)

    truncating = (params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0)
    tokens = lax.cond(truncating, lambda: draw(lambda probs: truncate(probs, params)), draw)
    drawn = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, drawn / params.temperature - normaliser
