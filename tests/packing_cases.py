"""Random trees for the tests of packing and token weights."""

import numpy as np

from ibtpo.tree import Response, build_tree, stack_trees

MAX_NEW = 6


def step_ends(tokens):
    return [*range(2, len(tokens), 2), len(tokens)]


def random_tree(rng):
    responses = []
    for index in range(int(rng.integers(1, 5))):
        parent = int(rng.integers(-1, index))
        fork, tokens, log_probs = 0, np.zeros(0, int), np.zeros(0)
        if parent >= 0:
            fork = int(rng.integers(0, len(responses[parent].tokens)))
            tokens, log_probs = responses[parent].tokens[:fork], responses[parent].log_probs[:fork]
        new = int(rng.integers(1, MAX_NEW - fork + 1))
        tokens, log_probs = np.r_[tokens, rng.integers(1, 9, new)], np.r_[log_probs, -rng.random(new)]
        responses.append(Response(index, parent, fork, 0, tokens, log_probs, "stop", float(rng.integers(0, 2))))
    return build_tree(rng.integers(1, 9, rng.integers(1, 4)), responses, step_ends)


def random_trees(seed):
    rng = np.random.default_rng(seed)
    tree = stack_trees([random_tree(rng) for _ in range(int(rng.integers(1, 6)))])
    return rng, tree, rng.standard_normal((*tree.rewards.shape, tree.node_parent.shape[1])).astype(np.float32)
