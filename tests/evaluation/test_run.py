"""The results read off the responses, with a sampler that has them ready."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from ibtpo.data.problems import Problem
from ibtpo.evaluation.run import evaluate, make_eval_sampler
from ibtpo.policy import load_policy, make_sampler
from ibtpo.rewards.pool import Grader
from ibtpo.sampling.strategies import most_responses, num_responses


class Policy:
    """Tokens are an index into texts."""

    def __init__(self, texts):
        self.texts = texts

    def text(self, tokens):
        return self.texts[tokens[0]]

    def question(self, id, problem, data_config):
        return SimpleNamespace(id=id)


def sample(params, questions, grade, *, key, sampling, on_finished, between_chunks=None):
    """Two responses per question: tokens [0] and [1], the second cut off. The time that `on_finished` takes is kept."""
    for question in questions:
        grades = [grade(question, np.array([i])) for i in range(2)]
        responses = [
            SimpleNamespace(tokens=[i] * (i + 3), reward=future.result(), finish=("stop", "length")[i])
            for i, future in enumerate(grades)
        ]
        started = time.monotonic()
        on_finished(SimpleNamespace(question=question, responses=responses))
        sample.seconds = time.monotonic() - started
    return [], SimpleNamespace(generated_tokens=7 * len(questions))


def reference(*instructions):
    names, arguments = zip(*instructions)
    return json.dumps({"instruction_id_list": names, "kwargs": arguments})


@pytest.mark.parametrize("excess", ["time", "memory"])
def test_a_text_that_takes_too_much_follows_no_instruction(tiny_config, excess):
    """By its length alone: sentences are counted one by one, and the loose measure cuts lines."""
    hostile = {"time": "A cat. " * 2_000_000, "memory": "*a\n" * 10_000_000}[excess]
    limits = {"time": dict(timeout=1.0), "memory": dict(timeout=60.0, memory_mb=700)}[excess]
    answer = reference(
        ("punctuation:no_comma", {}),
        ("length_constraints:number_sentences", {"num_sentences": 5, "relation": "less than"}),
    )
    problems = [Problem(4, "Write.", answer, "instructions")]
    with Grader(workers=1, **limits) as grader:
        found = evaluate(Policy(["Yes, I do.", hostile]), None, problems, sample, grader, tiny_config())
        counts = grader.counts
    assert sample.seconds < 1  # decoding goes on meanwhile
    assert found.followed["strict"][0].tolist() == [[False, True], [False, False]]
    assert found.followed["loose"][0].tolist() == [[False, True], [False, False]]
    assert found.correct.tolist() == [[0.0, 0.0]]
    assert counts["timeout" if excess == "time" else "crashed"] >= 1 and counts["graded"] == 4


def test_all_that_an_evaluation_holds_is_read_once(tiny_config):
    problems = [Problem(9, "One?", "12"), Problem(2, "Two?", "B", "multiple_choice")]
    texts = [r"so \boxed{12}", "The answer is B."]
    with Grader(workers=1) as grader:
        finished = []
        found = evaluate(
            Policy(texts), None, problems, sample, grader, tiny_config(), on_finished=finished.append
        )
    assert [p.kind for p in found.problems] == ["math", "multiple_choice"]
    assert found.correct.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert found.answers[0][0] == "12" and found.answers[1] == [None, "B"]
    assert found.texts == [texts] * 2 and found.lengths.tolist() == [[3, 4]] * 2
    assert found.truncated.tolist() == [[False, True]] * 2 and found.generated_tokens == 14
    assert found.followed == {} and [tree.question.id for tree in finished] == [9, 2]


def test_the_pool_of_evaluation_is_no_larger_than_that_of_training(tiny_config):
    policy = load_policy(tiny_config())
    trained = make_sampler(policy, tiny_config()).total_pages
    many = make_eval_sampler(policy, tiny_config(eval__samples=16))
    assert trained == many.total_pages > many.least_pages
    few = make_eval_sampler(policy, tiny_config(eval__samples=2))
    assert few.total_pages < trained
    # One question has to fit in any case.
    huge = make_eval_sampler(policy, tiny_config(eval__samples=64))
    assert huge.total_pages == huge.least_pages > trained


def test_an_evaluation_has_nothing_of_the_tree_that_is_trained(tiny_config):
    """Extra rounds gave some questions more responses than others; a lag means nothing."""
    policy = load_policy(tiny_config())
    trained = tiny_config(tree__strategy="ib", tree__rounds=3, tree__extra_rounds=2, tree__lag=1, eval__samples=2)
    tree = make_eval_sampler(policy, trained).tree
    assert (tree.strategy, num_responses(tree), most_responses(tree), tree.lag) == ("independent", 2, 2, 0)
    assert tree == make_eval_sampler(policy, tiny_config(eval__samples=2)).tree
