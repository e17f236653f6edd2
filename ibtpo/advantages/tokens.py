"""Trees whose nodes are tokens, and responses that agree: for the methods that look at every token.

Two siblings that happen to begin with the same tokens are two samples of the sampler's tree, but the methods that make
a tree of independent responses take them for one prefix. `agreeing` does.
"""

import jax
import numpy as np

from ibtpo.tree import (
    Array,
    Tree,
    last_token_of_node,
    last_token_of_response,
    namespace,
    node_mask,
    on_path,
    response_mask,
    response_token_mask,
)


def by_token(tree: Tree) -> Tree:
    """The same tree with a node for each generated token (NumPy, on the host); tokens and their order stay."""
    tree = jax.tree.map(np.asarray, tree)
    prompt = tree.prompt_length[:, None]
    index = np.arange(tree.tokens.shape[1])
    real, generated = tree.step >= 0, tree.step > 0
    number = np.where(generated, index - prompt + 1, 0)  # of each token's node
    size = int(number.max()) + 1
    count = number.max(axis=1, keepdims=True) + 1
    ids = np.arange(size)
    token = np.minimum(ids + prompt - 1, index[-1])  # of each node
    exists = (ids > 0) & (ids < count)
    above = np.take_along_axis(number, np.take_along_axis(np.asarray(tree.parent_token), token, axis=1), axis=1)
    end = np.take_along_axis(tree.subtree_end, token, axis=1) - prompt + 1
    end = np.where(exists, end, np.where(ids == 0, count, ids))
    last = np.maximum(last_token_of_response(tree), 0)
    leaf = np.take_along_axis(number, last, axis=1)
    return tree.replace(
        step=np.where(real, number, -1).astype(np.int32),
        node_parent=np.where(exists, above, -1).astype(np.int32),
        node_end=end.astype(np.int32),
        response_node=np.where(response_mask(tree), leaf, -1).astype(np.int32),
    )


def at_tokens(tree: Tree, x: Array) -> np.ndarray:
    """x [Q, R, N] of a tree's nodes at those of `by_token`, [Q, R, 1 + generated tokens] (NumPy); 0 at the root."""
    tree, x = jax.tree.map(np.asarray, (tree, x))
    size = int((tree.step > 0).sum(axis=1).max()) + 1
    token = np.arange(1, size) + tree.prompt_length[:, None] - 1
    exists = token < (tree.step >= 0).sum(axis=1, keepdims=True)
    node = np.take_along_axis(tree.step, np.minimum(token, tree.step.shape[1] - 1), axis=1)
    of_token = np.take_along_axis(x, np.maximum(node, 0)[:, None, :], axis=2) * exists[:, None, :]
    return np.concatenate([np.zeros((*x.shape[:2], 1), x.dtype), of_token], axis=2)


def common_prefix(tree: Tree) -> Array:
    """With how many generated tokens two responses begin alike, [Q, R, R] int32; 0 on padding."""
    xp = namespace(tree.tokens)
    mask = response_token_mask(tree)
    order = xp.argsort(~mask, axis=2, stable=True)  # a response's tokens first, in their order
    own = xp.take_along_axis(xp.broadcast_to(tree.tokens[:, None, :], mask.shape), order, axis=2)
    own = xp.where(xp.arange(mask.shape[2]) < xp.sum(mask, axis=2, keepdims=True), own, -1)
    none = xp.full((*own.shape[:2], 1), -1, own.dtype)
    own = xp.concatenate([own, none], axis=2)
    rows = [
        xp.argmax((own != own[:, r : r + 1]) | (own < 0), axis=2) for r in range(own.shape[1])
    ]  # a row at a time: [Q, R, R, T] is large
    return xp.stack(rows, axis=1).astype(xp.int32)


def agreeing(tree: Tree, x: Array | None = None) -> Array:
    """Over the responses that begin with the same tokens as r up to the end of node n: the sum of x [Q, R], or their
    number, [Q, R, N]; 0 off r's path.

    Source: the process sets of lambda-GRPO, arXiv 2509.21154, which are the prefixes of TEMPO, arXiv 2509.18314.
    """
    xp = namespace(tree.rewards)
    dtype = tree.rewards.dtype
    x = response_mask(tree).astype(dtype) if x is None else x
    prefix = common_prefix(tree)
    last = xp.maximum(last_token_of_node(tree), 0)
    depth = xp.take_along_axis(tree.positions, last, axis=1) + 1 - tree.prompt_length[:, None]
    total = sum(xp.where(depth[:, None, :] <= prefix[:, :, j, None], x[:, j, None, None], 0) for j in range(x.shape[1]))
    return xp.where(on_path(tree) & node_mask(tree)[:, None, :], total, 0).astype(dtype)
