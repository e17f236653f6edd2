"""Segments of a tree, between one fork and the next: the nodes of the methods that know no steps.

Here nodes are cut at steps too, and along an unbranched chain of steps nothing changes: every node of it has the same
responses and the same value. A method that compares a segment with the one before must not see the cuts between.
"""

from ibtpo.tree import Array, Tree, at_parent, namespace, scatter_sum, sum_over_children


def segment_heads(tree: Tree) -> Array:
    """The first node of each node's segment, [Q, N] int32.

    A segment begins behind the question and behind every node with several children. Depth first, the only child of a
    node is the next one, so a segment is a range of nodes.
    """
    xp = namespace(tree.tokens)
    node = xp.arange(tree.node_parent.shape[1], dtype=xp.int32)
    children = sum_over_children(tree, xp.ones(tree.node_parent.shape, xp.int32))
    begins = (tree.node_parent <= 0) | (at_parent(tree, children) > 1)
    return xp.maximum.accumulate(xp.where(begins, node, 0), axis=1)


def inherited(tree: Tree, x: Array) -> Array:
    """[Q, N]: x of the first node of each node's segment."""
    return namespace(x).take_along_axis(x, segment_heads(tree), axis=1)


def whole_segments(tree: Tree, segment_tokens: int) -> Array:
    """How many segments of a fixed length, counted from the first generated token, end within each node, [Q, N]."""
    xp = namespace(tree.tokens)
    last = xp.where(tree.step > 0, tree.positions - tree.prompt_length[:, None] + 1, 0)  # tokens up to each
    ends = (last > 0) & (last % segment_tokens == 0)
    index = xp.where(ends, tree.step, -1)
    return scatter_sum(index, ends.astype(xp.int32), tree.node_parent.shape[1])
