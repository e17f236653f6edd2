"""The weights of a token in the loss: P, N and W of every node of a tree (docs/method.md, section 4).

Dimension letters: Q questions, R responses, N nodes, T tokens.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ibtpo.advantages import agreeing
from ibtpo.choices import AGGREGATIONS, SHARED_TOKENS
from ibtpo.tree import Array, Tree, namespace, on_path, sum_by_node

WHITEN_EPSILON = 1e-8


class TokenWeights(NamedTuple):
    """The weights of one token of each node, [Q, N] each; 0 at the root (the prompt) and on padding.

    Over the responses r whose path holds the node: positive (P) = sum_r w_r max(A_r, 0), negative (N) =
    sum_r w_r min(A_r, 0), weight (W) = sum_r w_r; w_r may depend on the node too.
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
    simply add. ("unique_mean" has no weight of a response: see `token_weights`.)

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


def kept_tokens(tree: Tree, max_old_probability: float = 1.0) -> Array:
    """The generated tokens of each node that were drawn with less than `max_old_probability` (1: all), [Q, N]; 0 at the
    root and on padding."""
    kept = tree.step > 0
    if max_old_probability < 1:
        kept &= tree.log_probs < math.log(max_old_probability)
    return sum_by_node(tree, kept.astype(tree.rewards.dtype))


def _trained(tree: Tree, mask: Array | None) -> Array:
    """[Q, R, N] bool: the generated nodes that a response runs through, where the mask of [Q], [Q, R] or [Q, R, N] is
    True."""
    xp = namespace(tree.rewards)
    trained = on_path(tree) & (xp.arange(tree.node_parent.shape[1]) > 0)
    return trained if mask is None else trained & xp.reshape(mask, (*mask.shape, 1, 1)[:3])


def _weights_on_paths(
    tree: Tree,
    mask: Array | None,
    *,
    aggregation: str,
    max_new_tokens: int,
    shared_tokens: str = "each",
    max_old_probability: float = 1.0,
) -> Array:
    """w_{r,n}, [Q, R, N]: the weight of one token of node n in response r, see `token_weights`; 0 where it is not
    trained."""
    xp = namespace(tree.rewards)
    trained = _trained(tree, mask)
    if aggregation == "unique_mean":
        sharing = xp.sum(trained, axis=1)
        tokens = xp.sum(xp.where(sharing > 0, kept_tokens(tree, max_old_probability), 0))
        weights = 1 / (xp.maximum(sharing, 1) * xp.maximum(tokens, 1)).astype(tree.rewards.dtype)
        return xp.where(trained & (tokens > 0), weights[:, None, :], 0)
    weights = response_weights(tree, aggregation=aggregation, max_new_tokens=max_new_tokens)[:, :, None]
    if shared_tokens == "once":
        weights = weights / xp.maximum(agreeing(tree), 1)
    elif shared_tokens != "each":
        raise ValueError(f"loss.shared_tokens={shared_tokens!r} is none of {', '.join(SHARED_TOKENS)}")
    return xp.where(trained, weights, 0)


def whiten(
    tree: Tree,
    advantages: Array,
    mask: Array | None = None,
    *,
    unique: bool = False,
    max_old_probability: float = 1.0,
) -> Array:
    """(A − mean)/sqrt(variance + 1e-8) over the trained tokens of all responses of the batch, [Q, R, N].

    A shared token counts once per response through it or, with `unique`, once. The variance is of the number of tokens
    less one. 0 off the path, where the mask is False, and where all are equal.

    Args:
      advantages: [Q, R, N].
      mask: bool [Q], [Q, R] or [Q, R, N]: what is counted and returned; all else is 0.
      max_old_probability: tokens drawn with at least that are not counted; 1: all are.

    Source: `masked_whiten` of verl/utils/torch_functional.py, which TreePO and SPO use.
    """
    xp = namespace(tree.rewards)
    trained = _trained(tree, mask)
    tokens = xp.where(trained, kept_tokens(tree, max_old_probability)[:, None, :], 0).astype(advantages.dtype)
    if unique:
        tokens = tokens / xp.maximum(xp.sum(trained, axis=1, keepdims=True), 1)
    count = xp.sum(tokens)
    centred = advantages - xp.sum(tokens * advantages) / xp.maximum(count, 1)
    variance = xp.sum(tokens * centred**2) / xp.maximum(count - 1, 1)
    # Equal advantages differ from their mean by rounding alone, which must not be divided by.
    rounding = 8 * xp.finfo(advantages.dtype).eps * xp.maximum(xp.max(xp.abs(advantages)), 1)
    spread = (xp.sqrt(variance) > rounding) & (count > 1)
    return xp.where(trained & spread, centred / xp.sqrt(variance + WHITEN_EPSILON), 0)


def token_weights(
    tree: Tree,
    advantages: Array,
    *,
    aggregation: str,
    max_new_tokens: int,
    shared_tokens: str = "each",
    max_old_probability: float = 1.0,
    mask: Array | None = None,
) -> TokenWeights:
    """The weights in the loss of one token of each node.

    w_r is that of `response_weights`, with shared_tokens="once" divided by the number of responses that begin with the
    same tokens up to the end of the node (lambda-GRPO, arXiv 2509.21154, its process set; for a tree `by_token`). With
    aggregation="unique_mean" every unique token that is trained weighs 1 / their number, those drawn with at least
    max_old_probability not counted (SPO, arXiv 2505.23564): w_r = 1 / (trained responses through the node * number).

    The clipped objective is positively homogeneous in A for each sign, so P, N and W are all that the loss needs,
    exactly. The root (the prompt) weighs nothing.

    Args:
      tree: [Q, ...], NumPy or JAX arrays.
      advantages: [Q, R, N], of response r at node n.
      aggregation, max_new_tokens: see `response_weights`.
      mask: bool [Q], [Q, R] or [Q, R, N]; groups, responses, or nodes of one, that are False are dropped from the loss,
        yet still counted in its denominators, but for "unique_mean".
    """
    xp = namespace(tree.rewards)
    weights = _weights_on_paths(
        tree,
        mask,
        aggregation=aggregation,
        max_new_tokens=max_new_tokens,
        shared_tokens=shared_tokens,
        max_old_probability=max_old_probability,
    )
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
    mask: Array | None = None,
    **options: Any,
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
    weights = _weights_on_paths(tree, mask, **options)
    of_node = sum_by_node(tree, np.where(tree.step > 0, np.asarray(log_probs) - tree.log_probs, 0))
    total = np.where(on_path(tree), of_node[:, None], 0).sum(axis=2)  # the root's difference is 0
    ratio = np.exp(total / np.maximum(tree.response_length, 1))[:, :, None]
    clipped = np.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    factor = np.where(clipped, 0, weights * advantages * ratio).sum(axis=1)
    constant = np.where(clipped, weights * advantages * np.clip(ratio, 1 - clip_low, 1 + clip_high), 0).sum(axis=1)
    return TokenWeights(factor, constant, weights.sum(axis=1))
