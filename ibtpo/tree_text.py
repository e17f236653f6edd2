"""A tree as text, a line per step."""

from collections.abc import Callable

import numpy as np

from ibtpo.tree import Array, Tree, node_mask


def describe(
    tree: Tree,
    decode: Callable[[list[int]], str],
    *,
    question: int = 0,
    values: Array | None = None,
    confidence: Array | None = None,
    score: Array | None = None,
    width: int = 60,
) -> str:
    """One question's tree as indented text, a line per node.

    A line shows the step's text (abbreviated to `width` characters) and, where given, the value
    p̂, the confidence π and, for a node with children, the score J ([Q, N] each). A node is
    indented under its parent only where the parent branches, so a chain stays flush. Leaves show
    the response's index, round and reward.
    """
    nodes = int(np.sum(np.asarray(node_mask(tree))[question]))
    parent = np.asarray(tree.node_parent)[question]
    leaf_of = {int(n): r for r, n in enumerate(np.asarray(tree.response_node)[question]) if n >= 0}
    num_children = np.bincount(parent[1:nodes], minlength=nodes)
    step = np.asarray(tree.step)[question]
    tokens = np.asarray(tree.tokens)[question]
    indent = np.zeros(nodes, int)
    lines = []
    for n in range(nodes):
        if n:
            indent[n] = indent[parent[n]] + (num_children[parent[n]] > 1)
        text = decode(tokens[step == n].tolist()).strip().replace("\n", " ")
        text = text if len(text) <= width else text[: width - 1] + "…"
        notes = []
        if values is not None:
            notes.append(f"p̂={float(values[question, n]):.2f}")
        if confidence is not None and n:
            notes.append(f"π={float(confidence[question, n]):.2f}")
        if score is not None and num_children[n]:
            notes.append(f"J={float(score[question, n]):.3f}")
        if n in leaf_of:
            r = leaf_of[n]
            reward = float(tree.rewards[question, r])
            generation = int(tree.response_round[question, r])
            notes.append(f"response {r} (round {generation}) reward={reward:g}")
        lines.append(f"{'  ' * indent[n]}[{n}] {text}" + (f"   {' '.join(notes)}" if notes else ""))
    return "\n".join(lines)
