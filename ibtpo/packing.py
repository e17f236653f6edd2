"""Trees into training rows: per-token loss weights, and several trees side by side in one row.

Dimension letters: Q questions, R responses, N nodes, B rows, T tokens.

A row is a sequence of trees. Because token i attends to j iff j <= i < subtree_end[j], trees in one row never see each
other, and shifting `subtree_end` and `parent_token` by the tree's offset is all that moving a tree takes. A tree longer
than a row is cut into pieces: consecutive nodes, behind the tokens that they descend from, which weigh nothing there.
"""

import itertools
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


class Piece(NamedTuple):
    """What is packed as one: all of a tree, or some of its nodes and the path to them.

    question: the tree. path: indices of the tokens that are there to be attended to only. start, stop: the piece's own
    tokens. row, offset: column of the first token of the path, or else of its own.
    """

    question: int
    path: np.ndarray
    start: int
    stop: int
    row: int = -1
    offset: int = 0

    @property
    def length(self) -> int:
        return len(self.path) + self.stop - self.start


class Layout(NamedTuple):
    """Where `pack` put what.

    pieces: those of all trees packed. useful_share: share of the [B, T] cells with a token of some piece's own.
    repeated_share: tokens of paths, repeated for pieces, over own ones.
    """

    pieces: list[Piece]
    useful_share: float
    repeated_share: float


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


def _weights_on_paths(tree: Tree, aggregation: str, max_new_tokens: int, mask: Array | None) -> Array:
    """[Q, R, N]: w_r of `response_weights` at the generated nodes that response r runs through; 0 elsewhere, and where
    the mask [Q] or [Q, R] is False."""
    xp = tree.rewards.__array_namespace__()
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
      mask: bool [Q] or [Q, R]; groups, or responses, that are False are dropped from the loss, yet still counted in
        its denominators.
    """
    xp = tree.rewards.__array_namespace__()
    weights = _weights_on_paths(tree, aggregation, max_new_tokens, mask)
    positive = (weights * xp.maximum(advantages, 0)).sum(axis=1)
    negative = (weights * xp.minimum(advantages, 0)).sum(axis=1)
    return positive, negative, weights.sum(axis=1)


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
) -> tuple[Array, Array, Array]:
    """What `token_weights` is to a ratio of tokens, for one of whole responses (GSPO-token, arXiv 2507.18071).

    With s_r = exp(mean over the tokens of response r of log_probs - tree.log_probs), a constant to the gradient, a
    token of the response loses -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), where s is s_r exp(lp - sg(lp)). So
    of the responses r through a node, those that are not clipped give w_r A_r s_r to what multiplies exp(lp - sg(lp)),
    and the others w_r A_r clip(s_r) to a constant.

    Args:
      log_probs: [Q, T], by the current policy.
      the others: as of `token_weights`.

    Returns:
      ([Q, N] the factor, [Q, N] the constant, [Q, N] weight = sum_r w_r).
    """
    tree, advantages = jax.tree.map(np.asarray, (tree, advantages))
    weights = _weights_on_paths(tree, aggregation, max_new_tokens, mask)
    num_questions, num_nodes = tree.node_parent.shape
    difference = np.where(tree.step > 0, np.asarray(log_probs) - tree.log_probs, 0)
    of_node = np.zeros((num_questions, num_nodes), difference.dtype)
    np.add.at(of_node, (np.arange(num_questions)[:, None], np.maximum(tree.step, 0)), difference)
    total = np.where(on_path(tree), of_node[:, None], 0).sum(axis=2)  # the root's difference is 0
    ratio = np.exp(total / np.maximum(tree.response_length, 1))[:, :, None]
    clipped = np.where(advantages > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    factor = np.where(clipped, 0, weights * advantages * ratio).sum(axis=1)
    constant = np.where(clipped, weights * advantages * np.clip(ratio, 1 - clip_low, 1 + clip_high), 0).sum(axis=1)
    return factor, constant, weights.sum(axis=1)


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
    """Packs trees into rows of `row_tokens` tokens, first-fit decreasing (on the host, NumPy).

    A tree that is longer is cut between nodes into as few pieces as come of filling each in turn. Every token has its
    weight in one piece only, and the tokens that it descends from beside it, so the gradient is that of the whole tree.

    The layout depends on the trees and `select` alone, so packing again with other weights puts every token in the same
    cell; `unpack` is the way back.

    Args:
      tree: [Q, ...].
      positive, negative, weight: [Q, N], of `token_weights`.
      row_tokens: T of the result.
      row_multiple: the number of rows is padded with empty rows to the next multiple of this (at
        least one), so that compiled shapes are few and microbatches and data shards divide it.
      select: bool [Q], the trees to pack (default: all); a group that weighs nothing need not cost
        a forward pass.

    Raises:
      ValueError: a response and its prompt have more tokens than a row.
    """
    if row_multiple < 1:
        raise ValueError(f"row_multiple={row_multiple} must be at least 1")
    tree = jax.tree.map(np.asarray, tree)
    values = [np.asarray(x) for x in (positive, negative, weight)]
    length = (tree.step >= 0).sum(axis=1)
    if select is not None:
        length = np.where(np.asarray(select), length, 0)
    pieces = [piece for q in np.flatnonzero(length) for piece in _pieces(tree, q, int(length[q]), row_tokens)]
    used: list[int] = []
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i].length):
        n = pieces[i].length
        b = next((b for b, taken in enumerate(used) if taken + n <= row_tokens), len(used))
        if b == len(used):
            used.append(0)
        pieces[i] = pieces[i]._replace(row=b, offset=used[b])
        used[b] += n

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
    for piece in pieces:
        q, source = piece.question, np.concatenate([piece.path, np.arange(piece.start, piece.stop)])
        cells = (piece.row, slice(piece.offset, piece.offset + piece.length))
        batch.tokens[cells] = tree.tokens[q, source]
        batch.positions[cells] = tree.positions[q, source]
        # Indices of the tree as columns of the row: how many of the piece's tokens come before.
        batch.subtree_end[cells] = piece.offset + np.searchsorted(source, tree.subtree_end[q, source])
        batch.parent_token[cells] = piece.offset + np.searchsorted(source, tree.parent_token[q, source])
        batch.log_probs[cells] = tree.log_probs[q, source]
        own = (piece.row, slice(piece.offset + len(piece.path), piece.offset + piece.length))
        for target, value in zip((batch.positive, batch.negative, batch.weight), values):
            target[own] = value[q, tree.step[q, piece.start : piece.stop]]
    repeated = sum(len(piece.path) for piece in pieces)
    useful = float(length.sum())
    return batch, Layout(pieces, useful / (num_rows * row_tokens), repeated / max(useful, 1.0))


def _pieces(tree: Tree, q: int, length: int, row_tokens: int) -> list[Piece]:
    """The pieces of tree q, of `length` tokens: all of it, or else whole nodes as long as a row holds them."""
    none = np.zeros(0, int)
    if length <= row_tokens:
        return [Piece(q, none, 0, length)]
    starts = np.flatnonzero(np.diff(tree.step[q, :length], prepend=-1))
    pieces, piece = [], Piece(q, none, 0, 0)
    for start, stop in itertools.pairwise([*starts, length]):
        if piece.length + stop - start > row_tokens:
            pieces.append(piece)
            piece = Piece(q, np.flatnonzero(tree.subtree_end[q, :start] > start), start, start)
        if piece.length + stop - start > row_tokens:
            longest = int(tree.positions[q, :length].max()) + 1
            raise ValueError(
                f"a response of tree {q} of this batch has {longest} tokens with its prompt, but a row holds "
                f"train.row_tokens={row_tokens}: raise train.row_tokens to at least {longest}, or sample shorter "
                "responses"
            )
        piece = piece._replace(stop=stop)
    return [*pieces, piece]


def unpack(values: Array, layout: Layout, num_questions: int, num_tokens: int) -> np.ndarray:
    """Values of a packed batch, [B, T], in tree order, [num_questions, num_tokens]; 0 where nothing was packed."""
    values = np.asarray(values)
    result = np.zeros((num_questions, num_tokens), values.dtype)
    for piece in layout.pieces:
        begin = piece.offset + len(piece.path)
        own = values[piece.row, begin : begin + piece.stop - piece.start]
        result[piece.question, piece.start : piece.stop] = own
    return result


def place(values: Array, layout: Layout, shape: tuple[int, int]) -> np.ndarray:
    """The other way: values in tree order, [Q, T], in the rows, [B, T'] = `shape`, of the layout; 0 elsewhere."""
    values = np.asarray(values)
    result = np.zeros(shape, values.dtype)
    for piece in layout.pieces:
        source = np.concatenate([piece.path, np.arange(piece.start, piece.stop)])
        result[piece.row, piece.offset : piece.offset + piece.length] = values[piece.question, source]
    return result
