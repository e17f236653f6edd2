"""Where trees branch: budgets, eligibility, rankings, ties, and what guidance does to estimates."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.ib_score import ib_score, node_values
from ibtpo.sampling import strategies as S
from ibtpo.tree import Response, build_tree, children_mask, last_token_of_node, on_path
from tests.tree_cases import (
    SEPARATOR,
    cases,
    make_tree,
    nested,
    obvious_values,
    padded,
    random_responses,
    relabel,
    token_owner,
)

LENGTH = 12  # budget of the random cases, about as long as their responses
OPTIONS = st.builds(
    S.TreeOptions,
    strategy=st.just("ib"),
    initial=st.integers(1, 8),
    rounds=st.integers(2, 4),
    top_k=st.integers(1, 5),
    branch=st.integers(1, 3),
    min_new_tokens=st.integers(1, 12),
    max_new_tokens=st.just(LENGTH),
    segment_tokens=st.integers(1, 6),
)


def forks_of(name, responses, options, seed=0, limits=None):
    tree = make_tree(responses, np.float64)
    return S.STRATEGIES[name](tree, responses, options, np.random.default_rng(seed), limits)


@pytest.mark.parametrize("name", S.STRATEGIES)
@given(responses=cases(), options=OPTIONS, data=st.data())
def test_forks_are_valid_and_spend_the_budget(name, responses, options, data):
    limits = [data.draw(st.integers(0, len(r.tokens))) for r in responses]
    forks = forks_of(name, responses, options, limits=limits)
    missing = S.num_responses(options) - len(responses)
    if name == "fixed_width" and missing > 0:
        assert len(forks) == missing
    else:  # one round's; of fixed_width an extra one's
        assert len(forks) == options.top_k * options.branch
    for f in forks:
        assert 0 <= f.position < len(responses[f.response].tokens)
        if f.position:
            assert LENGTH - f.position >= options.min_new_tokens
            assert f.position <= limits[f.response]  # nothing behind a stated answer


@pytest.mark.parametrize("name", S.STRATEGIES)
@given(responses=cases(), options=OPTIONS, seed=st.integers(0, 9))
def test_same_generator_same_choice_and_padding_is_inert(name, responses, options, seed):
    forks = forks_of(name, responses, options, seed)
    assert forks == forks_of(name, responses, options, seed)
    tree = padded(make_tree(responses, np.float64))
    rng = np.random.default_rng(seed)
    assert forks == S.STRATEGIES[name](tree, responses, options, rng)


@pytest.mark.parametrize("name", S.STRATEGIES)
@pytest.mark.parametrize("shape", [(4, 9, 1, 1), (4, 3, 4, 1), (2, 3, 2, 2), (1, 4, 3, 1)])
def test_a_grown_tree_has_the_promised_number_of_responses(name, shape):
    initial, rounds, top_k, branch = shape
    options = S.TreeOptions(name, initial, rounds, top_k, branch, max_new_tokens=8,
                            min_new_tokens=2, segment_tokens=2)  # fmt: skip
    tree, responses = grow(coin_policy, majority, name, options, seed=1)
    assert len(responses) == S.num_responses(options) == initial + (rounds - 1) * top_k * branch
    assert tree.rewards.shape[1] == len(responses)


# --- ib ------------------------------------------------------------------------------------------


def inner_nodes(responses, options):
    """[(Step or None, tokens before the fork, oldest response)] that may branch, by the obvious way."""
    children, through = nested(responses)
    return [
        (s, 0 if s is None else s.end, min(through[s]))
        for s in children
        if children[s] and (s is None or LENGTH - s.end >= options.min_new_tokens)
    ]


@given(responses=cases(max_responses=10), options=OPTIONS)
def test_ib_takes_the_highest_scores(responses, options):
    tree = make_tree(responses, np.float64)
    options = dataclasses.replace(options, rebranch=0)
    score = ib_score(tree).J[0]
    last = last_token_of_node(tree)[0]
    through = on_path(tree)[0]

    def score_of(fork):
        for n in np.flatnonzero(through[fork.response]):
            if tree.positions[0, last[n]] + 1 - tree.prompt_length[0] == fork.position:
                return score[n]
        raise AssertionError(f"{fork} is not at the end of a node")

    chosen = list(dict.fromkeys(forks_of("ib", responses, options)))
    eligible = inner_nodes(responses, options)
    assert len(chosen) == min(options.top_k, len(eligible))
    every = sorted((score_of(S.Fork(r, p)) for _, p, r in eligible), reverse=True)
    np.testing.assert_allclose([score_of(f) for f in chosen], every[: len(chosen)], atol=2e-6)


def chain(index, confidences, reward=1.0):
    """A response of one-token steps, each with the confidence given."""
    tokens = np.array([t for _ in confidences for t in (1, SEPARATOR)])
    log_probs = np.array([x for c in confidences for x in (np.log(c), np.log(c))])
    return Response(index, -1, 0, 0, tokens, log_probs, "stop", reward)


def test_ties_go_to_the_shallowest_then_the_oldest():
    """Equal scores, some of them off by rounding: no digit below 1e-6 may decide."""
    noise = 3e-7
    responses = [chain(0, [0.9, 0.9, 0.5 - noise]), chain(1, [0.9, 0.5, 0.9]),
                 chain(2, [0.9, 0.5 - noise, 0.9])]  # fmt: skip
    options = S.TreeOptions(top_k=3, max_new_tokens=100)
    # J = 0.5 after the first step of 1 and of 2 and after the second of 0; the root's is 0.1.
    expected = [S.Fork(1, 2), S.Fork(2, 2), S.Fork(0, 4)]
    assert forks_of("ib", responses, options) == expected
    assert forks_of("ib", relabel(responses, [0, 2, 1]), options) == expected


def test_ib_prefers_the_unsure_step_of_a_chain():
    options = S.TreeOptions(max_new_tokens=100)
    assert forks_of("ib", [chain(0, [0.9, 0.8, 0.2, 0.7])], options) == [S.Fork(0, 4)]


@pytest.mark.parametrize("budget, position", [(10, 4), (9, 2), (8, 2), (7, 0), (6, 0), (1, 0)])
def test_no_branch_without_room(budget, position):
    """The best fork keeps 4 tokens, the next 2; six must be left, and the question always may."""
    options = S.TreeOptions(max_new_tokens=budget, min_new_tokens=6)
    response = [chain(0, [0.9, 0.8, 0.2, 0.7])]
    assert forks_of("ib", response, options) == [S.Fork(0, position)]


def test_a_node_branches_in_one_round_only_while_others_are_left():
    first = chain(0, [0.9, 0.8, 0.2, 0.7])
    options = S.TreeOptions(max_new_tokens=100)
    assert forks_of("ib", [first], options) == [S.Fork(0, 4)]
    forked = [first, dataclasses.replace(chain(1, [0.9, 0.8, 0.3]), parent=0, fork=4, round=1)]
    assert forks_of("ib", forked, options) == [S.Fork(0, 6)]
    assert forks_of("ib", forked, dataclasses.replace(options, rebranch=2)) == [S.Fork(0, 4)]
    assert forks_of("ib", forked, dataclasses.replace(options, rebranch=0)) == [S.Fork(0, 4)]
    used = forked + [
        dataclasses.replace(chain(2 + i, [0.9, 0.8, 0.2, 0.9][: place // 2 + 1]), parent=0, fork=place, round=2 + i)
        for i, place in enumerate((2, 6))
    ]
    # All have branched, the question in the first round: the best of all.
    assert forks_of("ib", used, options) == [S.Fork(0, 4)]
    only = chain(0, [0.5])  # of one step: there is the question alone
    assert forks_of("ib", [only], options) == [S.Fork(0, 0)]


@pytest.mark.parametrize("name", ["ib", "at2po", "uucb", "entropy"])
def test_responses_under_way_count_where_they_forked(name):
    """From the same responses the next round forks elsewhere once it is known where the one under way did."""
    responses = [chain(0, [0.9, 0.8, 0.2, 0.7]), chain(1, [0.5, 0.6, 0.4, 0.3])]
    options = S.TreeOptions(max_new_tokens=100, initial=2, sibling_penalty=9.0, explore=9.0)
    [first] = forks_of(name, responses, options)
    parent = first.response if first.position else -1
    nothing = np.zeros(0)
    under_way = Response(len(responses), parent, first.position, 9, nothing, nothing, "", 0.0)
    tree = make_tree(responses, np.float64)
    [second] = S.STRATEGIES[name](tree, responses, options, np.random.default_rng(0), None, [under_way])
    assert first != second


def test_fewer_nodes_than_top_k_go_round_again():
    responses = [chain(0, [0.9, 0.2])]
    forks = forks_of("ib", responses, S.TreeOptions(top_k=5, branch=2, rebranch=0, max_new_tokens=100))
    best, second = S.Fork(0, 2), S.Fork(0, 0)
    assert forks == [best] * 2 + [second] * 2 + [best] * 2 + [second] * 2 + [best] * 2


# --- random --------------------------------------------------------------------------------------


def test_random_reaches_every_inner_node_equally_often():
    responses = random_responses(4, 5)
    options = S.TreeOptions("random", top_k=1, max_new_tokens=LENGTH)
    eligible = {S.Fork(r, p) for _, p, r in inner_nodes(responses, options)}
    draws = [forks_of("random", responses, options, seed)[0] for seed in range(400)]
    assert set(draws) == eligible
    counts = np.array([draws.count(f) for f in eligible])
    expected = len(draws) / len(eligible)
    assert np.sum((counts - expected) ** 2 / expected) < 3 * len(eligible) + 10  # chi-square


@given(responses=cases(), options=OPTIONS)
def test_random_draws_without_replacement_while_it_can(responses, options):
    forks = forks_of("random", responses, dataclasses.replace(options, branch=1))
    number = len(inner_nodes(responses, options))
    assert len(set(forks)) == min(options.top_k, number)


# --- entropy -------------------------------------------------------------------------------------


@given(responses=cases(), options=OPTIONS, data=st.data())
def test_entropy_forks_before_the_least_probable_tokens(responses, options, data):
    limits = [data.draw(st.integers(0, len(r.tokens) + 2)) for r in responses]
    options = dataclasses.replace(options, branch=1)
    forks = forks_of("entropy", responses, options, limits=limits)
    taken = {(token_owner(responses, r.parent, r.fork - 1), r.fork) for r in responses if r.fork}
    eligible = {}
    for r in responses:
        for p in range(r.fork + 1, len(r.tokens)):
            if p < limits[r.index] and LENGTH - p >= options.min_new_tokens:
                eligible[S.Fork(r.index, p)] = -float(r.log_probs[p])
    fresh = {f: x for f, x in eligible.items() if (f.response, f.position) not in taken}
    pool = fresh or eligible
    if not pool:
        assert set(forks) == {S.Fork(0, 0)}
        return
    best = sorted(pool.values(), reverse=True)[: options.top_k]
    chosen = list(dict.fromkeys(forks))
    np.testing.assert_allclose([pool[f] for f in chosen], best)


def test_entropy_does_not_fork_twice_before_a_token():
    first = chain(0, [0.9, 0.1, 0.5])
    options = S.TreeOptions("entropy", max_new_tokens=100)
    assert forks_of("entropy", [first], options) == [S.Fork(0, 2)]
    second = dataclasses.replace(chain(1, [0.9, 0.9, 0.9]), parent=0, fork=2, round=1)
    assert forks_of("entropy", [first, second], options) == [S.Fork(0, 3)]


# --- fixed width ---------------------------------------------------------------------------------


@given(
    positions=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    finished=st.integers(0, 12),
    options=OPTIONS,
    data=st.data(),
)
def test_segment_forks_share_the_open_width_evenly(positions, finished, options, data):
    active = [(3 * i, 4 * p) for i, p in enumerate(positions)]
    stated = data.draw(st.sets(st.sampled_from([r for r, _ in active])))
    forks = S.segment_forks(active, finished, options, stated)
    missing = max(0, S.num_responses(options) - finished - len(active))
    may_fork = [path for path in active if path[0] not in stated]
    assert len(forks) == min(missing, options.branch * len(may_fork))
    count = [forks.count(S.Fork(r, p)) for r, p in may_fork]
    assert sum(count) == len(forks)
    if count:
        assert max(count) - min(count) <= 1 and count == sorted(count, reverse=True)


@given(responses=cases(), options=OPTIONS, seed=st.integers(0, 99))
def test_fixed_width_branches_at_segment_boundaries(responses, options, seed):
    for f in forks_of("fixed_width", responses, options, seed):
        assert f.position % options.segment_tokens == 0


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [(dict(strategy="best"), "strategy='best'"), (dict(initial=0), "initial=0"),
     (dict(top_k=0), "top_k=0"), (dict(segment_tokens=0), "segment_tokens=0")],
)  # fmt: skip
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        S.TreeOptions(**change)


# --- What guidance does to the estimates ---------------------------------------------------------


def every_token(tokens):
    return list(range(1, len(tokens) + 1))


def coin_policy(prefix):
    return np.array([0.5, 0.5])


def majority(tokens):
    return float(2 * np.sum(tokens) > len(tokens))


def grow(policy, reward, choose, options, seed, depth=3):
    """Samples a tree from a toy policy: one token per step, `depth` steps. choose: a strategy's
    name or a function of its signature."""
    rng = np.random.default_rng(seed)
    responses = []

    def sample(fork, round_):
        shared = responses[fork.response] if fork.position else None
        tokens = list(shared.tokens[: fork.position]) if shared else []
        log_probs = list(shared.log_probs[: fork.position]) if shared else []
        while len(tokens) < depth:
            p = policy(tuple(tokens))
            tokens.append(int(rng.choice(len(p), p=p)))
            log_probs.append(np.log(p[tokens[-1]]))
        parent = fork.response if shared else -1
        responses.append(
            Response(
                index=len(responses),
                parent=parent,
                fork=fork.position,
                round=round_,
                tokens=np.array(tokens),
                log_probs=np.array(log_probs),
                finish="stop",
                reward=reward(tokens),
            )
        )

    for _ in range(options.initial):
        sample(S.Fork(0, 0), 0)
    round_ = 0
    while len(responses) < S.num_responses(options):
        round_ += 1
        tree = build_tree([9], responses, every_token)
        strategy = choose if callable(choose) else S.STRATEGIES[choose]
        for fork in strategy(tree, responses, options, rng):
            sample(fork, round_)
    return build_tree([9], responses, every_token), responses


def best_value(tree, responses, options, rng, limits=None):
    """The inner node with the highest p̂, ties at random."""
    values = node_values(tree)[0]
    inner = np.flatnonzero(children_mask(tree)[0].any(axis=1))
    inner = inner[values[inner] >= values[inner].max() - 1e-9]
    node = rng.choice(inner)
    depth = int(tree.positions[0, last_token_of_node(tree)[0, node]])  # a prompt of one token
    return [S.Fork(int(on_path(tree)[0, :, node].argmax()), depth)]


def test_following_the_outcome_biases_the_estimate_of_the_question():
    """Majority of three fair coins, true value 1/2: always branching the best node, the mean over
    leaves reads too high, the recursive mean too low, and only the unguided responses are fair."""
    options = S.TreeOptions(max_new_tokens=3)
    found = []
    for seed in range(150):
        tree, responses = grow(coin_policy, majority, best_value, options, seed)
        found.append([
            node_values(tree)[0, 0],
            node_values(tree, value="backup")[0, 0],
            node_values(tree, root="initial")[0, 0],
        ])  # fmt: skip
        assert np.isclose(found[-1][0], obvious_values(responses)[None])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert mean[0] > 0.5 + 6 * error[0]
    assert mean[1] < 0.5 - 6 * error[1]
    assert abs(mean[2] - 0.5) < 4 * error[2]
