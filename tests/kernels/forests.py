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


def dense_attention(q, k, v, ends, cotangent):
    """Attention of one row over a [T, T] mask in float64, and gradients of sum(out * cotangent): (out, dq, dk, dv).

    A query that sees nothing gives 0. With w = softmax(s): ds = w (dw - sum(w dw)).
    """
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    T, H, Dh = q.shape
    group, index = H // k.shape[1], np.arange(T)
    seen = (index <= index[:, None]) & (index[:, None] < ends)
    out, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for h in range(H):
        g = h // group
        scores = np.where(seen, q[:, h] @ k[:, g].T / np.sqrt(Dh), -np.inf)
        highest = np.where(seen.any(1), scores.max(1, initial=-1e30), 0)
        w = np.exp(scores - highest[:, None])
        w /= np.maximum(w.sum(1, keepdims=True), 1e-300)
        out[:, h] = w @ v[:, g]
        dw = cotangent[:, h] @ v[:, g].T
        ds = w * (dw - (w * dw).sum(1, keepdims=True)) / np.sqrt(Dh)
        dq[:, h] = ds @ k[:, g]
        dk[:, g] += ds.T @ q[:, h]
        dv[:, g] += w.T @ cotangent[:, h]
    return out, dq, dk, dv
