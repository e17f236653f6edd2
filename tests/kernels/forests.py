"""Random token trees for the tests of attention."""

import numpy as np


def random_forest(rng: np.random.Generator, num_tokens: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """(parent, subtree_end) of several random trees in depth-first order, then padding; parent -1: a first token."""
    parent = np.full(num_tokens, -1)
    for i in range(1, num_tokens - padding):
        path = [i - 1]  # depth first: a token continues any token on the path of the one before it
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        # Mostly a plain continuation, sometimes a branch, sometimes a new tree.
        kind = rng.random()
        parent[i] = path[0] if kind < 0.6 else rng.choice(path) if kind < 0.9 else -1
    end = np.arange(num_tokens) + 1
    for i in reversed(range(num_tokens - padding)):
        if parent[i] >= 0:
            end[parent[i]] = max(end[parent[i]], end[i])
    return parent, end.astype(np.int32)
