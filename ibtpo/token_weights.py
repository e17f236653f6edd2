"""The weights of a token in the loss: P, N and W of every node of a tree (docs/method.md, section 4).

Dimension letters: Q questions, R responses, N nodes, T tokens.
"""

from typing import NamedTuple

import jax
import numpy as np

from ibtpo.choices import AGGREGATIONS
from ibtpo.tree import Array, Tree, namespace, on_path, sum_by_node


class TokenWeights(NamedTuple):
    """The weights of one token of each node, [Q, N] each; 0 at the root (the prompt) and on padding.

    Over the responses r whose path holds the node: positive (P) = sum_r w_r max(A_r, 0), negative (N) =
    sum_r w_r min(A_r, 0), weight (W) = sum_r w_r.
    """

    positive: Array
    negative: Array
    weight: Array


def response_weights(tree: Tree, *, aggregation: str, max_new_tokens: int) -> Array:
    """w_r of one generated token of response r, [Q, R]; 0 on padding.

        response_mean (GRPO):     1 / (responses * length_r)
        token_mean (DAPO):        1 / generated tokens, shared ones counted once per response
        fixed_length (Dr. GRPO):  1 / (responses * max_new_tokens)

    Responses and tokens are counted over the whole batch of trees, so gradients of microbatches
    simply add.

    Raises:
      ValueError: unknown aggregation.
    """
    xp = namespace(tree.rewards)
    finished = tree.response_node >= 0
    dtype = tree.rewards.dtype
    length = xp.where(finished, tree.response_length, 0).astype(dtype)
    num_responses = xp.maximum(finished.sum(), 1).astype(dtype)
    if aggregation == "response_mean":
        weights = 1 / (num_responses * xp.maximum(length, 1))
    elif aggregation == "token_mean":
        weights = xp.ones_like(length) / xp.maximum(length.sum(), 1)
    elif aggregation == "fixed_length":
        weights = xp.ones_like(length) / (num_responses * max_new_tokens)
    else:
        raise ValueError(f"loss.aggregation={aggregation!r} is none of {', '.join(AGGREGATIONS)}")
    return xp.where(finished, weights, 0).astype(dtype)


def _weights_on_paths(tree: Tree, aggregation: str, max_new_tokens: int, mask: Array | None) -> Array:
    """[Q, R, N]: w_r of `response_weights` at the generated nodes that response r runs through; 0 elsewhere, and where
    the mask [Q] or [Q, R] is False."""
    xp = namespace(tree.rewards)
    weights = response_weights(tree, aggregation=aggregation, max_new_tokens=max_new_tokens)
    if mask is not None:
        weights = xp.where(mask if mask.ndim == 2 else mask[:, None], weights, 0)
    trained = on_path(tree) & (xp.arange(tree.node_parent.shape[1]) > 0)
    return xp.where(trained, weights[:, :, None], 0)


def token_weights(
    tree: Tree,
    advantages: Array,
    *,
    aggregation: str,
    max_new_tokens: int,
    mask: Array | None = None,
) -> TokenWeights:
    """The weights in the loss of one token of each node, with w_r of `response_weights`.

    The clipped objective is positively homogeneous in A for each sign, so P, N and W are all that the loss needs,
    exactly. The root (the prompt) weighs nothing.

    Args:
      tree: [Q, ...], NumPy or JAX arrays.
      advantages: [Q, R, N], of response r at node n.
      aggregation, max_new_tokens: see `response_weights`.
      mask: bool [Q] or [Q, R]; groups, or responses, that are False are dropped from the loss, yet still counted in
        its denominators.
    """
    xp = namespace(tree.rewards)
    weights = _weights_on_paths(tree, aggregation, max_new_tokens, mask)
    positive = (weights * xp.maximum(advantages, 0)).sum(axis=1)
    negative = (weights * xp.minimum(advantages, 0)).sum(axis=1)
    return TokenWeights(positive, negative, weights.sum(axis=1))


def sequence_weights(
    tree: Tree,
    advantages: Array,
    log_probs: Array,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: str,
    max_new_tokens: int,
    mask: Array | None = None,
) -> TokenWeights:
    """`token_weights` for the ratio of a whole response instead of a token's (GSPO-token, arXiv 2507.18071).

    With s_r = exp(mean over the tokens of response r of log_probs - tree.log_probs), a constant to the gradient, a
    token of the response loses -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), where s is s_r exp(lp - sg(lp)). So
    of the responses r through a node, those that are not clipped give w_r A_r s_r to the factor of exp(lp - sg(lp)),
    and the others w_r A_r clip(s_r) to a constant.

    Args:
      log_probs: [Q, T], by the current policy.
      the others: as of `token_weights`.

    Returns:
      The factor in place of P, the constant in place of N, and W.
    """
    tree, advantages = jax.tree.map(np.asarray, (tree, advantages))
    weights = _weights_on_paths(tree, aggregation, max_new_tokens, mask)
    of_node = sum_by_node(tree, np.where(tree.step > 0, np.asarray(log_probs) - tree.log_probs, 0))
    total = np.where(on_path(tree), of_node[:, None], 0).sum(axis=2)  # the root's difference is 0
    ratio = np.exp(total / np.maximum(tree.response_length, 1))[:, :, None]
    clipped = np.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    factor = np.where(clipped, 0, weights * advantages * ratio).sum(axis=1)
    constant = np.where(clipped, weights * advantages * np.clip(ratio, 1 - clip_low, 1 + clip_high), 0).sum(axis=1)
    return TokenWeights(factor, constant, weights.sum(axis=1))
