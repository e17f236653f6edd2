"""The letter a response chooses, in the forms that models use."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.multiple_choice import extract_answer, find_statement, reward
from ibtpo.rewards.pool import Grader

LETTERS = "ABCD"
# %s is the letter.
FORMS = [
    r"\boxed{%s}",
    r"\boxed{\text{%s}}",
    r"\boxed{\text{(%s)}}",
    r"\boxed{(%s)}",
    r"$\boxed{\mathbf{%s}}$",
    r"\boxed{%s. 5 m/s}",
    r"\boxed{(%s) 5 m/s}",
    r"\boxed{\text{%s: the first of them}}",
    r"\boxed{5}. The answer is %s.",
    "The answer is %s",
    "The answer is (%s).",
    "The answer is **%s**.",
    "The answer is **(%s)**, as shown.",
    "The answer is %s because heat flows.",
    "The answer is option %s.",
    "The correct answer is: %s) 5 m/s",
    "The correct option is %s.",
    "The best choice would be (%s) by far.",
    "Answer: %s",
    "Answer: (%s) 5 m/s",
    "ANSWER: $%s$",
    "**Answer: %s**",
    "**Answer:** %s",
    "**Final Answer**: **%s**",
    "### Answer\n%s",
    "### Final answer:\n\n**(%s)**",
    r"Final answer: \(\text{%s}\)",
    '{"answer": "%s"}',
    "I would choose %s.",
    "I choose option (%s).",
    "%s",
    "(%s)",
    "%s.",
    "**%s**",
    "**%s) 5 m/s**",
    "%s. 5 m/s",
    "Hence only (%s) remains.",
    "Therefore it must be %s.",
    "So, of all options, it is **%s**!",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_letter_is_found_and_every_other_rejected(form):
    for letter in LETTERS:
        others = [x for x in LETTERS if x != letter]
        for before in ("", f"({others[0]}) is tempting. The answer is not ({others[1]}).\n\nA wave decays.\n\n"):
            text = before + form % letter
            assert extract_answer(text) == letter, text
            assert reward(text, letter) == reward(text, f"({letter})") == 1.0
            assert all(reward(text, other) == 0.0 for other in others)


@pytest.mark.parametrize(
    "text, letter",
    [
        (r"\boxed{A} no, wait: \boxed{B}", "B"),
        (r"\boxed{B} so the answer is C", "B"),
        ("The answer is (A). Checking again, the answer is (D).", "D"),
        ("the answer is c", "C"),
        ("the answer is (b) as shown", "B"),
        ("Answer: d.", "D"),
        ("The answer is C, not D.", "C"),
        ("The answer is A", "A"),
        ("The answer is A since it is largest", "A"),
        (r"The answer is C. \boxed{", "C"),
        # No letter, or none alone:
        ("", None),
        ("The answer is 5 m/s", None),
        ("The answer is a molecule of water", None),
        ("The answer is A molecule of water", None),
        ("The answer is (A) or (B).", None),
        ("The answer is A and B", None),
        ("The answer is A, B", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{A} or \boxed{B}", None),
        (r"\boxed{A/B}", None),
        (r"\boxed{c + 1}", None),
        (r"\boxed{ABCD}", None),
        ("Either B or C", None),
        ("The answer is not (B)", None),
        ("(A) 1\n(B) 2\n(C) 3\n(D) 4", None),
        ("A. 1\nB. 2\nC. 3\nD. 4\n", None),
        ("It's a long story", None),
        ("I'd say nothing", None),
        ("We need A's value", None),
    ],
)
def test_extraction(text, letter):
    assert extract_answer(text) == letter


@given(st.text(alphabet="ABCDabi \n().:*$\\boxed{}answer is option", max_size=80))
def test_any_text_is_read_without_error(text):
    assert extract_answer(text) in {None, *"ABCDEFGHIJ"}


@pytest.mark.parametrize(
    "unit", ["answer is ", "answer\n", "A ", "(A) ", "A or ", "(", r"\boxed{", r"\text{", "*", "option ", "I choose "]
)
def test_hostile_repetitions_take_bounded_time(unit):
    start = time.process_time()
    extract_answer(unit * (100_000 // len(unit)))
    extract_answer(rf"\boxed{{{unit * (8000 // len(unit))}}}")
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("reference", ["", "5", "AB", "K", "c"])
def test_a_reference_that_is_no_letter_is_an_error(reference):
    with pytest.raises(ValueError, match="expected one letter from A to J"):
        reward("C", reference)


def test_the_grader_decides_without_a_worker():
    with Grader("multiple_choice") as grader:
        assert grader.grade([("Answer: C", "C"), ("Answer: C", "B"), ("no idea", "B")]) == [1.0, 0.0, 0.0]
        assert grader.counts["fast"] == 3


@pytest.mark.parametrize(
    "before, statement",
    [
        ("Heat flows to the cold side.\n\nThe ", "answer is (C)."),
        ("We **think** that the \\text{right} ", "option is **C**, as shown."),
        ("A) 5 m/s is too slow and B) too fast. So I ", "choose C."),
        ("Hence ", r"\boxed{C}"),
        ("Both A and B are too fast, so C remains", ""),
        ("", ""),
    ],
)
def test_where_a_text_first_states_its_letter(before, statement):
    found = find_statement(before + statement)
    # "I choose" begins with its "I".
    assert found == len(before) - (2 if statement.startswith("choose") else 0)
