"""Training questions that an evaluation set has: planted copies are found, other questions stay."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data import decontaminate
from ibtpo.data.datasets import load_training
from ibtpo.errors import UserError

_WORDS = st.lists(st.sampled_from([f"w{letter}" for letter in "abcdefghij"]), min_size=1, max_size=40)


def _shared(a, b):
    """Share of the smaller set of 8-grams that the other has too, written from the definition."""
    grams = [
        {tuple(words[i : i + 8]) for i in range(len(words)) if i + 8 <= len(words)}
        for words in map(decontaminate.tokens, (a, b))
    ]
    smaller = min(map(len, grams))
    return len(grams[0] & grams[1]) / smaller if smaller else 0.0


@given(st.lists(_WORDS, max_size=6), st.lists(_WORDS, max_size=6), st.data())
def test_matches_are_those_of_the_definition(training, evaluation, data):
    for words in training[: len(evaluation)]:  # random texts share little: give them a part of an evaluation question
        other = data.draw(st.sampled_from(evaluation))
        begin = data.draw(st.integers(0, len(other)))
        words += other[begin:]
    training, evaluation = [" ".join(words) for words in training], [" ".join(words) for words in evaluation]
    matches = decontaminate.find_matches(training, evaluation)
    equal = [i for i, question in enumerate(training) if question in evaluation]
    assert matches.equal == equal
    assert matches.overlapping == [
        i for i, t in enumerate(training) if i not in equal and any(_shared(t, e) >= 0.5 for e in evaluation)
    ]


@pytest.mark.parametrize(
    "copy",
    [
        "FIND the value of $\\left( \\dfrac{1}{2} \\right)^{3}+x$, if  $x=7$ .",
        "Find the value of \\((\\frac 1 2)^3 \\, + \\; x\\) if\n\\[x = 7\\]",
        "\\textbf{Find} the value of ${(\\tfrac{1}{2})}^3+x$ if \\quad $\\!x=7$.",
    ],
)
def test_spelling_and_layout_do_not_count(copy):
    assert decontaminate.find_matches([copy], ["Find the value of $(\\frac{1}{2})^3 + x$ if $x = 7$."]).equal == [0]


def test_other_numbers_and_operators_are_no_copy():
    for a, b in [("What is 2 + 3?", "What is 2 - 3?"), ("What is 2 + 3?", "What is 2 + 4?"), ("$x<2$", "$x>2$")]:
        matches = decontaminate.find_matches([a], [b])
        assert not matches.equal and not matches.overlapping


def _planted(question, rng):
    """The question as copies of it occur: a word changed, an introduction, the last tenth cut off."""
    words = question.split()
    kind = rng.randrange(3)
    if kind == 0:
        words[rng.randrange(len(words))] = "changed"
    elif kind == 1:
        words = "Here is a problem from a well known contest for you to solve:".split() + words
    else:
        words = words[: -max(1, len(words) // 10)]
    return " ".join(words)


@pytest.mark.parametrize("name", ["math500_test", "gsm8k_test", "aime24_test", "amc23_test"])
def test_planted_copies_of_real_questions_are_found(shared_data, name, read_questions):
    questions, rng = read_questions(f"{name}.jsonl"), random.Random(0)
    matches = decontaminate.find_matches(questions, questions)
    assert matches.equal == list(range(len(questions)))
    long = [question for question in questions if len(decontaminate.tokens(question)) >= 30]
    copies = [_planted(question, rng) for question in long]
    found = decontaminate.find_matches(copies, questions)
    assert len(found.equal) + len(found.overlapping) >= 0.99 * len(long) > 10


def test_real_sets_share_as_much_as_the_docs_say(shared_data, read_questions):
    for training, evaluation, equal, overlapping in [
        ("math4500_train", "math500_test", 0, 50),
        ("gsm8k_train", "gsm8k_test", 0, 2),
        ("math4500_train", "aime24_test", 0, 0),
        ("gsm8k_train", "math500_test", 0, 0),
    ]:
        matches = decontaminate.find_matches(*(read_questions(f"{name}.jsonl") for name in (training, evaluation)))
        assert (len(matches.equal), len(matches.overlapping)) == (equal, overlapping), training


def test_training_leaves_them_out_and_says_so(shared_data, data_config, caplog):
    config = data_config(
        source="tfds:gsm8k", files=str(shared_data), decontaminate=f"gsm8k, jsonl:{shared_data}/aime25_test.jsonl"
    )
    problems = load_training(config)
    assert len(problems) == 7473 - 2 and {1314, 5162}.isdisjoint(problem.id for problem in problems)
    [record] = [record for record in caplog.records if "decontaminate" in record.getMessage()]
    assert record.getMessage().startswith(
        "data.decontaminate: 2 of 7473 training problems left out: gsm8k 2 (0 equal, 2"
    )
    assert "aime25_test.jsonl 0 (0 equal, 0 overlapping)" in record.getMessage()
    config.update(
        decontaminate=f"jsonl:{shared_data}/gsm8k_test.jsonl", train_split="train[:9]", eval_split="train[9:]"
    )
    assert len(load_training(config)) == 9
    config.update(decontaminate="", train_split="train")
    assert len(load_training(config)) == 7473
    config.update(source=f"jsonl:{shared_data}/gsm8k_test.jsonl", decontaminate="gsm8k", limit=100)
    with pytest.raises(UserError, match="leaves none of the 100 training problems"):
        load_training(config)
