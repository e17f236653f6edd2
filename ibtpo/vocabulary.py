"""The softmax over the vocabulary in training: few passes over the logits, which are the largest arrays of an update.

    log_prob = l[token] - lse,   entropy = lse - sum_v p_v l_v,   p = exp(l - lse),   lse = log sum_v exp(l_v)

forwards: the maximum, and one pass for the three sums; backwards one, from the log-sum-exp that the forward pass keeps:

    d l_v = g (1[v = token] - p_v) - h p_v (log p_v + entropy)

for the cotangents g of log_prob and h of entropy.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

KEPT = "vocabulary"  # the name, for a remat policy, of what the backward pass needs beside the logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def log_prob_and_entropy(
    logits: jax.Array, tokens: jax.Array, entropy_gradient: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of each token, entropy of the distribution), [...] each, of logits [..., V] and tokens [...].

    The vocabulary may be split over devices: a masked sum, not an index, reads the token's own.

    entropy_gradient: whether gradients flow through the entropy.
    """
    return _forward(logits, tokens, entropy_gradient)[0]


def _own(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.arange(logits.shape[-1]) == tokens[..., None]


def _forward(logits, tokens, entropy_gradient):
    high = logits.max(-1, keepdims=True)
    low = logits - high
    weights = jnp.exp(low)
    total = weights.sum(-1)
    log_prob = jnp.where(_own(logits, tokens), low, 0).sum(-1) - jnp.log(total)
    entropy = jnp.log(total) - (weights * low).sum(-1) / total
    lse = checkpoint_name(high[..., 0] + jnp.log(total), KEPT)
    return (log_prob, entropy), (logits, tokens, lse, checkpoint_name(entropy, KEPT))


def _backward(entropy_gradient, saved, cotangents):
    logits, tokens, lse, entropy = saved
    g, h = (x[..., None] for x in cotangents)
    log_p = logits - lse[..., None]
    p = jnp.exp(log_p)
    gradient = g * (_own(logits, tokens) - p)
    if entropy_gradient:
        gradient -= h * p * (log_p + entropy[..., None])
    return gradient, None


log_prob_and_entropy.defvjp(_forward, _backward)


@jax.custom_vjp
def project(hidden: jax.Array, table: jax.Array) -> jax.Array:
    """Logits [..., V] in float32 at least, of hidden [..., D] and table [V, D] in one type.

    The gradient of the logits is rounded to that type before it is multiplied: otherwise both products of the backward
    pass would be of float32, at half the speed of a GPU's bfloat16 and twice the bytes.
    """
    kind = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=kind)


def _project_backward(saved, g):
    hidden, table = saved
    g = g.astype(hidden.dtype)
    return (
        jnp.einsum("...v,vd->...d", g, table),
        jnp.einsum("...v,...d->vd", g, hidden).astype(table.dtype),
    )


project.defvjp(lambda hidden, table: (project(hidden, table), (hidden, table)), _project_backward)
