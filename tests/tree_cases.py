"""Random trees for property tests, and the obvious answers to compare with.

The oracles see only the list of responses: no packed layout, no node numbering.
"""

import dataclasses

import jax
import numpy as np
from hypothesis import strategies as st

from ibtpo.tree import Response, build_tree, on_path, stack_trees, tokens_of_response

PROMPT = [90, 91, 92]
SEPARATOR = 0


def step_ends(tokens):
    """A step ends with each separator token, and at the end."""
    ends = [i + 1 for i, t in enumerate(tokens) if t == SEPARATOR]
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]


def random_responses(seed, num_responses, *, max_length=12, fork_at="steps", rewards=None, vocab=4):
    """Responses forked from earlier ones. fork_at: "steps", "tokens" or "question"."""
    rng = np.random.default_rng(seed)
    responses = []
    for i in range(num_responses):
        parent, fork = -1, 0
        if i > 0 and fork_at != "question" and rng.random() < 0.8:
            parent = int(rng.integers(i))
            tokens = responses[parent].tokens
            places = step_ends(tokens)[:-1] if fork_at == "steps" else range(1, len(tokens))
            places = [0, *places]
            fork = int(places[rng.integers(len(places))])
        own = int(rng.integers(1, max_length + 1))
        shared = responses[parent] if fork else None
        new_tokens = rng.integers(0, vocab, own).astype(np.int32)
        new_log_probs = -rng.exponential(size=own).astype(np.float32)
        responses.append(
            Response(
                index=i,
                parent=parent,
                fork=fork,
                round=int(i >= max(1, num_responses // 2)),
                tokens=np.concatenate([shared.tokens[:fork], new_tokens]) if fork else new_tokens,
                log_probs=(np.concatenate([shared.log_probs[:fork], new_log_probs]) if fork else new_log_probs),
                finish="stop",
                reward=float(rewards[i] if rewards is not None else rng.integers(2)),
            )
        )
    return responses


def cases(min_responses=1, max_responses=8, rewards=None):
    """Hypothesis strategy of lists of responses; rewards: a strategy for one reward."""
    rewards = st.sampled_from([0.0, 1.0]) if rewards is None else rewards
    size = st.integers(min_responses, max_responses)
    return size.flatmap(
        lambda n: st.builds(
            lambda seed, fork_at, r: random_responses(seed, n, fork_at=fork_at, rewards=r),
            st.integers(0, 2**32 - 1),
            st.sampled_from(["steps", "tokens", "question"]),
            st.lists(rewards, min_size=n, max_size=n),
        )
    )


def make_tree(responses, dtype=np.float32):
    tree = build_tree(PROMPT, responses, step_ends)
    return tree.replace(rewards=tree.rewards.astype(dtype), log_probs=tree.log_probs.astype(dtype))


def to_jax(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


def padded(tree, tokens=5, nodes=3, responses=2):
    """The same tree with padding on every axis."""
    return stack_trees(
        [tree],
        num_tokens=tree.tokens.shape[1] + tokens,
        num_nodes=tree.node_parent.shape[1] + nodes,
        num_responses=tree.rewards.shape[1] + responses,
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """One node, named by the token that ends it: (response that sampled that token, position)."""

    owner: int
    begin: int
    end: int


def token_owner(responses, r, position):
    """Response that sampled token `position` of response r."""
    while position < responses[r].fork:
        r = responses[r].parent
    return r


def paths(responses):
    """The path of every response as a list of Steps, the question left out."""
    cuts = {r.index: set() for r in responses}
    for r in responses:  # every cut belongs to whoever sampled the token before it
        for end in [*step_ends(r.tokens), len(r.tokens)]:
            if end > r.fork:
                cuts[r.index].add(end)
        if r.fork:
            cuts[token_owner(responses, r.parent, r.fork - 1)].add(r.fork)
    result = []
    for r in responses:
        path, begin = [], 0
        for end in range(1, len(r.tokens) + 1):
            owner = token_owner(responses, r.index, end - 1)
            if end in cuts[owner]:
                path.append(Step(owner, begin, end))
                begin = end
        result.append(path)
    return result


def node_of_step(tree, responses):
    """{Step: node id}, read off the packed tree by walking each response's tokens."""
    ids = {}
    for r, path in enumerate(paths(responses)):
        at = tokens_of_response(tree, r)
        for s in path:
            ids[s] = int(tree.step[0, at[s.end - 1]])
    return ids


def relabel(responses, order):
    """The same tree of samples, created in another order: new response i is old response order[i].

    Each new response forks from an earlier one with which it shares the most sampled tokens.
    """
    path = [[(token_owner(responses, r.index, p), p) for p in range(len(r.tokens))] for r in responses]
    result = []
    for i, old in enumerate(order):
        shared = [next((k for k, (x, y) in enumerate(zip(path[old], path[e])) if x != y), 0) for e in order[:i]]
        parent = int(np.argmax(shared)) if i and max(shared) else -1
        fork = shared[parent] if parent >= 0 else 0
        result.append(dataclasses.replace(responses[old], index=i, parent=parent, fork=fork))
    return result


def same_nodes(responses, order):
    """[N] node of the relabelled tree for every node of the original."""
    before, after = make_tree(responses), make_tree(relabel(responses, order))
    node = np.zeros(before.node_end.shape[1], int)
    for new, old in enumerate(order):
        here = np.flatnonzero(on_path(before)[0, old])
        there = np.flatnonzero(on_path(after)[0, new])
        node[here] = there  # depth-first ids grow along a path
    return node


def nested(responses):
    """(children, through): of every Step, and of None for the question.

    children[s]: the Steps that follow s; through[s]: the responses through s.
    """
    children, through = {None: []}, {None: [r.index for r in responses]}
    for r, path in enumerate(paths(responses)):
        for above, s in zip([None, *path], path):
            if s not in through:
                through[s], children[s] = [], []
                children[above].append(s)
            through[s].append(r)
    return children, through


def obvious_values(responses, *, value="leaf_mean", root="all"):
    """{Step or None: p̂}."""
    children, through = nested(responses)
    rewards = [r.reward for r in responses]

    def backup(s):
        if not children[s]:
            return rewards[through[s][0]]
        return float(np.mean([backup(c) for c in children[s]]))

    if value == "backup":
        values = {s: backup(s) for s in through}
    else:
        values = {s: float(np.mean([rewards[r] for r in rs])) for s, rs in through.items()}
    if root == "initial":
        values[None] = float(np.mean([r.reward for r in responses if r.round == 0]))
    return values


def obvious_confidence(responses, *, confidence="geometric_mean"):
    """{Step: π}."""
    reduce = np.mean if confidence == "geometric_mean" else np.sum
    return {
        s: float(np.exp(reduce(responses[r].log_probs[s.begin : s.end].astype(np.float64))))
        for r, path in enumerate(paths(responses))
        for s in path
    }
