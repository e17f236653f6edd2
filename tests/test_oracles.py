"""Values, scores, advantages, weights and choices against oracles written from the sources, on many random trees.

The oracles (advantage_oracles, branching_oracles) see a list of responses: no packed layout, no node numbering, and
segments are cut where responses fork, whereas the trees here are cut at steps too.
"""

from functools import partial

import numpy as np
import pytest

from ibtpo import advantages as A
from ibtpo.ib_score import ScoreOptions, ib_score
from ibtpo.sampling import strategies as S
from ibtpo.token_weights import token_weights, whiten
from ibtpo.tree import build_tree, node_mask, on_path, stack_trees, tokens_of_response
from tests import advantage_oracles as expected_advantages
from tests import branching_oracles as expected_branching
from tests.advantage_oracles import METHODS, expected_advantage
from tests.tree_cases import PROMPT, make_tree, node_of_step, random_responses, step_ends

TREES = 200  # of each oracle, and 1,800 more where slow tests run
LENGTH = 12


@pytest.fixture(scope="module", params=[pytest.param(0, id="few"), pytest.param(1, id="many", marks=pytest.mark.slow)])
def seeds(request):
    return range(TREES, 10 * TREES) if request.param else range(TREES)


def draw(seed, rewards=(0.0, 1.0), least=1):
    """(responses, rng) of one random tree; rounds are numbered as the sampler does."""
    rng = np.random.default_rng([seed, 7])
    number = int(rng.integers(least, 9))
    where = ["steps", "tokens", "question"][rng.integers(3)]
    given = rng.choice(rewards, number).tolist()
    responses = random_responses(seed, number, max_length=LENGTH, fork_at=where, rewards=given, vocab=3)
    initial = int(rng.integers(1, number + 1))
    for r in responses:
        r.round = 0 if r.parent < 0 and r.index < initial else max(1, r.index - initial + 1)
        r.log_probs = np.asarray(r.log_probs, np.float64)
    return responses, rng


def tree_of(responses):
    """In float64, as exact as the responses."""
    tree = make_tree(responses, np.float64).replace(rewards=np.array([[r.reward for r in responses]]))
    exact = [None] * tree.tokens.shape[1]
    for r in responses:
        for at, value in zip(tokens_of_response(tree, r.index), r.log_probs):
            exact[at] = value if exact[at] is None else exact[at]
    log_probs = np.array([[0.0 if value is None else value for value in exact]])
    return tree.replace(log_probs=log_probs)


def score_options(rng):
    return ScoreOptions(
        beta=float(rng.choice([1.0, 5.0])),
        ratio_power=int(rng.choice([1, 2])),
        confidence=str(rng.choice(["geometric_mean", "joint"])),
        value=str(rng.choice(["leaf_mean", "backup"])),
        branch_value=str(rng.choice(["leaf_mean", "backup"])),
        root=str(rng.choice(["all", "initial"])),
        child_weight=str(rng.choice(["responses", "uniform"])),
    )


def of_score(options):
    names = ("beta", "ratio_power", "confidence", "branch_value", "root", "child_weight")
    return {name: getattr(options, name) for name in names}


def close(found, expected, scale=1.0):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * scale)


# The IB-Score.


def test_scores_in_every_reading(seeds):
    for seed in seeds:
        responses, rng = draw(seed, (0.0, 1.0, 0.25))
        options = score_options(rng)
        found = ib_score(tree_of(responses), options)
        ids = {None: 0, **node_of_step(tree_of(responses), responses)}
        for name, table in (
            ("J", expected_branching.score(responses, **of_score(options))),
            ("cov", expected_branching.covariance(responses, **of_score(options))),
        ):
            assert table
            for step, value in table.items():
                close(getattr(found, name)[0, ids[step]], value, scale=50)


@pytest.mark.parametrize("child_weight, branch_value", [("responses", "leaf_mean"), ("uniform", "backup")])
def test_the_covariance_form_is_exact(child_weight, branch_value, seeds):
    """J = 1 + beta Cov - E[eta2]: the children's values have their parent's as mean."""
    for seed in seeds:
        responses, rng = draw(seed, (0.0, 1.0, 0.25))
        beta = float(rng.choice([1.0, 5.0]))
        options = ScoreOptions(beta=beta, child_weight=child_weight, branch_value=branch_value)
        found, tree = ib_score(tree_of(responses), options), tree_of(responses)
        ids = {None: 0, **node_of_step(tree, responses)}
        sure = expected_branching.mean_confidence(responses, **of_score(options))
        for step, mean in sure.items():
            close(found.J[0, ids[step]], 1 + beta * found.cov[0, ids[step]] - mean, scale=50)


def test_printed_form_differs_where_a_node_has_branched():
    """With children alike and leaf means J gains beta (mean rho - 1) E[eta2]."""
    printed = ScoreOptions(child_weight="uniform")
    off = 0
    for seed in range(50):
        responses, _ = draw(seed)
        found = ib_score(tree_of(responses), printed)
        sure = expected_branching.mean_confidence(responses, **of_score(printed))
        ids = {None: 0, **node_of_step(tree_of(responses), responses)}
        off += any(
            abs(found.J[0, ids[s]] - (1 + 5 * found.cov[0, ids[s]] - mean)) > 1e-3 for s, mean in sure.items()
        )
    assert off > 10


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.25])
def test_where_rewards_are_equal_only_the_confidence_counts(reward):
    """J = 1 - E[eta2] whatever beta, ratio_power, branch_value and root are: Eff-Rate depends on none of them."""
    for seed in range(50):
        responses, rng = draw(seed, (reward,))
        options = score_options(rng)
        found = ib_score(tree_of(responses), options)
        ids = {None: 0, **node_of_step(tree_of(responses), responses)}
        for step, mean in expected_branching.mean_confidence(responses, **of_score(options)).items():
            close(found.J[0, ids[step]], 1 - mean, scale=10)


# The next fork.


def branching_case(seed):
    responses, rng = draw(seed, (0.0, 1.0, 0.25))
    limits = [int(rng.integers(0, len(r.tokens) + 3)) for r in responses]
    rules = dict(
        min_new_tokens=int(rng.integers(1, 6)),
        max_new_tokens=int(rng.integers(6, 2 * LENGTH)),
        limits=None if rng.random() < 0.3 else limits,
    )
    options = S.TreeOptions(
        top_k=int(rng.integers(1, 5)),
        branch=int(rng.integers(1, 3)),
        score=score_options(rng),
        rebranch=int(rng.integers(0, 3)),
        sibling_penalty=float(rng.choice([0.0, 0.05, 0.4])),
        explore=float(rng.choice([0.0, 0.5])),
        surprise=float(rng.choice([0.3, 1.0])),
        min_new_tokens=rules["min_new_tokens"],
        max_new_tokens=rules["max_new_tokens"],
    )
    return responses, options, rules


@pytest.mark.parametrize("name", ["ib", "at2po", "uucb"])
def test_the_next_forks(name, seeds):
    for seed in seeds:
        responses, options, rules = branching_case(seed)
        strategy = S.STRATEGIES[name]
        found = strategy(tree_of(responses), responses, options, np.random.default_rng(0), rules["limits"])
        shape = (responses, options.top_k, options.branch)
        if name == "ib":
            expected = expected_branching.next_ib(*shape, options.rebranch, **rules, **of_score(options.score))
        elif name == "at2po":
            expected = expected_branching.next_at2po(*shape, options.sibling_penalty, **rules)
        else:
            expected = expected_branching.next_uucb(*shape, options.explore, options.surprise, **rules)
        assert [(fork.response, fork.position) for fork in found] == [tuple(fork) for fork in expected], seed


# Advantages, token by token.


def per_token(tree, advantages, responses):
    """{(response, position): advantage} of [R, N]."""
    return {
        (r.index, p): advantages[r.index, tree.step[0, at]]
        for r in responses
        for p, at in enumerate(tokens_of_response(tree, r.index))
    }


def advantage_options(rng, name):
    deviations = ["population", "sample"] + ["bernoulli"] * (name in ("treerpo", "grpo"))
    return A.AdvantageOptions(
        score=score_options(rng),
        ib_weight=float(rng.choice([0.1, 1.0])),
        deviation=str(rng.choice(deviations)),
        group_of_one=str(rng.choice(["zero", "reward"])),
        value_center=str(rng.choice(["none", "tokens"])),
        segment_tokens=int(rng.integers(1, 6)),
    )


@pytest.mark.parametrize("name", METHODS)
def test_advantages_of_every_token(name, seeds):
    for seed in seeds:
        responses, rng = draw(seed, (0.0, 1.0, 0.3))
        options = advantage_options(rng, name)
        tree = tree_of(responses)
        tree = A.by_token(tree) if name == "tempo" else tree
        found = per_token(tree, A.ADVANTAGES[name](tree, options)[0], responses)
        expected = expected_advantage(name, responses, options)
        for (r, p), value in found.items():
            close(value, expected(r, p), scale=10)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("ibtpo", "tempo")])
def test_step_cuts_change_nothing(name, seeds):
    """Only IB-TPO knows steps: a tree cut at every token gives the same as one cut at its forks alone."""
    for seed in seeds:
        responses, rng = draw(seed, (0.0, 1.0, 0.3))
        options = advantage_options(rng, name)
        whole = build_tree(PROMPT, responses, lambda tokens: [len(tokens)])
        whole = whole.replace(rewards=np.array([[r.reward for r in responses]]))
        cut = A.by_token(whole)
        found, expected = (A.ADVANTAGES[name](tree, options)[0] for tree in (cut, whole))
        found, expected = per_token(cut, found, responses), per_token(whole, expected, responses)
        for at, value in expected.items():
            close(found[at], value, scale=10)


def test_a_node_for_each_token(seeds):
    for seed in seeds:
        responses, _ = draw(seed)
        tree = stack_trees([tree_of(responses), tree_of(draw(seed + 1)[0])])
        fine = A.by_token(tree)
        same = ("tokens", "positions", "subtree_end", "parent_token", "log_probs", "response_length")
        assert all(np.array_equal(getattr(fine, name), getattr(tree, name)) for name in same)
        for r in responses:
            at = tokens_of_response(tree, r.index)
            assert np.array_equal(at, tokens_of_response(fine, r.index))
            nodes = np.flatnonzero(on_path(fine)[0, r.index])
            assert np.array_equal(nodes, [0, *fine.step[0, at]])
            assert np.array_equal(fine.node_parent[0, nodes], [-1, *nodes[:-1]])
        assert np.array_equal(node_mask(fine).sum(axis=1), (tree.step > 0).sum(axis=1) + 1)


def test_advantages_of_steps_at_their_tokens(seeds):
    for seed in seeds:
        responses, rng = draw(seed, (0.0, 1.0, 0.3))
        other = draw(seed + 1)[0]
        tree = stack_trees([tree_of(responses), tree_of(other)])
        advantages = A.ibtpo(tree, advantage_options(rng, "ibtpo"))
        fine = A.by_token(tree)
        found = A.at_tokens(tree, advantages)
        assert found.shape == on_path(fine).shape and not found[~on_path(fine)].any()
        for q, of_question in enumerate((responses, other)):
            for r in of_question:
                at = tokens_of_response(tree, r.index, q)
                assert np.array_equal(found[q, r.index, fine.step[q, at]], advantages[q, r.index, tree.step[q, at]])


# Weights and whitening of a batch.


def batch(seed):
    rng = np.random.default_rng([seed, 9])
    groups = [draw(10_000 + 3 * seed + i)[0] for i in range(int(rng.integers(1, 4)))]
    for responses in groups:  # some tokens that were nearly certain
        for r in responses:
            own = r.log_probs[r.fork :]
            own[rng.random(len(own)) < 0.4] = np.log(0.95)
            if r.fork:
                r.log_probs[: r.fork] = responses[r.parent].log_probs[: r.fork]
    return groups, A.by_token(stack_trees([tree_of(responses) for responses in groups])), rng


def tokens_of_batch(groups, tree, values):
    """{(group, response, position): value} of [Q, R, N]."""
    return {
        (g, r.index, p): values[g, r.index, tree.step[g, at]]
        for g, responses in enumerate(groups)
        for r in responses
        for p, at in enumerate(tokens_of_response(tree, r.index, g))
    }


def looked_up(table):
    """table as a function of (group, response, position)."""
    return lambda *key: table[key]


@pytest.mark.parametrize("aggregation", ["response_mean", "token_mean", "fixed_length", "unique_mean"])
@pytest.mark.parametrize("shared_tokens", ["each", "once"])
def test_weights_of_every_token(aggregation, shared_tokens, seeds):
    for seed in seeds[: len(seeds) // 2]:
        groups, tree, rng = batch(seed)
        advantages = np.where(rng.random(on_path(tree).shape) < 0.5, 1.0, -1.0) * on_path(tree)
        mask = rng.random(on_path(tree).shape) < 0.7
        trained = tokens_of_batch(groups, tree, mask)
        options = dict(aggregation=aggregation, shared_tokens=shared_tokens, max_new_tokens=20)
        options |= dict(max_old_probability=float(rng.choice([0.9, 1.0])))
        expected = expected_advantages.loss_weights(groups, trained=looked_up(trained), **options)
        found = token_weights(tree, advantages, mask=mask, **options)
        positive, negative, weight = (np.zeros(tree.tokens.shape) for _ in range(3))
        for (g, r, p), w in expected.items():
            at = tokens_of_response(tree, r, g)[p]
            sign = advantages[g, r, tree.step[g, at]]
            weight[g, at] += w
            positive[g, at] += w * max(sign, 0)
            negative[g, at] += w * min(sign, 0)
        for name, value in (("positive", positive), ("negative", negative), ("weight", weight)):
            got = np.take_along_axis(getattr(found, name), np.maximum(tree.step, 0), axis=1)
            close(np.where(tree.step > 0, got, 0), value)


@pytest.mark.parametrize("once", [False, True])
def test_whitened_tokens(once, seeds):
    for seed in seeds[: len(seeds) // 2]:
        groups, tree, rng = batch(seed)
        of_node = rng.standard_normal(on_path(tree).shape[::2])[:, None, :]  # once needs one advantage per node
        of_response = 0 if once else rng.standard_normal((*tree.rewards.shape, 1))
        advantages = np.broadcast_to(of_node + of_response, on_path(tree).shape)
        mask = rng.random(tree.rewards.shape if seed % 2 else on_path(tree).shape) < 0.7
        wide = np.broadcast_to(mask[:, :, None] if mask.ndim == 2 else mask, on_path(tree).shape)
        trained, given = tokens_of_batch(groups, tree, wide), tokens_of_batch(groups, tree, advantages)
        cap = float(rng.choice([0.9, 1.0]))
        fs = [partial(looked_up(given), g) for g in range(len(groups))]
        expected = expected_advantages.whitened(
            groups, fs, trained=looked_up(trained), once=once, max_old_probability=cap
        )
        result = whiten(tree, advantages, mask, unique=once, max_old_probability=cap)
        found = tokens_of_batch(groups, tree, result)
        for key, value in found.items():
            np.testing.assert_allclose(value, expected.get(key, 0.0), rtol=1e-9, atol=1e-9)


def test_steps_end_where_the_cases_say():
    assert step_ends([1, 0, 2, 0]) == [2, 4]
