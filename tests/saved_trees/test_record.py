"""A record holds the tree that it was made of: nodes, tokens, scores and advantages, whatever padding it had."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.advantages import AdvantageOptions, at_tokens, by_token, compute_advantages
from ibtpo.config import METHODS, resolve
from ibtpo.data.problems import Problem
from ibtpo.ib_score import ScoreOptions, child_weights, ib_score
from ibtpo.saved_trees.record import advantages_of, tree_file, unpadded
from ibtpo.saved_trees.shown import ShownTrees
from ibtpo.tree import on_path, stack_trees
from tests.config_cases import runnable
from tests.saved_trees.cases import grow, make_file, make_policy, make_tree

CLOSE = dict(rtol=1e-6, atol=1e-7)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_padding_leaves_no_trace(seed, rounds):
    tree = make_tree(grow(seed, rounds=rounds))
    sizes = [getattr(tree, name).shape[1] + 3 for name in ("tokens", "node_parent", "rewards")]
    again = unpadded(stack_trees([tree], *sizes))
    for field in dataclasses.fields(tree):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(tree, field.name), err_msg=field.name)


@given(st.integers(0, 10**6))
def test_scores_nodes_and_tokens_are_those_of_the_tree(seed):
    responses = grow(seed)
    [record] = make_file([responses]).trees
    tree, score = make_tree(responses), ib_score(make_tree(responses), ScoreOptions())
    assert record["parent"] == tree.node_parent[0].tolist() and record["leaf"] == tree.response_node[0].tolist()
    assert record["tokens"] == tree.tokens[0, 3:].tolist() and sum(record["length"]) == len(record["tokens"])
    assert record["round"] == [r.round for r in responses] and record["reward"] == [r.reward for r in responses]
    for name, wanted in (("value", score.values), ("eta1", score.eta1), ("eta2", score.eta2)):
        np.testing.assert_allclose(record[name], wanted[0], **CLOSE)
    np.testing.assert_allclose(record["weight"], child_weights(tree)[0], **CLOSE)
    np.testing.assert_allclose([j or 0 for j in record["J"]], score.J[0], **CLOSE)
    assert [j is not None for j in record["J"]] == score.has_children[0].tolist()
    np.testing.assert_allclose(-1e-4 * np.array(record["log_probs"]), tree.log_probs[0, 3:], atol=5.1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_advantages_are_there(method):
    """Per node the mean over its responses and, where they are of tokens, over its tokens."""
    responses = grow(5, rounds=5)
    config = resolve(runnable(method=method))
    [record] = make_file([responses], method=method).trees
    tree, options = make_tree(responses), AdvantageOptions.from_config(config)
    given, differ = advantages_of(tree, config.loss.advantage, options), False
    for node in range(1, tree.node_parent.shape[1]):
        through = np.flatnonzero(on_path(tree)[0, :, node])
        columns = [node]
        if config.loss.advantage == "tempo":
            columns = 1 + np.flatnonzero(tree.step[0, 3:] == node)
        each = given[np.ix_(through, columns)].mean(axis=1)
        np.testing.assert_allclose(record["A"][node], each.mean(), rtol=1e-5, atol=1e-6)
        low, high = record.get("A_low", record["A"])[node], record.get("A_high", record["A"])[node]
        np.testing.assert_allclose([low, high], [each.min(), each.max()], rtol=1e-5, atol=1e-5)
        differ |= each.max() - each.min() > 1e-6
    assert ("A_low" in record) == differ
    of_responses = ("grpo", "dr_grpo", "rloo", "tempo")
    assert differ or config.loss.advantage not in of_responses


@pytest.mark.parametrize("of_tokens", [False, True])
def test_the_advantages_of_an_update_are_taken_as_they_are(of_tokens):
    """Those of several trees, padded to one size, of nodes or of tokens."""
    trees = [make_tree(grow(seed, rounds=3 + seed, steps=2 + seed)) for seed in range(3)]
    batch = stack_trees(trees)
    advantages = np.asarray(compute_advantages("ibtpo", batch, AdvantageOptions()))
    expected = make_file([grow(seed, rounds=3 + seed, steps=2 + seed) for seed in range(3)]).trees
    if of_tokens:
        advantages = at_tokens(batch, advantages)
        assert by_token(batch).node_parent.shape[1] == advantages.shape[2]
    problems = [Problem(i, "?", "1", "math") for i in range(3)]
    config = resolve(runnable())
    found = tree_file("train", 1, trees, problems, make_policy(), config, advantages, of_tokens)
    for one, other in zip(found.trees, expected):
        np.testing.assert_allclose(one["A"], other["A"], rtol=1e-5, atol=1e-6)


def test_texts_answers_and_names_of_tokens():
    words = ["", "\n\n", "\\boxed{", "7", "}", b"\xc3", b"\xa9"]
    responses = grow(1, initial=2, rounds=1, steps=1, words=7)
    responses[0].tokens, responses[0].log_probs = np.array([2, 3, 4, 0]), np.zeros(4, np.float32)
    responses[1].tokens, responses[1].log_probs = np.array([5, 6, 0]), np.zeros(3, np.float32)
    content = make_file([responses], words=words)
    assert content.trees[0]["stated"] == ["7", None]
    # What a response that was cut off states is what was graded of it: the number it broke off in is none.
    words = ["", "\n\n", "The answer is", " 12", " 13"]
    responses = grow(1, initial=2, rounds=1, steps=1, words=5)
    for response, number, finish in zip(responses, (3, 4), ("stop", "length"), strict=True):
        response.tokens, response.log_probs, response.finish = np.array([2, number]), np.zeros(2, np.float32), finish
    assert make_file([responses], words=words).trees[0]["stated"] == ["12", None]
    assert content.vocabulary["0"] == "\0<|0|>" and content.vocabulary["5"] == "\xc3"


def test_the_first_questions_are_shown_and_no_others():
    shown, config = ShownTrees(2), resolve(runnable())
    assert shown.of_update(1, make_policy(), config, False) is None
    assert shown.of_evaluation(1, make_policy(), config) is None
    trees = [make_tree(grow(seed)) for seed in range(4)]
    problems = [Problem(10 + i, f"question {i}", "1", "math") for i in range(4)]
    batch = stack_trees(trees)
    advantages = np.asarray(compute_advantages("ibtpo", batch, AdvantageOptions()))
    shown.update(types.SimpleNamespace(tree=batch, problems=problems), advantages)
    found = shown.of_update(7, make_policy(), config, False)
    assert (found.kind, found.step) == ("train", 7)
    assert [tree["question"] for tree in found.trees] == ["question 0", "question 1"]
    keep = shown.evaluated(problems)
    for place in (3, 1, 2, 0):  # in the order in which they are finished
        keep(types.SimpleNamespace(question=types.SimpleNamespace(id=10 + place), tree=trees[place]))
    assert [tree["problem"] for tree in shown.of_evaluation(7, make_policy(), config).trees] == [10, 11]
    shown.evaluated(problems)  # another begins, and is given up
    assert shown.of_evaluation(7, make_policy(), config) is None
    assert ShownTrees(0).of_update(1, make_policy(), config, False) is None
