"""The IB-Score against its definitions, and its edge cases."""

import dataclasses
import itertools
from fractions import Fraction
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo import ib_score as S
from ibtpo.tree import Response, children_mask, on_path, stack_trees
from tests.tree_cases import (
    SEPARATOR,
    cases,
    make_tree,
    nested,
    node_of_step,
    obvious_confidence,
    obvious_values,
    padded,
    random_responses,
    relabel,
    same_nodes,
    to_jax,
)

OPTIONS = st.builds(
    S.ScoreOptions,
    beta=st.sampled_from([0.5, 5.0, 50.0]),
    ratio_power=st.sampled_from([1, 2]),
    confidence=st.sampled_from(["geometric_mean", "joint"]),
    branch_value=st.sampled_from(["leaf_mean", "backup"]),
    child_weight=st.sampled_from(["responses", "uniform"]),
    root=st.sampled_from(["all", "initial"]),
)
make_tree64 = partial(make_tree, dtype=np.float64)


# --- A policy small enough to enumerate -------------------------------------------------------

DRAWS = 4  # every probability is a multiple of 1/4


def policy(prefix):
    """{symbol: probability} of the next step; made up, different after every prefix."""
    kind = (sum(prefix) + 2 * len(prefix)) % 3
    return [
        {1: Fraction(1, 2), 2: Fraction(1, 4), 3: Fraction(1, 4)},
        {1: Fraction(3, 4), 2: Fraction(1, 4)},
        {1: Fraction(1, 4), 3: Fraction(3, 4)},
    ][kind]


def correct(sequence):
    return (sequence[0] * sequence[1] + sequence[2]) % 3 == 1


def success(prefix, depth=3):
    """p(a*|prefix), exactly."""
    if len(prefix) == depth:
        return Fraction(correct(prefix))
    return sum(p * success((*prefix, s)) for s, p in policy(prefix).items())


def enumerated_responses():
    """Responses whose empirical frequencies are the policy's probabilities.

    Every node gets DRAWS children in proportion to the policy, equal ones as separate samples, so
    each Monte Carlo mean over children or leaves is the expectation itself.
    """

    def draws(prefix):
        return [s for s, p in policy(prefix).items() for _ in range(int(p * DRAWS))]

    responses, index_of = [], {}
    for choice in itertools.product(range(DRAWS), repeat=3):
        symbols, log_probs = (), []
        for c in choice:
            symbol = draws(symbols)[c]
            log_probs += [np.log(float(policy(symbols)[symbol])), 0.0]  # symbol, then separator
            symbols = (*symbols, symbol)
        tokens = np.array([t for s in symbols for t in (s, SEPARATOR)])
        own = max((d for d in range(3) if choice[d]), default=-1)  # last draw that is not the first
        parent = index_of[(*choice[:own], *[0] * (3 - own))] if own > 0 else -1
        index_of[choice] = len(responses)
        responses.append(
            Response(
                index=len(responses),
                parent=parent,
                fork=2 * max(own, 0),
                round=0,
                tokens=tokens,
                log_probs=np.array(log_probs),
                finish="stop",
                reward=float(correct(symbols)),
            )
        )
    return responses


def entropies(prefix, ratio_power):
    """Tsallis-2 entropy of the next step and of the next step given the answer, by enumeration.

    The conditional one is 1 − E[p(s|a*)] over the policy's samples (ratio_power 1) or over
    p(s|a*) (ratio_power 2). Where the answer has probability 0 conditioning on it says nothing.
    """
    prior = policy(prefix)
    known = success(prefix)
    posterior = {s: p * success((*prefix, s)) / known if known else p for s, p in prior.items()}  # Bayes
    assert sum(posterior.values()) == 1
    over = {1: prior, 2: posterior if known else prior}[ratio_power]
    return 1 - sum(p * p for p in prior.values()), 1 - sum(over[s] * posterior[s] for s in prior)


@pytest.mark.parametrize("ratio_power", [1, 2])
@pytest.mark.parametrize("value", ["leaf_mean", "backup"])
@pytest.mark.parametrize("beta", [1, 5])
def test_score_is_the_bottleneck_objective_of_an_enumerable_policy(ratio_power, value, beta):
    """J(s_p) = (1 + β)·H(s|s_p) − β·H(s|a*, s_p), each entropy by its own definition."""
    responses = enumerated_responses()
    tree = make_tree64(responses)
    score = S.ib_score(tree, S.ScoreOptions(beta, ratio_power, confidence="joint", branch_value=value))
    seen = 0
    for r, leaf in enumerate(tree.response_node[0]):
        path = np.flatnonzero(on_path(tree)[0, r])
        assert path[-1] == leaf
        symbols = tuple(int(t) for t in responses[r].tokens[::2])
        for depth, node in enumerate(path[:-1]):
            prefix = symbols[:depth]
            np.testing.assert_allclose(score.values[0, node], float(success(prefix)), atol=1e-7)
            prior, conditional = entropies(prefix, ratio_power)
            expected = (1 + beta) * prior - beta * conditional
            np.testing.assert_allclose(score.J[0, node], float(expected), atol=1e-6)
            seen += 1
    assert seen == 3 * DRAWS**3


def test_the_two_definitions_differ():
    assert any(entropies(p, 1)[1] != entropies(p, 2)[1] for p in [(), (1,), (2,), (1, 1)])
    tree = make_tree64(enumerated_responses())
    one, two = (S.ib_score(tree, S.ScoreOptions(ratio_power=k, confidence="joint")).J for k in (1, 2))
    assert np.abs(one - two).max() > 0.01


def test_score_splits_into_covariance_and_confidence():
    """With samples from π, E[η1] = −1/β, so J = 1 + β·Cov(η1, η2) − E[η2]."""
    beta = 5.0
    tree = make_tree64(enumerated_responses())
    score = S.ib_score(tree, S.ScoreOptions(beta, confidence="joint"))
    inner = score.has_children & (score.values > 0)
    mean = np.where(children_mask(tree), score.eta2[:, None, :], 0).sum(-1)
    mean = mean / np.maximum(score.num_children, 1)
    expected = 1 + beta * score.cov - mean
    np.testing.assert_allclose(score.J[inner], expected[inner], atol=1e-6)


# --- Any tree -----------------------------------------------------------------------------------


@given(cases(rewards=st.sampled_from([0.0, 1.0, 0.25])), OPTIONS)
def test_everything_equals_the_obvious_version(responses, options):
    tree = make_tree64(responses)
    score = S.ib_score(tree, options)
    ids = {None: 0, **node_of_step(tree, responses)}
    children, through = nested(responses)
    values = obvious_values(responses, value=options.branch_value, root=options.root)
    sure = obvious_confidence(responses, confidence=options.confidence)
    gain = {}
    for s, below in children.items():
        for c in below:
            ratio = values[c] / values[s] if values[s] > 0 else 1
            gain[c] = ratio ** options.ratio_power - (1 + 1 / options.beta)
    for s, n in ids.items():
        np.testing.assert_allclose(score.values[0, n], values[s], atol=1e-9)
        assert score.num_children[0, n] == len(children[s])
        assert score.has_children[0, n] == bool(children[s])
        np.testing.assert_allclose(score.eta2[0, n], 1 if s is None else sure[s], atol=1e-6)
        np.testing.assert_allclose(score.eta1[0, n], 0 if s is None else gain[s], atol=1e-9)
        if children[s]:
            a = np.array([gain[c] for c in children[s]])
            b = np.array([sure[c] for c in children[s]])
            times = [len(through[c]) if options.child_weight == "responses" else 1 for c in children[s]]
            expected = 1 + options.beta * np.average(a * b, weights=times)
            np.testing.assert_allclose(score.J[0, n], expected, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(score.cov[0, n], np.cov(a, b, ddof=0, fweights=times)[0, 1], atol=1e-5)
        else:
            assert score.J[0, n] == 0 and score.cov[0, n] == 0


@given(cases(rewards=st.floats(-1, 1, width=32)), OPTIONS)
def test_always_finite(responses, options):
    for leaf in jax.tree.leaves(S.ib_score(padded(make_tree(responses)), options)):
        assert np.all(np.isfinite(leaf))


@given(cases(), OPTIONS, st.randoms(use_true_random=False))
def test_order_of_creation_does_not_matter(responses, options, random):
    order = list(range(len(responses)))
    random.shuffle(order)
    node = same_nodes(responses, order)
    before = S.ib_score(make_tree64(responses), options)
    after = S.ib_score(make_tree64(relabel(responses, order)), options)
    for name in before.__dataclass_fields__:
        np.testing.assert_allclose(getattr(before, name)[0], getattr(after, name)[0][node], atol=1e-5, err_msg=name)


@given(cases(), OPTIONS)
def test_single_child_scores_one_minus_its_confidence(responses, options):
    tree = make_tree64(responses)
    score = S.ib_score(tree, dataclasses.replace(options, root="all"))
    for n in np.flatnonzero(score.num_children[0] == 1):
        child = np.flatnonzero(tree.node_parent[0] == n)[0]
        np.testing.assert_allclose(score.J[0, n], 1 - score.eta2[0, child], atol=1e-6)
        assert score.cov[0, n] == 0


@given(cases(), st.sampled_from([1.0, 5.0]))
def test_with_backup_the_covariance_form_is_exact_on_any_tree(responses, beta):
    """A node's backup is its children's mean, so mean η1 = −1/β and J = 1 + β·Cov − mean η2."""
    tree = make_tree64(responses)
    score = S.ib_score(tree, S.ScoreOptions(beta, branch_value="backup", child_weight="uniform"))
    for n in np.flatnonzero(score.has_children[0]):
        children = tree.node_parent[0] == n
        np.testing.assert_allclose(score.eta1[0][children].mean(), -1 / beta, atol=1e-6)
        expected = 1 + beta * score.cov[0, n] - score.eta2[0][children].mean()
        np.testing.assert_allclose(score.J[0, n], expected, atol=1e-5)


@given(cases(rewards=st.sampled_from([0.0])), OPTIONS)
def test_no_success_means_no_information(responses, options):
    """All p̂ are 0: every ratio is 1, so every η1 is −1/β."""
    tree = make_tree64(responses)
    score = S.ib_score(tree, options)
    np.testing.assert_allclose(score.eta1[0, 1:], -1 / options.beta, atol=1e-12)
    assert np.all(score.cov == 0) or np.abs(score.cov).max() < 1e-12


def test_root_without_unguided_success():
    """root="initial": a guided success under an unguided p̂(q) of 0 is x/0, taken as no news."""
    responses = random_responses(1, 4, fork_at="steps", rewards=[0.0, 0.0, 1.0, 1.0])
    tree = make_tree(responses)
    score = S.ib_score(tree, S.ScoreOptions(root="initial"))
    assert score.values[0, 0] == 0
    top = tree.node_parent[0] == 0
    assert score.values[0][top].max() > 0
    np.testing.assert_allclose(score.eta1[0][top], -1 / 5.0, atol=1e-6)


@pytest.mark.parametrize("ratio_power", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tiny, known", [(1.4e-45, False), (0.99e-6, False), (1.01e-6, True)])
def test_a_parents_value_below_the_smallest_says_nothing(tiny, known, dtype, ratio_power):
    """root="initial": p̂(q) is as small as the unguided response's reward; 1 / 1.4e-45 is no number in float32."""
    responses = random_responses(0, 2, fork_at="question", rewards=[tiny, 1.0])
    score = S.ib_score(make_tree(responses, dtype), S.ScoreOptions(ratio_power=ratio_power, root="initial"))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(score))
    top = make_tree(responses).node_parent[0] == 0
    ratio = (score.eta1[0][top] + 1 + 1 / 5) ** (1 / ratio_power)
    expected = [1.0, 1 / tiny] if known else [1.0, 1.0]
    np.testing.assert_allclose(np.sort(ratio), expected, rtol=1e-3)


@given(st.lists(cases(max_responses=4), min_size=2, max_size=3), OPTIONS)
def test_stacking_changes_nothing(groups, options):
    trees = [make_tree(g) for g in groups]
    together = S.ib_score(stack_trees(trees), options)
    for q, tree in enumerate(trees):
        alone, n = S.ib_score(tree, options), tree.node_end.shape[1]
        for name in alone.__dataclass_fields__:
            row = getattr(together, name)[q]
            np.testing.assert_allclose(row[:n], getattr(alone, name)[0], atol=1e-6, err_msg=name)
            beyond = {"eta2": 1, "has_children": False}.get(name, 0)
            assert np.all(row[n:] == beyond), name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("value, root", [("leaf_mean", "all"), ("backup", "initial")])
def test_numpy_jax_and_jit_agree(seed, value, root):
    tree = padded(make_tree(random_responses(seed, 7, fork_at="tokens")), 64, 16, 1)
    function = partial(S.ib_score, options=S.ScoreOptions(branch_value=value, root=root))
    on_host = function(tree)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(on_host))
    eager = [function(to_jax(tree))] if seed == 0 and value == "leaf_mean" else []
    for other in (*eager, jax.jit(function)(to_jax(tree))):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), on_host, other)
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), on_host, other)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(branch_value="mean"), "value='mean'"),
        (dict(child_weight="tokens"), "child_weight='tokens'"),
        (dict(root="none"), "root='none'"),
        (dict(confidence="max"), "confidence='max'"),
        (dict(ratio_power=3), "ratio_power=3"),
        (dict(beta=0.0), "beta=0.0"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        S.ib_score(make_tree(random_responses(0, 2)), S.ScoreOptions(**options))


def test_joint_confidence_is_the_geometric_mean_to_the_length():
    tree = make_tree64(random_responses(3, 5))
    joint = S.node_confidence(tree, confidence="joint")
    mean = S.node_confidence(tree)
    length = np.bincount(tree.step[0])
    np.testing.assert_allclose(joint[0, 1:], mean[0, 1:] ** length[1:], rtol=1e-6)
    shifted = dataclasses.replace(tree, log_probs=tree.log_probs - 1.0 * (tree.step > 0))
    np.testing.assert_allclose(S.node_confidence(shifted)[0, 1:] * np.e, mean[0, 1:], rtol=1e-6)
