"""The benchmark of branching: its process is the one it states, and its figures are right."""

import numpy as np
import pytest

from benchmarks import branching, simulated
from ibtpo.sampling import TreeOptions
from ibtpo.sampling.process import State
from ibtpo.tree import fork_owner


def grown(name, questions, **options):
    simulation = simulated.Simulation(branching.tree_options(branching.VARIANTS[name], TreeOptions()), **options)
    return simulation, [simulation.grow(id) for id in range(questions)]


def test_the_process_is_the_papers_independent_responses():
    """Within three standard errors of 300 questions."""
    _, trees = grown("independent 8", 300)
    tokens = np.array([(t.tree.step > 0).sum() for t in trees]) * simulated.UNIT_TOKENS / 8
    rewards = np.array([t.tree.rewards[0] for t in trees])
    mixed = np.ptp(rewards, axis=1) > 0
    for values, paper in ((tokens, 12_035 / 12), (rewards.mean(axis=1), 0.196), (mixed, 0.547)):
        assert abs(values.mean() - paper) < 3 * values.std() / np.sqrt(len(values))


def test_the_first_responses_are_the_same_for_all_strategies():
    _, some = grown("random", 5)
    _, others = grown("ib", 5)
    for one, other in zip(some, others):
        for r, s in zip(one.responses[:4], other.responses):
            assert np.array_equal(r.tokens, s.tokens) and r.reward == s.reward and r.round == s.round == 0


def test_the_value_is_a_martingale():
    """Right responses from a prefix are as frequent as its value says, whatever was drawn before it."""
    rng = np.random.default_rng(0)
    state = State(3, 0.3)
    moved = [simulated.PROCESS.open_step(state, rng).moved for _ in range(4000)]
    assert abs(np.mean(moved) - 0.3) < 4 * np.std(moved) / np.sqrt(len(moved))


@pytest.mark.parametrize("name", branching.VARIANTS)
def test_rows_say_what_the_trees_are(name):
    simulation, trees = grown(name, 6)
    row = branching.row_of(trees, simulation.codec)
    group = 8 if name == "independent 8" else 12
    assert all(len(t.responses) == group for t in trees)
    assert row["behind"] in (0, None)
    forked = [[(t.responses, r) for r in t.responses if r.round > 0] for t in trees]
    forks = [[(fork_owner(responses, r), r.fork) for responses, r in of_tree] for of_tree in forked if of_tree]
    assert (row["places"] is None) == (not forks)
    if forks:
        assert row["places"] == np.mean([len(set(f)) for f in forks])
        assert row["most at one"] == np.mean([max(map(f.count, f)) for f in forks])
        assert row["at question"] == pytest.approx(np.mean([p == 0 for f in forks for _, p in f]))
    assert row["tokens"] == np.mean([(t.tree.step > 0).sum() for t in trees])


def test_a_quick_run_ends_in_goals():
    quiet = dict(log=lambda _: None, show=lambda _: None)
    figures = branching.run(quick=True, parts=["simulator", "segments"], questions=24, **quiet)
    met = {goal["name"]: goal["met"] for goal in figures["goals"]}
    assert set(figures["results"]["simulator"]["rows"]) == set(branching.VARIANTS)
    assert met.pop("simulator: forks behind a stated answer")
    met.pop("simulator: tokens of ib over random's")  # of 24 questions
    assert len(met) == 4 and all(met.values())
