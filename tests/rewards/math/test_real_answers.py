"""The answers of published problem sets, in the phrasings of models."""

import json
import random
import re

import pytest

from ibtpo.rewards.math import extract_answer, fast_grade, symbolic_grade, verify


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_gsm8k_answer_in_every_phrasing(shared_data):
    rows = read(shared_data / "gsm8k_test.jsonl")
    assert len(rows) == 1319
    for row in rows:
        text = row["answer"].split("####")[1].strip()
        value = int(text.replace(",", ""))
        assert fast_grade(extract_answer(row["answer"]), text) is True
        phrasings = [
            r"\boxed{%s}",
            "#### %s",
            "The answer is %s.",
            r"\boxed{%s \text{ dollars}}",
            r"The answer is \boxed{%s}.",
            "So it is $%s$. The answer is $%s dollars per week.",
        ]
        for phrasing in phrasings:
            for written in (str(value), f"{value:,}", f"{value}.00"):
                response = f"3 + 4 = 7\n\n{phrasing.replace('%s', written)}"
                assert fast_grade(extract_answer(response), text) is True, response
            for wrong in (value + 1, -value - 1, value * 10 + 7):
                response = f"It is not {value}.\n\n{phrasing.replace('%s', str(wrong))}"
                assert fast_grade(extract_answer(response), text) is False, response


@pytest.mark.parametrize("name, count", [("aime24", 30), ("aime25", 30), ("amc23", 40)])
def test_competition_answers(shared_data, name, count):
    rows = read(shared_data / f"{name}_test.jsonl")
    assert len(rows) == count
    for row in rows:
        for reference in (row["answer"], str(row["answer"])):
            value = int(float(reference))
            assert fast_grade(extract_answer(rf"Thus \boxed{{{value}}}."), reference) is True
            assert fast_grade(extract_answer(rf"Thus \boxed{{{value + 1}}}."), reference) is False


def test_math500_solutions_against_their_own_answers(shared_data):
    rows = read(shared_data / "math500_test.jsonl")
    assert len(rows) == 500
    for row in rows:
        assert verify(row["solution"], row["answer"]), row["answer"]
        # Math-Verify alone must agree, since it decides wherever the fast path cannot.
        assert symbolic_grade(extract_answer(row["solution"]), row["answer"]), row["answer"]


# MATH-500 answers spelled differently that are accepted for one another, unordered; all others are
# told apart.
SAME_VALUE = {
    frozenset(pair)
    for pair in [
        (r"10,\!080", "10080"),
        (r"2 \sqrt{5}", r"2\sqrt{5}"),
        ("1,-2", "-2,1"),  # the same two roots
        ("x=5", "5"),
        # The unit or currency is not part of the value.
        ("15", r"15\mbox{ cm}^2"),
        ("36", r"\$36"),
        (r"\frac14", r"\frac{1}{4}"),
        (r"36^\circ", r"\$36"),
        *((number, rf"{number}^\circ") for number in ("30", "36", "90", "120")),
        # A pair and a list in its order; a base left out.
        ("(-2,1)", "-2,1"),
        ("40", "40_9"),
    ]
}


def test_math500_solutions_against_other_answers(shared_data):
    """Each solution against another problem's answer: accepted only where both mean the same."""
    rows = read(shared_data / "math500_test.jsonl")
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    rejected = 0
    for i, j in zip(order, order[1:] + order[:1]):
        mine, other = rows[i]["answer"], rows[j]["answer"]
        accepted = verify(rows[i]["solution"], other)
        rejected += not accepted
        if mine == other:
            assert accepted, (mine, other)
        elif accepted:
            assert frozenset((mine, other)) in SAME_VALUE, (mine, other)
    assert rejected > 450


def test_answers_that_mean_the_same_are_accepted_for_one_another():
    for pair in SAME_VALUE:
        first, second = sorted(pair)
        assert verify(rf"\boxed{{{first}}}", second) or verify(rf"\boxed{{{second}}}", first), pair


@pytest.mark.slow
def test_math500_answers_are_told_apart_in_many_pairings(shared_data):
    answers = sorted({row["answer"] for row in read(shared_data / "math500_test.jsonl")})
    pairs = random.Random(1).choices([(a, b) for a in answers for b in answers if a != b], k=4_000)
    for mine, other in pairs:
        if verify(rf"\boxed{{{mine}}}", other):
            assert frozenset((mine, other)) in SAME_VALUE, (mine, other)


@pytest.mark.slow
def test_every_math_solution_yields_its_boxed_answer(shared_data):
    rows = read(shared_data / "math4500_train.jsonl")
    assert len(rows) == 4500
    wrong, joined = [], 0
    for row in rows:
        answer = extract_answer(row["solution"])
        assert answer is not None, row["idx"]
        boxed = re.sub(r"\\f?box(ed)?\s*\{\s*", r"\\boxed{", row["solution"])
        if rf"\boxed{{{answer}" not in boxed:  # several boxes: each is there
            joined += 1
            assert all(rf"\boxed{{{part}" in boxed for part in re.split(r", (?![^(]*\))", answer)), row["idx"]
        if not symbolic_grade(answer, answer):
            wrong.append(answer)
    assert not wrong and 5 <= joined <= 15
