"""Each advantage against its definition, path by path, and the properties that all of them must have."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo import advantages as A
from ibtpo.ib_score import ScoreOptions, ib_score
from ibtpo.token_weights import whiten
from ibtpo.tree import on_path, response_mask, stack_trees
from tests import advantage_oracles as expected_advantages
from tests.advantage_oracles import METHODS, expected_advantage
from tests.tree_cases import (
    cases,
    make_tree,
    node_of_step,
    padded,
    paths,
    random_responses,
    relabel,
    same_nodes,
    to_jax,
)

make_tree64 = partial(make_tree, dtype=np.float64)
REWARDS = st.sampled_from([0.0, 1.0, 0.25])
OPTIONS = st.builds(
    A.AdvantageOptions,
    score=st.builds(
        ScoreOptions,
        beta=st.sampled_from([1.0, 5.0]),
        ratio_power=st.sampled_from([1, 2]),
        confidence=st.sampled_from(["geometric_mean", "joint"]),
        value=st.sampled_from(["leaf_mean", "backup"]),
        root=st.sampled_from(["all", "initial"]),
    ),
    ib_weight=st.sampled_from([0.0, 0.1, 1.0]),
    deviation=st.sampled_from(["population", "sample"]),
    group_of_one=st.sampled_from(["zero", "reward"]),
    segment_tokens=st.integers(1, 8),
)


def flat(per_response):
    """An oracle of one number for each response."""

    def oracle(responses, options):
        rewards = [r.reward for r in responses]
        return lambda r, s: per_response(rewards, r)

    return oracle


def leave_one_out(rewards, r):
    others = [x for i, x in enumerate(rewards) if i != r]
    return rewards[r] - np.mean(others) if others else 0.0


def by_tokens(name):
    """An oracle of `advantage_oracles`, which has an advantage for each token, for steps: that of their first."""

    def oracle(responses, options):
        of_token = expected_advantage(name, responses, options)
        return lambda r, s: of_token(r, s.begin)

    return oracle


def tempo(responses, options):
    """Of a step, whose term V(n) - V(parent) is the sum of its tokens' own."""
    of_token = expected_advantage("tempo", responses, options)
    outcome = expected_advantages.grpo(responses, deviation=options.deviation, group_of_one="zero")

    def advantage(r, s):
        return outcome(r, s.begin) + sum(of_token(r, p) - outcome(r, p) for p in range(s.begin, s.end))

    return advantage


# Every oracle is oracle(responses, options) -> f(response index, Step), from the list alone.
ORACLES = {name: by_tokens(name) for name in METHODS} | {
    "dr_grpo": flat(lambda rewards, r: rewards[r] - np.mean(rewards)),
    "rloo": flat(leave_one_out),
    "tempo": tempo,
}


@pytest.mark.parametrize("name", A.ADVANTAGES)
@given(responses=cases(rewards=REWARDS), options=OPTIONS)
def test_equals_its_definition_path_by_path(name, responses, options):
    tree = make_tree64(responses)
    advantages = A.ADVANTAGES[name](tree, options)
    ids, oracle = node_of_step(tree, responses), ORACLES[name](responses, options)
    expected = np.zeros((len(responses), tree.node_end.shape[1]))
    for r, path in enumerate(paths(responses)):
        for s in path:
            expected[r, ids[s]] = oracle(r, s)
    np.testing.assert_allclose(advantages[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", A.ADVANTAGES)
@given(responses=cases(rewards=st.floats(-1, 1, width=32)))
def test_finite_and_zero_off_the_path(name, responses):
    tree = padded(make_tree(responses))
    advantages = A.ADVANTAGES[name](tree, A.AdvantageOptions())
    assert advantages.shape == (1, tree.rewards.shape[1], tree.node_end.shape[1])
    assert np.all(np.isfinite(advantages))
    assert np.all(advantages[~on_path(tree)] == 0)
    assert np.all(advantages[:, :, 0] == 0)


@pytest.mark.parametrize("name", A.ADVANTAGES)
@given(responses=cases(), random=st.randoms(use_true_random=False))
def test_order_of_creation_does_not_matter(name, responses, random):
    order = list(range(len(responses)))
    random.shuffle(order)
    options, node = A.AdvantageOptions(), same_nodes(responses, order)
    before = A.ADVANTAGES[name](make_tree64(responses), options)[0]
    after = A.ADVANTAGES[name](make_tree64(relabel(responses, order)), options)[0]
    np.testing.assert_allclose(before[order], after[:, node], atol=1e-6)


@pytest.mark.parametrize("name", [n for n in A.ADVANTAGES if n != "ibtpo"])
@given(responses=cases(min_responses=2, rewards=st.just(0.1)))  # 0.1 has no exact binary form
def test_equal_rewards_teach_the_other_methods_nothing(name, responses):
    assert np.abs(A.ADVANTAGES[name](make_tree(responses), A.AdvantageOptions())).max() < 1e-6


@given(st.sampled_from([0.0, 0.1, 1.0]).flatmap(lambda r: cases(rewards=st.just(r))))
def test_equal_rewards_leave_ibtpo_a_small_push_down(responses):
    """A_GL = 0 and every ratio is 1, so A = −λ·π/β < 0 at every node: why such groups are masked."""
    tree = make_tree(responses)
    assert A.group_is_uniform(tree).all()
    outcome_only = A.ibtpo(tree, A.AdvantageOptions(ib_weight=0.0))
    assert np.all(outcome_only == 0)
    advantages = A.ibtpo(tree, A.AdvantageOptions(ib_weight=0.1))
    sure = ib_score(tree).eta2
    expected = np.where(on_path(tree), -0.1 / 5.0 * sure[:, None, :], 0)
    expected[:, :, 0] = 0
    np.testing.assert_allclose(advantages, expected, atol=1e-6)


@given(cases())
def test_independent_responses_without_ib_term_are_grpo(responses):
    """Leaves of a flat group have p̂ = R, so A_GL is GRPO's advantage but for its epsilon."""
    flat_group = random_responses(len(responses), 6, fork_at="question",
                                  rewards=[r.reward for r in responses] + [0.0] * 6)  # fmt: skip
    tree = make_tree64(flat_group)
    ours = A.ibtpo(tree, A.AdvantageOptions(ib_weight=0.0))
    np.testing.assert_allclose(ours, A.grpo(tree, A.AdvantageOptions()), atol=1e-4)


@given(cases(min_responses=2))
def test_reference_confidence_is_the_tree_with_other_log_probs(responses):
    tree = make_tree64(responses)
    reference = tree.replace(log_probs=tree.log_probs * 0.5)
    options = A.AdvantageOptions(ib_weight=1.0)
    score, other = ib_score(tree), ib_score(reference)
    difference = A.ibtpo(reference, options) - A.ibtpo(tree, options)
    expected = np.where(on_path(tree), (score.eta1 * (other.eta2 - score.eta2))[:, None, :], 0)
    np.testing.assert_allclose(difference, expected, atol=1e-6)


@pytest.mark.parametrize("name", A.ADVANTAGES)
@given(responses=cases(), random=st.randoms(use_true_random=False), options=OPTIONS)
def test_shaping_moves_the_outcomes_and_not_the_information(name, responses, random, options):
    """Whatever is added to the rewards, A_IB stays what the graded rewards say; all else sees the sum."""
    tree = make_tree64(responses)
    shaping = np.array([[random.uniform(-1, 0.2) for _ in responses]])
    shaped = tree.replace(rewards=tree.rewards + shaping)
    no_information = dataclasses.replace(options, ib_weight=0.0)
    information = A.ADVANTAGES[name](tree, options) - A.ADVANTAGES[name](tree, no_information)
    expected = A.ADVANTAGES[name](shaped, no_information) + information
    np.testing.assert_allclose(A.compute_advantages(name, tree, options, shaping), expected, atol=1e-9)
    np.testing.assert_array_equal(A.compute_advantages(name, tree, options), A.ADVANTAGES[name](tree, options))


@pytest.mark.parametrize("name", A.ADVANTAGES)
@given(responses=cases(max_responses=4), other=cases(max_responses=6))
def test_stacking_changes_nothing(name, responses, other):
    tree = make_tree(responses)
    together = A.ADVANTAGES[name](stack_trees([tree, make_tree(other)]), A.AdvantageOptions())[0]
    r, n = tree.rewards.shape[1], tree.node_end.shape[1]
    alone = A.ADVANTAGES[name](tree, A.AdvantageOptions())[0]
    np.testing.assert_allclose(together[:r, :n], alone, atol=1e-6)
    assert np.all(together[r:] == 0) and np.all(together[:, n:] == 0)


def test_equal_advantages_are_not_whitened_into_noise():
    tree = make_tree64(random_responses(1, 6))
    assert not whiten(tree, np.full(on_path(tree).shape, 0.1)).any()


@pytest.mark.parametrize("name", A.ADVANTAGES)
@pytest.mark.parametrize("ratio_power", [1, 2])
@pytest.mark.parametrize("tiny", [1.4e-45, 1e-22, 1.01e-6])
def test_tiny_rewards_overflow_nothing(name, ratio_power, tiny):
    """In float32: ratios to a p̂ near 0, deviations of rewards that hardly differ, and both whitened."""
    options = A.AdvantageOptions(ScoreOptions(beta=50.0, ratio_power=ratio_power, root="initial"), ib_weight=1.0)
    for rewards in ([tiny, 1.0], [tiny, 0.0, 1.0, 2 * tiny], [tiny, 0.0, 2 * tiny, 0.0]):
        tree = make_tree(random_responses(0, len(rewards), fork_at="question", rewards=rewards))
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            advantages = A.ADVANTAGES[name](tree, options)
            whitened = whiten(tree, advantages)
            found = A.diagnostics(tree, options)
        assert np.isfinite(advantages).all() and np.isfinite(whitened).all()
        assert all(np.isfinite(x) for pair in found.values() for x in pair)


def test_numpy_and_jit_agree():
    tree = padded(make_tree(random_responses(3, 7, fork_at="tokens")), 64, 16, 1)
    options = A.AdvantageOptions(ScoreOptions(value="backup", root="initial"))

    def everything(tree):
        found = {name: fn(tree, options) for name, fn in A.ADVANTAGES.items()}
        whitened = whiten(tree, found["treepo"])
        return found, whitened, A.group_is_uniform(tree), A.diagnostics(tree, options)

    on_host = everything(tree)
    under_jit = jax.jit(everything)(to_jax(tree))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), on_host, under_jit)


@given(st.lists(cases(), min_size=1, max_size=3))
def test_diagnostics_add_up(groups):
    """Each is Σ/Σ of the groups' own, whatever they are stacked with."""
    options = A.AdvantageOptions()
    trees = [make_tree64(g) for g in groups]
    together = A.diagnostics(stack_trees(trees), options)
    for name, (total, weight) in together.items():
        alone = [A.diagnostics(t, options)[name] for t in trees]
        np.testing.assert_allclose(total, sum(a[0] for a in alone), atol=1e-6)
        assert weight == sum(a[1] for a in alone)


def test_diagnostics_of_a_known_group():
    responses = random_responses(11, 6, rewards=[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])  # rounds 0,0,0,1,1,1
    tree = stack_trees([make_tree64(responses), make_tree64(random_responses(2, 3, rewards=[1.0] * 3))])
    found = A.diagnostics(tree, A.AdvantageOptions())
    assert found["eff_rate"] == (1, 2)
    assert found["avg_rate"] == (7, 9)
    assert found["avg_rate_initial"] == (1 + 1, 3 + 1)
    score = ib_score(tree)
    np.testing.assert_allclose(found["ib_score"][0], score.J[score.has_children].sum())
    assert found["ib_score"][1] == score.has_children.sum()
    assert found["ib_score_root"][1] == 2
    assert found["cov"][1] == (score.num_children > 1).sum()
    assert response_mask(tree).sum() == 9
