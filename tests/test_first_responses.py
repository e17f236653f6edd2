"""The line before training, on responses made by hand."""

import numpy as np
import pytest

from ibtpo import first_responses
from ibtpo.data.problems import Problem
from ibtpo.policy import load_policy
from ibtpo.tree import Response, build_tree

STEPS = "1+2=3\n\n3+4=7\n\n"
RIGHT, WRONG = STEPS + "\\boxed{7}", STEPS + "\\boxed{8}"


@pytest.fixture(scope="module")
def policy(tiny_config):
    return load_policy(tiny_config())


@pytest.fixture
def seen(policy, tiny_config):
    """seen(questions, **changes): the line and the warnings; a question is its responses, (text, whether it stops)."""

    def seen(questions, answers=None, guided=(), **changes):
        config = tiny_config(**changes)
        trees, problems = [], []
        for id, question in enumerate(questions):
            responses = []
            for i, (text, stops) in enumerate([*question, *guided]):
                tokens = np.array(policy.tokenizer.encode(text) + [policy.tokenizer.eos_token_id] * stops)
                reward = float(text.endswith("\\boxed{7}"))
                rounds = int(i >= len(question))
                finish = "stop" if stops else "length"
                responses.append(Response(i, -1, 0, rounds, tokens, np.zeros(len(tokens)), finish, reward))
            trees.append(build_tree([1, 2], responses, policy.codec.step_ends))
            problems.append(Problem(id, "?", "7", (answers or {}).get(id, "")))
        found = first_responses.look(trees, problems, policy, "math")
        return str(found), first_responses.warnings(found, config)

    return seen


def test_what_can_be_trained_is_counted_and_not_warned_of(seen):
    line, warnings = seen([[(RIGHT, True), (WRONG, True)], [(WRONG, True), ("1+2=3", False)]], guided=[(WRONG, True)])
    assert line == (
        "first 4 responses: 75 % stop, 75 % state an answer, 25 % are right, 75 % have 3 steps or more; "
        "1 of 2 questions have right and wrong ones"
    )
    assert warnings == []


def test_guided_responses_count_for_the_mixture_only(seen):
    line, warnings = seen([[(WRONG, True)]], guided=[(RIGHT, True)])
    assert "first 1 responses" in line and " 0 % are right" in line and "1 of 1 questions have" in line
    assert warnings == []


@pytest.mark.parametrize(
    "questions, changes, keys",
    [
        ([[(RIGHT, False), (WRONG, False)]], {}, ["sampling.max_new_tokens=48"]),
        ([[(WRONG, True)] * 2] * 2, {}, ["no response is right", "data.source"]),
        ([[(STEPS + "so we", True)] * 2] * 2, {}, ["no response is right", "data.prompt"]),
        ([[(RIGHT, True)] * 2] * 2, {}, ["every response is right", "data.source"]),
        ([[(RIGHT, True)] * 2, [(WRONG, True)] * 2], {}, ["no question has right and wrong", "tree.initial"]),
        ([[("\\boxed{7}", True), ("\\boxed{8}", True)]], {}, ["data.separator, which is '\\n\\n' now"]),
        ([[("\\boxed{7}", True), ("\\boxed{8}", True)]], {"tree__strategy": "independent"}, []),
        ([[("\\boxed{7}", True), ("\\boxed{8}", True)]], {"data__step_rule": "sentence"}, ["set it to 'separator'"]),
        ([[("so", False)] * 2], {}, ["sampling.max_new_tokens", "data.prompt", "data.separator"]),
    ],
)
def test_where_training_cannot_work_a_key_is_named(seen, questions, changes, keys):
    _, warnings = seen(questions, **changes)
    assert len(warnings) >= (1 if keys else 0) and (keys or not warnings)
    for key in keys:
        assert any(key in line for line in warnings), (key, warnings)


def test_a_kind_without_answers_says_nothing_of_them(seen):
    line, _ = seen([[(RIGHT, True), (WRONG, True)]], answers={0: "instructions"})
    assert "state an answer" not in line and "50 % are right" in line
