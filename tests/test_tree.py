"""The packed tree says exactly what the responses say."""

import jax
import numpy as np
import pytest
from hypothesis import given

from ibtpo import tree as T
from tests.tree_cases import (
    PROMPT,
    SEPARATOR,
    cases,
    make_tree,
    node_of_step,
    padded,
    paths,
    random_responses,
    step_ends,
    to_jax,
    token_owner,
)


def token_keys(tree, responses):
    """Each column of the packed tree as (owner, position) or ("prompt", position)."""
    keys = {i: ("prompt", i) for i in range(len(PROMPT))}
    for r in responses:
        for position, t in enumerate(T.tokens_of_response(tree, r.index)):
            keys[int(t)] = (token_owner(responses, r.index, position), position)
    return keys


@given(cases())
def test_parent_chain_gives_back_every_response(responses):
    tree = make_tree(responses)
    for r in responses:
        at, chain = int(T.last_token_of_response(tree)[0, r.index]), []
        while tree.step[0, at] > 0:
            chain.append(at)
            at = int(tree.parent_token[0, at])
        chain = chain[::-1]
        assert at == len(PROMPT) - 1
        np.testing.assert_array_equal(tree.tokens[0, chain], r.tokens)
        np.testing.assert_array_equal(tree.log_probs[0, chain], r.log_probs)
        depth = len(PROMPT) + np.arange(len(r.tokens))
        np.testing.assert_array_equal(tree.positions[0, chain], depth)
        assert tree.response_length[0, r.index] == len(r.tokens)
        assert tree.rewards[0, r.index] == r.reward
        assert tree.response_round[0, r.index] == r.round
        np.testing.assert_array_equal(chain, T.tokens_of_response(tree, r.index))
        np.testing.assert_array_equal(chain, np.flatnonzero(T.response_token_mask(tree)[0, r.index]))


@given(cases())
def test_every_unique_token_is_stored_once(responses):
    tree = make_tree(responses)
    unique = {(token_owner(responses, r.index, p), p) for r in responses for p in range(len(r.tokens))}
    assert tree.tokens.shape[1] == len(PROMPT) + len(unique)
    assert sorted(token_keys(tree, responses)) == list(range(tree.tokens.shape[1]))


@given(cases(max_responses=6))
def test_attention_rule_is_the_prefix_relation(responses):
    """i attends to j iff j <= i < subtree_end[j], iff some response runs through j up to i."""
    tree = make_tree(responses)
    keys = token_keys(tree, responses)
    prefix_pairs = set()
    for r in responses:
        path = [("prompt", p) for p in range(len(PROMPT))]
        path += [(token_owner(responses, r.index, p), p) for p in range(len(r.tokens))]
        prefix_pairs |= {(path[i], path[j]) for i in range(len(path)) for j in range(i + 1)}
    n = tree.tokens.shape[1]
    i, j = np.arange(n)[:, None], np.arange(n)
    rule = (j <= i) & (i < tree.subtree_end[0])
    assert {(keys[a], keys[b]) for a, b in np.argwhere(rule)} == prefix_pairs


@given(cases())
def test_nodes_are_the_steps_of_the_responses(responses):
    tree = make_tree(responses)
    ids = node_of_step(tree, responses)
    assert sorted(ids.values()) == list(range(1, tree.node_parent.shape[1]))
    through = T.on_path(tree)[0]
    for r, path in enumerate(paths(responses)):
        nodes = [0] + [ids[s] for s in path]
        np.testing.assert_array_equal(np.flatnonzero(through[r]), nodes)
        np.testing.assert_array_equal(tree.node_parent[0, nodes], [-1, *nodes[:-1]])
        assert tree.response_node[0, r] == nodes[-1]
        assert not T.children_mask(tree)[0, nodes[-1]].any(), "responses end at leaves"
        for s in path:
            assert T.node_length(tree)[0, ids[s]] == s.end - s.begin
            assert T.last_token_of_node(tree)[0, ids[s]] == T.tokens_of_response(tree, r)[s.end - 1]


@given(cases())
def test_depth_first_order_and_children_in_order_of_creation(responses):
    tree = make_tree(responses)
    parent, end = tree.node_parent[0], tree.node_end[0]
    assert np.all(parent[1:] < np.arange(1, len(parent)))
    oldest = T.on_path(tree)[0].argmax(axis=0)
    for n in range(len(parent)):
        below = [c for c in range(len(parent)) if n in ancestors(parent, c)]
        assert below == list(range(n, end[n]))
        children = np.flatnonzero(parent == n)
        assert np.all(np.diff(oldest[children]) > 0)
    assert np.all(np.diff(tree.step[0]) >= 0)


def ancestors(parent, n):
    found = []
    while n >= 0:
        found.append(n)
        n = parent[n]
    return found


def test_fork_inside_a_step_splits_it():
    first = T.Response(0, -1, 0, 0, np.array([1, 2, 3, SEPARATOR, 4]), -np.ones(5), "stop", 1.0)
    second = T.Response(1, 0, 2, 1, np.array([1, 2, 5]), -np.ones(3), "stop", 0.0)
    tree = make_tree([first, second])
    np.testing.assert_array_equal(tree.step[0], [0, 0, 0, 1, 1, 2, 2, 3, 4])
    np.testing.assert_array_equal(tree.node_parent[0], [-1, 0, 1, 2, 1])


def test_equal_siblings_stay_two_nodes():
    same = [T.Response(i, -1, 0, 0, np.array([1, SEPARATOR, 2]), -np.ones(3), "stop", 1.0) for i in range(2)]
    tree = make_tree(same)
    np.testing.assert_array_equal(tree.node_parent[0], [-1, 0, 1, 0, 3])


def test_fork_named_through_a_response_that_only_inherited_the_prefix():
    """Forking response 1 before its own first token is forking response 0 there."""
    a = T.Response(0, -1, 0, 0, np.array([1, SEPARATOR, 2, SEPARATOR, 3]), -np.ones(5), "stop", 1.0)
    b = T.Response(1, 0, 4, 1, np.array([1, SEPARATOR, 2, SEPARATOR, 4]), -np.ones(5), "stop", 1.0)
    via_b = T.Response(2, 1, 2, 2, np.array([1, SEPARATOR, 5]), -np.ones(3), "stop", 0.0)
    via_a = T.Response(2, 0, 2, 2, np.array([1, SEPARATOR, 5]), -np.ones(3), "stop", 0.0)
    jax.tree.map(np.testing.assert_array_equal, make_tree([a, b, via_b]), make_tree([a, b, via_a]))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(index=3), "index 3"),
        (dict(parent=1), "names parent 1"),
        (dict(fork=5), "forks after 5"),
        (dict(tokens=np.array([7, 8, 9])), "differs from its parent 0"),
        (dict(parent=-1), "its fork is 0, not 2"),
        (dict(log_probs=np.zeros(2)), "2 log-probabilities"),
    ],
)
def test_contradicting_responses_are_refused(change, message):
    first = T.Response(0, -1, 0, 0, np.array([1, 2, 3, 4, 5]), np.zeros(5), "stop", 1.0)
    second = dict(index=1, parent=0, fork=2, round=1, tokens=np.array([1, 2, 6]),
                  log_probs=np.zeros(3), finish="stop", reward=0.0)  # fmt: skip
    with pytest.raises(ValueError, match=message):
        make_tree([first, T.Response(**{**second, **change})])


def test_empty_inputs_are_refused():
    with pytest.raises(ValueError, match="0 responses"):
        T.build_tree(PROMPT, [], step_ends)
    with pytest.raises(ValueError, match="0 tokens"):
        T.build_tree([], random_responses(0, 1), step_ends)
    with pytest.raises(ValueError, match="no tree"):
        T.stack_trees([])


MASKS = dict(
    generated_mask=("T",), node_mask=("N",), response_mask=("R",), children_mask=("N", "N"),
    on_path=("R", "N"), response_token_mask=("R", "T"), node_length=("N",),
    last_token_of_node=("N",), last_token_of_response=("R",),
)  # fmt: skip


@given(cases(), cases())
def test_stacking_pads_inertly(one, two):
    """Functions of a stacked tree are those of the single trees, and false, 0 or -1 beyond."""
    trees = [make_tree(one), make_tree(two)]
    stacked = T.stack_trees(trees)
    for name, axes in MASKS.items():
        together = getattr(T, name)(stacked)
        for q, tree in enumerate(trees):
            size = dict(T=tree.tokens.shape[1], N=tree.node_end.shape[1], R=tree.rewards.shape[1])
            inside = tuple(slice(0, size[a]) for a in axes)
            np.testing.assert_array_equal(together[q][inside], getattr(T, name)(tree)[0], name)
            outside = np.ones(together[q].shape, bool)
            outside[inside] = False
            assert set(np.unique(together[q][outside])) <= {0, -1}


def test_stacking_refuses_sizes_that_are_too_small():
    tree = make_tree(random_responses(0, 4))
    with pytest.raises(ValueError, match="num_nodes=1 is too small"):
        T.stack_trees([tree], num_nodes=1)


@pytest.mark.parametrize("name", MASKS)
def test_numpy_jax_and_jit_agree(name):
    tree = padded(make_tree(random_responses(5, 6, fork_at="tokens")))
    function = getattr(T, name)
    on_host = function(tree)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_array_equal(on_host, function(to_jax(tree)))
    np.testing.assert_array_equal(on_host, jax.jit(function)(to_jax(tree)))
