"""The tree of one question's responses, as a struct of arrays.

Dimension letters: Q questions, R responses, N nodes, T tokens.

A node is one reasoning step; node 0 is the question. Both nodes and tokens lie depth first, so
the subtree of anything is the contiguous range that starts at it, and one exclusive end per
token says who sees whom: token i attends to token j iff ``j <= i < subtree_end[j]``. Every
unique token is stored once, however many responses run through it.

Building happens on the host with NumPy; every other function takes NumPy or JAX arrays, also
under ``jit``, through the array namespace of its argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


class Tree(flax.struct.PyTreeNode):
    """Responses of Q questions, each a tree laid out depth first.

    Attributes:
      tokens: [Q, T] int32, token ids: the prompt first, then the steps.
      positions: [Q, T] int32, depth in tokens counted from the first prompt token; 0 on padding.
      subtree_end: [Q, T] int32, exclusive end of the token's subtree; padding j holds j + 1.
      parent_token: [Q, T] int32, the token whose logits predict this one; the first prompt token
        and padding hold their own index.
      step: [Q, T] int32, node of the token; 0 on the prompt, -1 on padding.
      log_probs: [Q, T] float32, behaviour log-probability; 0 on the prompt and on padding.
      node_parent: [Q, N] int32; -1 at the root and on padding.
      node_end: [Q, N] int32, exclusive end of the node's subtree in node ids; padding holds its
        own id, that is, an empty subtree.
      response_node: [Q, R] int32, the leaf that ends the response; -1 on padding.
      response_length: [Q, R] int32, generated tokens from the question on, end-of-sequence
        included and shared ones too; 0 on padding.
      rewards: [Q, R] float32; 0 on padding.
      response_round: [Q, R] int32, 0 for the initial, unguided responses; -1 on padding.
      truncated: [Q, R] bool, the response was cut off at its token limit; False on padding.
      prompt_length: [Q] int32.
    """

    tokens: Array
    positions: Array
    subtree_end: Array
    parent_token: Array
    step: Array
    log_probs: Array
    node_parent: Array
    node_end: Array
    response_node: Array
    response_length: Array
    rewards: Array
    response_round: Array
    truncated: Array
    prompt_length: Array


@dataclass
class Response:
    """One finished response as the sampler hands it over.

    Attributes:
      index: place in the question's list of responses; also the order of creation.
      parent: index of the response it was forked from, -1 if it started at the question.
      fork: generated tokens shared with the parent; 0 is the question itself.
      round: 0 for the initial responses, then the round that created it.
      tokens: [n] int32, all generated tokens, the shared ones included.
      log_probs: [n] float32, behaviour log-probability of each of them.
      finish: "stop" or "length".
      reward: the grade of the whole response.
    """

    index: int
    parent: int
    fork: int
    round: int
    tokens: np.ndarray
    log_probs: np.ndarray
    finish: str
    reward: float


def _check(responses: Sequence[Response]) -> None:
    for place, r in enumerate(responses):
        if r.index != place:
            raise ValueError(f"response at place {place} has index {r.index}; pass responses in index order")
        if len(r.tokens) == 0 or len(r.tokens) != len(r.log_probs):
            raise ValueError(
                f"response {place} has {len(r.tokens)} tokens and {len(r.log_probs)} "
                "log-probabilities; it needs as many of one as of the other, and at least one"
            )
        if not -1 <= r.parent < place:
            raise ValueError(f"response {place} names parent {r.parent}; a parent comes before its children")
        if r.parent == -1:
            if r.fork != 0:
                raise ValueError(f"response {place} has no parent, so its fork is 0, not {r.fork}")
            continue
        parent = responses[r.parent]
        if not 0 <= r.fork < min(len(r.tokens), len(parent.tokens)):
            raise ValueError(
                f"response {place} forks after {r.fork} tokens; its parent {r.parent} has "
                f"{len(parent.tokens)} and it has {len(r.tokens)}: a fork lies before both ends"
            )
        if not np.array_equal(r.tokens[: r.fork], parent.tokens[: r.fork]):
            raise ValueError(
                f"response {place} differs from its parent {r.parent} within the first {r.fork} "
                "tokens that it claims to share"
            )


def fork_owner(responses: Sequence[Response], r: Response) -> int:
    """Response that owns the token just before r's fork; -1 for the question."""
    if r.fork == 0:
        return -1
    parent = responses[r.parent]
    while parent.fork >= r.fork:  # that token was itself inherited; the owner has fork < r.fork
        parent = responses[parent.parent]
    return parent.index


def build_tree(
    prompt: Sequence[int],
    responses: Sequence[Response],
    step_ends: Callable[[np.ndarray], Sequence[int]],
) -> Tree:
    """Lays one question's responses out as a tree with exact sizes (Q = 1, no padding).

    A response owns the tokens after its fork. They are cut into nodes at the step ends of the
    response and wherever another response forks, so a fork inside a step splits that step in two.
    Equal siblings stay separate nodes: each is one sample. Children come in order of creation.
    On shared tokens the log-probabilities are those of the response that owns (sampled) them.

    Args:
      prompt: token ids, at least one.
      responses: in index order, at least one.
      step_ends: exclusive ends of the steps of one response's generated tokens.

    Raises:
      ValueError: empty prompt, no response, or a response that contradicts its parent.
    """
    if len(prompt) == 0 or len(responses) == 0:
        raise ValueError(f"a tree needs a prompt and responses; got {len(prompt)} tokens, {len(responses)} responses")
    _check(responses)

    branches: list[dict[int, list[int]]] = [{} for _ in responses]  # owner -> fork -> responses
    roots = []
    for r in responses:
        owner = fork_owner(responses, r)
        if owner == -1:
            roots.append(r.index)
        else:
            branches[owner].setdefault(r.fork, []).append(r.index)
    cuts: list[list[int]] = []
    for r in responses:
        inside = set(branches[r.index]) | {int(e) for e in step_ends(r.tokens)}
        cuts.append([e for e in sorted(inside) if r.fork < e < len(r.tokens)] + [len(r.tokens)])

    # Depth-first walk over (response, segment of it, parent node).
    num_prompt = len(prompt)
    parents, depths, pieces = [-1], [0], [np.arange(num_prompt)]
    tokens, log_probs = [np.asarray(prompt, np.int32)], [np.zeros(num_prompt, np.float32)]
    leaf = np.zeros(len(responses), np.int32)
    stack = [(index, 0, 0) for index in reversed(roots)]
    while stack:
        index, segment, parent = stack.pop()
        r, node = responses[index], len(parents)
        begin = cuts[index][segment - 1] if segment else r.fork
        end = cuts[index][segment]
        parents.append(parent)
        depths.append(depths[parent] + 1)
        tokens.append(np.asarray(r.tokens[begin:end], np.int32))
        log_probs.append(np.asarray(r.log_probs[begin:end], np.float32))
        pieces.append(num_prompt + np.arange(begin, end))
        children = [(child, 0, node) for child in branches[index].get(end, [])]
        if end == len(r.tokens):
            leaf[index] = node
        else:
            children.insert(0, (index, segment + 1, node))  # r is older than any fork from it
        stack.extend(reversed(children))

    node_parent = np.asarray(parents, np.int32)
    num_nodes = len(parents)
    node_end = np.arange(1, num_nodes + 1, dtype=np.int32)
    for node in range(num_nodes - 1, 0, -1):
        node_end[parents[node]] = max(node_end[parents[node]], node_end[node])
    lengths = np.asarray([len(p) for p in pieces])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    step = np.repeat(np.arange(num_nodes, dtype=np.int32), lengths)
    parent_token = np.arange(ends[-1], dtype=np.int32) - 1
    parent_token[0] = 0
    parent_token[starts[1:]] = ends[node_parent[1:]] - 1

    def row(x, dtype=np.int32):
        return np.asarray(x, dtype)[None]

    return Tree(
        tokens=row(np.concatenate(tokens)),
        positions=row(np.concatenate(pieces)),
        subtree_end=row(ends[node_end - 1][step]),
        parent_token=row(parent_token),
        step=row(step),
        log_probs=row(np.concatenate(log_probs), np.float32),
        node_parent=row(node_parent),
        node_end=row(node_end),
        response_node=row(leaf),
        response_length=row([len(r.tokens) for r in responses]),
        rewards=row([r.reward for r in responses], np.float32),
        response_round=row([r.round for r in responses]),
        truncated=row([r.finish == "length" for r in responses], bool),
        prompt_length=np.asarray([num_prompt], np.int32),
    )


def stack_trees(
    trees: Sequence[Tree],
    num_tokens: int | None = None,
    num_nodes: int | None = None,
    num_responses: int | None = None,
) -> Tree:
    """Stacks trees along Q, padding T, N and R to the given sizes (default: the largest).

    Raises:
      ValueError: no tree, or a tree larger than a given size.
    """
    if not trees:
        raise ValueError("no tree to stack; pass at least one")

    def size(name, field, wanted):
        largest = max(getattr(t, field).shape[1] for t in trees)
        if wanted is not None and wanted < largest:
            raise ValueError(f"{name}={wanted} is too small: a tree has {largest}; raise it")
        return largest if wanted is None else wanted

    t = size("num_tokens", "tokens", num_tokens)
    n = size("num_nodes", "node_parent", num_nodes)
    r = size("num_responses", "rewards", num_responses)
    token_ids, node_ids = np.arange(t, dtype=np.int32), np.arange(n, dtype=np.int32)
    fill = dict(
        tokens=np.zeros(t, np.int32), positions=np.zeros(t, np.int32),
        subtree_end=token_ids + 1, parent_token=token_ids,
        step=np.full(t, -1, np.int32), log_probs=np.zeros(t, np.float32),
        node_parent=np.full(n, -1, np.int32), node_end=node_ids,
        response_node=np.full(r, -1, np.int32), response_length=np.zeros(r, np.int32),
        rewards=np.zeros(r, np.float32), response_round=np.full(r, -1, np.int32),
        truncated=np.zeros(r, bool),
    )  # fmt: skip

    def pad(name, padding):
        rows = []
        for tree in trees:
            x = np.asarray(getattr(tree, name))
            tail = np.broadcast_to(padding[x.shape[1] :], (x.shape[0], len(padding) - x.shape[1]))
            rows.append(np.concatenate([x, tail.astype(x.dtype)], axis=1))
        return np.concatenate(rows)

    prompt_length = np.concatenate([np.asarray(tree.prompt_length) for tree in trees])
    return Tree(**{k: pad(k, v) for k, v in fill.items()}, prompt_length=prompt_length)


def namespace(x: Array) -> ModuleType:
    """The array namespace (numpy or jax.numpy) that x belongs to."""
    return x.__array_namespace__()


def generated_mask(tree: Tree) -> Array:
    """[Q, T] bool: the policy produced this token (neither prompt nor padding)."""
    return tree.step > 0


def node_mask(tree: Tree) -> Array:
    """[Q, N] bool: the node exists (the root included)."""
    xp = namespace(tree.tokens)
    return tree.node_end > xp.arange(tree.node_end.shape[1])


def response_mask(tree: Tree) -> Array:
    """[Q, R] bool: the response exists."""
    return tree.response_node >= 0


def children_mask(tree: Tree) -> Array:
    """[Q, N, N] bool: entry [q, p, c] says that node c is a child of node p."""
    xp = namespace(tree.tokens)
    parent = xp.arange(tree.node_parent.shape[1])[:, None]
    return tree.node_parent[:, None, :] == parent


def on_path(tree: Tree) -> Array:
    """[Q, R, N] bool: node n lies on response r's path, root and leaf included.

    With depth-first ids this is ``n <= response_node[r] < node_end[n]``.
    """
    xp = namespace(tree.tokens)
    leaf = tree.response_node[:, :, None]
    return (xp.arange(tree.node_end.shape[1]) <= leaf) & (leaf < tree.node_end[:, None, :])


def response_token_mask(tree: Tree) -> Array:
    """[Q, R, T] bool: response r runs through generated token t."""
    xp = namespace(tree.tokens)
    last = last_token_of_response(tree)[:, :, None]
    index = xp.arange(tree.tokens.shape[1])
    inside = (index <= last) & (last < tree.subtree_end[:, None, :])
    return inside & generated_mask(tree)[:, None, :]


def scatter_sum(index: Array, x: Array, size: int) -> Array:
    """[Q, size]: out[q, i] = sum of x [Q, M] where index [Q, M] equals i; negative indices drop."""
    xp = namespace(x)
    row = xp.arange(index.shape[0])[:, None]
    column = xp.where(index < 0, size, index)  # one more column takes the dropped values
    if xp is np:
        total = np.zeros((index.shape[0], size + 1), x.dtype)
        np.add.at(total, (row, column), x)
    else:
        total = xp.zeros((index.shape[0], size + 1), x.dtype).at[row, column].add(x)
    return total[:, :size]


def sum_by_node(tree: Tree, x: Array) -> Array:
    """[Q, N]: sum of x [Q, T] over the tokens of each node; padding contributes to none."""
    return scatter_sum(tree.step, x, tree.node_parent.shape[1])


def sum_over_children(tree: Tree, x: Array) -> Array:
    """[Q, N]: sum of x [Q, N] over the children of each node; 0 where there are none."""
    return scatter_sum(tree.node_parent, x, tree.node_parent.shape[1])


def at_parent(tree: Tree, x: Array) -> Array:
    """[Q, N]: x [Q, N] read at each node's parent; the root and padding read node 0."""
    xp = namespace(x)
    return xp.take_along_axis(x, xp.maximum(tree.node_parent, 0), axis=1)


def node_length(tree: Tree) -> Array:
    """[Q, N] int32: tokens of each node itself; 0 on padding."""
    xp = namespace(tree.tokens)
    return sum_by_node(tree, xp.ones(tree.tokens.shape, xp.int32))


def last_token_of_node(tree: Tree) -> Array:
    """[Q, N] int32: index of each node's last token (nodes lie in token order); -1 on padding."""
    xp = namespace(tree.tokens)
    last = xp.cumulative_sum(node_length(tree), axis=1) - 1
    return xp.where(node_mask(tree), last, -1).astype(xp.int32)


def last_token_of_response(tree: Tree) -> Array:
    """[Q, R] int32: index of each response's last token; -1 on padding."""
    xp = namespace(tree.tokens)
    leaf = xp.maximum(tree.response_node, 0)
    last = xp.take_along_axis(last_token_of_node(tree), leaf, axis=1)
    return xp.where(response_mask(tree), last, -1)


def tokens_of_response(tree: Tree, response: int, question: int = 0) -> np.ndarray:
    """[n] indices of the generated tokens of one response, in order (host)."""
    last = int(last_token_of_response(tree)[question, response])
    end = np.asarray(tree.subtree_end[question, : last + 1])
    return np.flatnonzero((end > last) & (np.asarray(tree.step[question, : last + 1]) > 0))
