"""Answers that graders get wrong, by kind (tests/rewards/cases), and those where reasonable graders differ."""

import collections
import json
from types import SimpleNamespace

import pytest

from ibtpo.policy import make_grader
from ibtpo.rewards.math import reward, unevaluated_reward

# Right in value, refused all the same: the reference is a number, these have yet to be evaluated, and a rule that pays
# for them pays for a copy of the question's formula. reward.unevaluated accepts them.
UNEVALUATED = {("∛8", "2"), (r"\lg 100", "2"), (r"e^{i\pi}", "-1"), ("2⁵", "32")}


def read(root, name):
    """The rows of a file of cases, as (kind, response, reference, right)."""
    lines = (root / "tests" / "rewards" / "cases" / name).read_text().splitlines()
    for row in map(json.loads, lines):
        response = row["response"] if "response" in row else f"Hence it is $\\boxed{{{row['answer']}}}$."
        yield row["kind"], response, row["reference"], row["right"], row.get("answer")


def test_every_case_is_graded_right(repo_root):
    rows = list(read(repo_root, "math.jsonl"))
    assert len(rows) == 234
    wrong = []
    for kind, response, reference, right, answer in rows:
        if (answer, reference) in UNEVALUATED:
            assert right and reward(response, reference) == 0 and unevaluated_reward(response, reference) == 1, response
        elif reward(response, reference) != right:
            wrong.append((kind, response, reference))
    assert not wrong


def test_answers_by_kind_are_graded_as_labelled(repo_root):
    """Labelled by hand, kind by kind; wrong ones that are paid are listed apart from right ones that are refused."""
    rows = list(read(repo_root, "math_by_kind.jsonl"))
    assert len(rows) >= 1800 and min(collections.Counter(row[0] for row in rows).values()) >= 140
    paid = [row[:3] for row in rows if not row[3] and reward(row[1], row[2])]
    refused = [row[:3] for row in rows if row[3] and not reward(row[1], row[2])]
    assert not paid
    assert not refused


# Surds: (answer, reference, right).
SURDS = [
    (r"\sqrt{242}", r"11\sqrt2", 0), (r"\frac{3}{\sqrt{27}}", r"\frac{\sqrt3}{3}", 0),
    (r"\sqrt[3]{16}", r"2\sqrt[3]{2}", 0), (r"18^{1/2}", r"3\sqrt2", 0), (r"\sqrt3\cdot\sqrt6", r"3\sqrt2", 0),
    (r"\sqrt2+\sqrt8", r"3\sqrt2", 0), (r"\sqrt{11^2+11^2}", r"11\sqrt2", 0), (r"\sqrt{2^2+7^2}", r"\sqrt{53}", 0),
    (r"\frac{\sqrt6}{\sqrt2}", r"\sqrt3", 0), (r"\sqrt{12x}", r"2\sqrt{3x}", 0),
    (r"\sqrt{4+2\sqrt3}", r"1+\sqrt3", 0), (r"\sqrt{2}^3", r"2\sqrt2", 0),
    (r"\frac{-2\pm\sqrt{20}}{4}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", 0), (r"\sqrt[4]{4}", r"\sqrt2", 0),
    (r"2\cdot\sqrt{8}", r"4\sqrt2", 0), (r"\frac{4}{\sqrt8}", r"\sqrt2", 0), (r"\sqrt{32}", r"4\sqrt2", 0),
    # The least factor may be kept by a root that is all of the answer.
    (r"\sqrt8", r"2\sqrt2", 1), (r"-\sqrt{12}", r"-2\sqrt3", 1), (r"\sqrt{20}", r"2\sqrt5", 1),
    (r"2^{0.5}", r"\sqrt2", 1), (r"\frac{1}{\sqrt3}", r"\frac{\sqrt3}{3}", 1),
    (r"\sqrt{\frac12}", r"\frac{\sqrt2}{2}", 1), (r"2\sqrt5", r"\sqrt{20}", 1), (r"\sqrt{20}", r"\sqrt{20}", 1),
    (r"\sqrt{-3}", r"i\sqrt3", 1), (r"2^{3/2}", r"2\sqrt2", 1),
    (r"\frac{\sqrt2}{4}(1+\sqrt3)", r"\frac{\sqrt2+\sqrt6}{4}", 1), (r"\sqrt[3]{4}", r"2^{2/3}", 1),
    # A formula of a question that is its reference, letter for letter: right by any rule.
    (r"\sqrt{53}", r"\sqrt{53}", 1),
]  # fmt: skip


@pytest.mark.parametrize("answer, reference, right", SURDS)
def test_surds_are_answered_in_simplest_form(answer, reference, right):
    assert reward(rf"\boxed{{{answer}}}", reference) == right
    assert unevaluated_reward(rf"\boxed{{{answer}}}", reference) == 1


def test_debatable_answers_are_graded_as_written_down(repo_root):
    """`right` in the file is this project's choice; "why" says on what ground, where it is not the obvious one."""
    rows = list(read(repo_root, "math_debatable.jsonl"))
    assert len(rows) >= 111
    assert not [row for row in rows if reward(row[1], row[2]) != row[3]]


# Questions with a formula, and answers; a copy of the formula earns nothing.
COPIES = [
    (r"What is $17 \cdot 24$?", "408"), (r"Evaluate $\sqrt{1681}$.", "41"), (r"Find $\log_3 729$.", "6"),
    (r"How many subsets with two elements are there, $\binom{12}{2}$?", "66"), (r"Compute $2^{11}$.", "2048"),
    (r"What is $\frac{3}{8} + \frac{1}{4}$?", r"\frac{5}{8}"), (r"Compute $\lfloor 47/6 \rfloor$.", "7"),
    (r"Find $\sum_{k=1}^{20} k$.", "210"), (r"Write $(3-2i)(1+i)$ as $a+bi$.", "5+i"),
    (r"Find $\cos 60^\circ$.", "0.5"),
    (r"Simplify $7y - 3 + 2y + 10$.", "9y+7"), (r"Factor $pq + 3p + 2q + 6$.", "(p+2)(q+3)"),
    (r"Find $\frac{d}{dx} x^3$.", "3x^2"), (r"Find $\int 4t\,dt$ without the constant.", "2t^2"),
    (r"What is $e^{i\pi} + 1$?", "0"), (r"Find the pair $(2+5, 3\cdot 4)$.", "(7,12)"), (r"Compute $7!$.", "5040"),
    (r"Find $\arcsin \frac{1}{2}$.", r"\frac{\pi}{6}"), (r"Compute $1001^2 - 999^2$.", "4000"),
]  # fmt: skip


@pytest.mark.parametrize("question, reference", COPIES)
def test_a_copy_of_the_questions_formula_is_no_answer(question, reference):
    formula = question.split("$")[1]
    assert reward(rf"\boxed{{{formula}}}", reference) == 0
    assert reward(f"The answer is ${formula}$.", reference) == 0
    assert reward(rf"\boxed{{{reference}}}", reference) == 1


@pytest.mark.parametrize("unevaluated", [False, True])
def test_the_rule_for_unevaluated_answers_reaches_the_workers(unevaluated):
    reward_section = dict(kind="math", workers=1, timeout=60.0, memory_mb=2048, unevaluated=unevaluated)
    with make_grader(SimpleNamespace(reward=SimpleNamespace(**reward_section))) as grader:
        pairs = [("9*2", "18"), (r"\sqrt{81}", "9"), ("9 million", "9"), ("18", "18")]
        grades = grader.grade([(rf"\boxed{{{answer}}}", expected) for answer, expected in pairs])
        assert grades == [unevaluated, unevaluated, 0, 1]
        assert grader.counts["slow"] == 2 * unevaluated


# {} is the number: what is said of it makes it another value or none. None of them is in the files of cases.
NOT_THE_NUMBER = [
    "The answer is anything but ${}$.", "The answer is one third of ${}$.", "The answer can't be ${}$.",
    "The answer is the number of primes below ${}$.", "The answer is ${}$ factorial.", "The answer is twice ${}$.",
    "The answer is 2 less than ${}$.", "The answer is no more than ${}$.", "The answer is ${}$, or maybe not.",
    "The answer is log of ${}$", "The answer is ${}$ thousand.", "The answer is 8, attained where $t = {}$.",
    r"\boxed{{}\text{ or so}}", r"\boxed{{}\text{ at most}}", r"\boxed{\text{at least }{}}", r"\boxed{\text{not }{}}",
    r"\boxed{{}\text{ March}}", r"\boxed{{}\text{ quarters}}", r"\boxed{{}\text{ (incorrect)}}", r"\boxed{{}\pi}",
    r"\boxed{1} or possibly \boxed{{}}", r"either \boxed{{}} or \boxed{1}", r"<think>\boxed{{}}</think> Done.",
    "It is now 3:{}.", "so that a_{}", "in step {}", "I might guess {}", "It is not {}", "We take {}-digit numbers",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_THE_NUMBER)
def test_a_number_that_is_not_the_answer_is_not_paid(text):
    assert reward(text.replace("{}", "45"), "45") == 0
