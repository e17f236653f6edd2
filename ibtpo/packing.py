"""Trees into training rows: per-token loss weights, and several trees side by side in one row.

Dimension letters: Q questions, R responses, N nodes, B rows, T tokens.

A row is a sequence of whole trees. Because token i attends to j iff j <= i < subtree_end[j], trees
in one row never see each other, and shifting `subtree_end` and `parent_token` by the tree's offset
is all that moving a tree takes.
"""

from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from ibtpo.tree import Tree, on_path

AGGREGATIONS = ("response_mean", "token_mean", "fixed_length")

Array = jax.Array | np.ndarray

ROW_STEP = 128  # tokens, at least, between two lengths of rows


def row_length(num_tokens: int) -> int:
    """The tokens of a row that is to hold `num_tokens`, in coarse steps (128 tokens, or a 32nd to a 16th of the row):
    each length compiles the update anew."""
    step = max(ROW_STEP, 1 << max(num_tokens.bit_length() - 5, 0))
    return -(-num_tokens // step) * step


@flax.struct.dataclass
class TokenBatch:
    """Training rows, [B, T]; every unique token of several trees once.

    tokens, positions, subtree_end, parent_token: as in `Tree`, with indices counted within the row.
    log_probs: log-probability of the token under the behaviour policy.
    positive, negative, weight: over the responses r through the token, sum_r w_r max(A_r, 0),
      sum_r w_r min(A_r, 0) and sum_r w_r. All three are 0 on prompts, on padding and on masked
      groups, and weight > 0 marks the trained tokens.
    """

    tokens: Array
    positions: Array
    subtree_end: Array
    parent_token: Array
    log_probs: Array
    positive: Array
    negative: Array
    weight: Array


class Layout(NamedTuple):
    """Where `pack` put each tree: columns offset[q] : offset[q] + length[q] of row row[q].

    All [Q]; row is -1 for a tree left out. useful_share: share of the [B, T] cells with a token.
    """

    row: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    useful_share: float


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
    xp = tree.rewards.__array_namespace__()
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


def token_weights(
    tree: Tree,
    advantages: Array,
    *,
    aggregation: str,
    max_new_tokens: int,
    mask: Array | None = None,
) -> tuple[Array, Array, Array]:
    """What one token of each node weighs in the loss: (positive, negative, weight), each [Q, N].

    positive = sum_r w_r max(A_r, 0), negative = sum_r w_r min(A_r, 0), weight = sum_r w_r over the
    responses r whose path holds the node, with w_r of `response_weights`. The clipped objective is
    positively homogeneous in A for each sign, so these three are all that the loss needs, exactly.
    The root (the prompt) weighs nothing.

    Args:
      tree: [Q, ...], NumPy or JAX arrays.
      advantages: [Q, R, N], what response r gives node n.
      aggregation, max_new_tokens: see `response_weights`.
      mask: bool [Q]; groups that are False are dropped from the loss, yet still counted in its
        denominators.
    """
    xp = tree.rewards.__array_namespace__()
    weights = response_weights(tree, aggregation=aggregation, max_new_tokens=max_new_tokens)
    if mask is not None:
        weights = xp.where(mask[:, None], weights, 0)
    num_nodes = tree.node_parent.shape[1]
    trained = on_path(tree) & (xp.arange(num_nodes) > 0)
    weights = xp.where(trained, weights[:, :, None], 0)  # [Q, R, N]
    positive = (weights * xp.maximum(advantages, 0)).sum(axis=1)
    negative = (weights * xp.minimum(advantages, 0)).sum(axis=1)
    return positive, negative, weights.sum(axis=1)


def pack(
    tree: Tree,
    positive: Array,
    negative: Array,
    weight: Array,
    *,
    row_tokens: int,
    row_multiple: int = 1,
    select: Array | None = None,
) -> tuple[TokenBatch, Layout]:
    """Packs whole trees into rows of `row_tokens` tokens, first-fit decreasing (on the host, NumPy).

    The layout depends on the trees' lengths and `select` alone, so packing again with other weights
    puts every token in the same cell; `unpack` is the way back.

    Args:
      tree: [Q, ...].
      positive, negative, weight: [Q, N], of `token_weights`.
      row_tokens: T of the result.
      row_multiple: the number of rows is padded with empty rows to the next multiple of this (at
        least one), so that compiled shapes are few and microbatches and data shards divide it.
      select: bool [Q], the trees to pack (default: all); a group that weighs nothing need not cost
        a forward pass.

    Raises:
      ValueError: a tree has more tokens than a row.
    """
    if row_multiple < 1:
        raise ValueError(f"row_multiple={row_multiple} must be at least 1")
    tree = jax.tree.map(np.asarray, tree)
    values = [np.asarray(x) for x in (positive, negative, weight)]
    length = (tree.step >= 0).sum(axis=1)
    if select is not None:
        length = np.where(np.asarray(select), length, 0)
    num_questions = length.shape[0]
    longest = int(length.max(initial=0))
    if longest > row_tokens:
        raise ValueError(
            f"tree {int(length.argmax())} of this batch has {longest} tokens, but a row holds "
            f"train.row_tokens={row_tokens}: raise train.row_tokens to at least {longest}, or "
            "sample fewer or shorter responses"
        )

    row = np.full(num_questions, -1)
    offset = np.zeros(num_questions, np.int64)
    used: list[int] = []
    for q in np.argsort(-length, kind="stable"):
        if length[q] == 0:
            break
        fits = (b for b, n in enumerate(used) if n + length[q] <= row_tokens)
        b = next(fits, len(used))
        if b == len(used):
            used.append(0)
        row[q], offset[q] = b, used[b]
        used[b] += int(length[q])

    num_rows = -(-max(len(used), 1) // row_multiple) * row_multiple
    shape = (num_rows, row_tokens)
    own = np.broadcast_to(np.arange(row_tokens, dtype=np.int32), shape)
    batch = TokenBatch(
        tokens=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        subtree_end=own + 1,
        parent_token=own.copy(),
        log_probs=np.zeros(shape, tree.log_probs.dtype),
        positive=np.zeros(shape, values[0].dtype),
        negative=np.zeros(shape, values[1].dtype),
        weight=np.zeros(shape, values[2].dtype),
    )
    for q in np.flatnonzero(row >= 0):
        n, shift = int(length[q]), int(offset[q])
        cells = (row[q], slice(shift, shift + n))
        batch.tokens[cells] = tree.tokens[q, :n]
        batch.positions[cells] = tree.positions[q, :n]
        batch.subtree_end[cells] = tree.subtree_end[q, :n] + shift
        batch.parent_token[cells] = tree.parent_token[q, :n] + shift
        batch.log_probs[cells] = tree.log_probs[q, :n]
        for target, value in zip((batch.positive, batch.negative, batch.weight), values):
            target[cells] = value[q, tree.step[q, :n]]
    return batch, Layout(row, offset, length, float(length.sum()) / (num_rows * row_tokens))


def unpack(values: Array, layout: Layout, num_tokens: int) -> np.ndarray:
    """Values of a packed batch, [B, T], in tree order, [Q, num_tokens]; 0 where nothing was packed."""
    values = np.asarray(values)
    result = np.zeros((layout.row.shape[0], num_tokens), values.dtype)
    for q in np.flatnonzero(layout.row >= 0):
        n, shift = int(layout.length[q]), int(layout.offset[q])
        result[q, :n] = values[layout.row[q], shift : shift + n]
    return result
