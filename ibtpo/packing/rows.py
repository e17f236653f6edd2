"""Trees into training rows: several trees side by side in one row, each unique token once.

    layout = plan(tree, row_tokens=...)        where every tree goes; once for trees that are trained on together
    batch = fill(layout, tree, weights)        their rows, [B, T]
    values = unpack(log_probs, layout)         a model's values for the rows, in tree order

Dimension letters: Q questions, N nodes, B rows, T tokens.

A row is a sequence of trees. Because token i attends to j iff j <= i < subtree_end[j], trees in one row never see each
other, and shifting `subtree_end` and `parent_token` by the tree's offset is all that moving a tree takes. A tree longer
than a row is cut into pieces: consecutive nodes, behind the tokens that they descend from, which weigh nothing there.

Everything here is NumPy on the host, but for `moved`.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ibtpo.parallel import constrain
from ibtpo.token_weights import TokenWeights
from ibtpo.tree import Array, Tree

ROW_STEP = 128  # tokens, at least, between two lengths of rows


def row_length(num_tokens: int) -> int:
    """The tokens of a row that is to hold `num_tokens`, in coarse steps: 128 tokens, or a 32nd to a 16th of the row."""
    step = max(ROW_STEP, 1 << max(num_tokens.bit_length() - 5, 0))
    return -(-num_tokens // step) * step


class TokenBatch(flax.struct.PyTreeNode):
    """Training rows, [B, T]; every unique token of several trees once.

    tokens, positions, subtree_end, parent_token: as in `Tree`, with indices counted within the row.
    log_probs: log-probability of the token under the behaviour policy.
    positive, negative, weight: P, N and W of the token (`TokenWeights`). All three are 0 on prompts, on padding and on
      masked groups, and weight > 0 marks the trained tokens.
    ref_log_probs: log-probability under the frozen reference; None where nothing needs one.
    old_log_probs: the trainer's own with the parameters that drew the tokens; None: those are the current ones.
    """

    tokens: Array
    positions: Array
    subtree_end: Array
    parent_token: Array
    log_probs: Array
    positive: Array
    negative: Array
    weight: Array
    ref_log_probs: Array | None = None
    old_log_probs: Array | None = None


class Piece(NamedTuple):
    """A unit of packing: all of a tree, or some of its nodes and the path to them.

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

    @property
    def source(self) -> np.ndarray:
        """Indices in the tree of all its tokens."""
        return np.concatenate([self.path, np.arange(self.start, self.stop)])

    @property
    def cells(self) -> tuple[int, slice]:
        """Where all of it lies in the rows."""
        return self.row, slice(self.offset, self.offset + self.length)

    @property
    def own_cells(self) -> tuple[int, slice]:
        """Where its own tokens lie in the rows."""
        return self.row, slice(self.offset + len(self.path), self.offset + self.length)


class Layout(NamedTuple):
    """The layout made by `plan`.

    pieces: those of all trees packed. rows: (B, T). trees: (Q, T) of the trees.
    useful_share: of the cells that are computed (microbatches of padding alone are not), the share with a token of some
    piece's own. repeated_share: tokens of paths, repeated for pieces, over own ones.
    """

    pieces: list[Piece]
    rows: tuple[int, int]
    trees: tuple[int, int]
    useful_share: float
    repeated_share: float


def plan(
    tree: Tree,
    *,
    row_tokens: int,
    rows_per_step: int = 1,
    num_rows: int = 0,
    select: Array | None = None,
) -> Layout:
    """Places trees in rows of `row_tokens` tokens, first-fit decreasing.

    A tree that is longer is cut between nodes into as few pieces as come of filling each in turn. Every token has its
    weight in one piece only, and the tokens that it descends from beside it, so the gradient is that of the whole tree.

    Args:
      tree: [Q, ...].
      row_tokens: T of the rows.
      rows_per_step: rows of a microbatch. B is a multiple of it.
      num_rows: B, so that one compiled program serves every number of trees; 0: as few as hold the trees, at least
        one microbatch. The rows in use are dealt out to as few microbatches as hold them, the first ones: microbatch m
        of the B / rows_per_step is every row m, m + B / rows_per_step, ...
      select: bool [Q], the trees to pack (default: all); a group that weighs nothing need not cost a forward pass.

    Raises:
      ValueError: a response and its prompt have more tokens than a row; num_rows is too small, or no multiple.
    """
    if rows_per_step < 1 or num_rows % rows_per_step:
        raise ValueError(
            f"num_rows={num_rows} must be a multiple of rows_per_step={rows_per_step}, which is at least 1"
        )
    tree = jax.tree.map(np.asarray, tree)
    length = (tree.step >= 0).sum(axis=1)
    if select is not None:
        length = np.where(np.asarray(select), length, 0)
    pieces = [piece for q in np.flatnonzero(length) for piece in _pieces(tree, int(q), int(length[q]), row_tokens)]
    used: list[int] = []
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i].length):
        n = pieces[i].length
        b = next((b for b, taken in enumerate(used) if taken + n <= row_tokens), len(used))
        if b == len(used):
            used.append(0)
        pieces[i] = pieces[i]._replace(row=b, offset=used[b])
        used[b] += n

    microbatches = -(-max(len(used), 1) // rows_per_step)
    computed = microbatches * rows_per_step
    num_rows = num_rows or computed
    if computed > num_rows:
        raise ValueError(f"the trees need {computed} rows of {row_tokens} tokens, more than num_rows={num_rows}")
    apart = num_rows // rows_per_step  # rows between two of one microbatch
    pieces = [p._replace(row=p.row // microbatches * apart + p.row % microbatches) for p in pieces]
    repeated, useful = sum(len(piece.path) for piece in pieces), float(length.sum())
    return Layout(
        pieces=pieces,
        rows=(num_rows, row_tokens),
        trees=(tree.tokens.shape[0], tree.tokens.shape[1]),
        useful_share=useful / (computed * row_tokens),
        repeated_share=repeated / max(useful, 1.0),
    )


def _pieces(tree: Tree, q: int, length: int, row_tokens: int) -> Iterator[Piece]:
    """The pieces of tree q, of `length` tokens: all of it, or else whole nodes as long as a row holds them.

    A row holds any path from the question to a response's end, so each piece has one such end at least.
    """
    none = np.zeros(0, int)
    if length <= row_tokens:
        yield Piece(q, none, 0, length)
        return
    starts = np.flatnonzero(np.diff(tree.step[q, :length], prepend=-1))
    piece = Piece(q, none, 0, 0)
    for start, stop in itertools.pairwise([*starts, length]):
        if piece.length + stop - start > row_tokens:
            yield piece
            piece = Piece(q, np.flatnonzero(tree.subtree_end[q, :start] > start), start, start)
        if piece.length + stop - start > row_tokens:
            longest = int(tree.positions[q, :length].max()) + 1
            raise ValueError(
                f"a response of tree {q} of this batch has {longest} tokens with its prompt, but a row holds "
                f"train.row_tokens={row_tokens}: raise train.row_tokens to at least {longest}, or sample shorter "
                "responses"
            )
        piece = piece._replace(stop=stop)
    yield piece


def fill(layout: Layout, tree: Tree, weights: TokenWeights | None = None) -> TokenBatch:
    """The rows [B, T] of a layout, NumPy arrays, with the trees that it was planned for.

    weights: [Q, N] each, of `token_weights`; None: every token weighs 0.
    """
    tree = jax.tree.map(np.asarray, tree)
    own = np.broadcast_to(np.arange(layout.rows[1], dtype=np.int32), layout.rows)
    batch = TokenBatch(
        tokens=place(tree.tokens, layout),
        positions=place(tree.positions, layout),
        subtree_end=own + 1,
        parent_token=own.copy(),
        log_probs=place(tree.log_probs, layout),
        **place_weights(layout, tree, weights or TokenWeights(*[np.zeros(tree.node_parent.shape, np.float32)] * 3)),
    )
    for piece in layout.pieces:
        q, source = piece.question, piece.source
        # Indices of the tree as columns of the row: how many of the piece's tokens come before.
        batch.subtree_end[piece.cells] = piece.offset + np.searchsorted(source, tree.subtree_end[q, source])
        batch.parent_token[piece.cells] = piece.offset + np.searchsorted(source, tree.parent_token[q, source])
    return batch


def place_weights(layout: Layout, tree: Tree, weights: TokenWeights) -> dict[str, np.ndarray]:
    """P, N and W of nodes, [Q, N], as those of tokens in the rows, [B, T], by their names in `TokenBatch`."""
    result = {}
    for name, value in weights._asdict().items():
        value = np.asarray(value)
        target = result[name] = np.zeros(layout.rows, value.dtype)
        for piece in layout.pieces:
            target[piece.own_cells] = value[piece.question, tree.step[piece.question, piece.start : piece.stop]]
    return result


def unpack(values: Array, layout: Layout) -> np.ndarray:
    """Values of rows, [B, T], in tree order, [Q, T]; 0 where nothing was packed."""
    values = np.asarray(values)
    result = np.zeros(layout.trees, values.dtype)
    for piece in layout.pieces:
        result[piece.question, piece.start : piece.stop] = values[piece.own_cells]
    return result


def place(values: Array, layout: Layout) -> np.ndarray:
    """The other way: values in tree order, [Q, T], in the rows, [B, T]; 0 elsewhere."""
    values = np.asarray(values)
    result = np.zeros(layout.rows, values.dtype)
    for piece in layout.pieces:
        result[piece.cells] = values[piece.question, piece.source]
    return result


def moved(values: jax.Array, layout: Layout, other: Layout, questions: np.ndarray) -> jax.Array:
    """Values of the rows of `layout`, [B, T], in those of `other`, on the devices; anything where nothing was packed.

    questions: which trees of `layout` those of `other` are, [Q].
    """
    cells = np.arange(np.prod(layout.rows), dtype=np.int32).reshape(layout.rows)
    return _take(values, place(unpack(cells, layout)[questions], other))


@jax.jit
def _take(values: jax.Array, index: np.ndarray) -> jax.Array:
    return constrain(jnp.take(values.reshape(-1), index), "rows", None)
