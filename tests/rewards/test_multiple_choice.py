"""The letter a response chooses, in the forms that models use."""

import json
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.multiple_choice import before_cut, extract_answer, find_statement, reward
from ibtpo.rewards.pool import Grader

LETTERS = "ABCD"
FOLDER = pathlib.Path(__file__).parent / "cases"
CASES = FOLDER / "multiple_choice.jsonl"
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


@pytest.mark.parametrize("case", map(json.loads, CASES.read_text(encoding="utf-8").splitlines()), ids=str)
def test_labelled_cases(case):
    """Responses that were once graded wrong; where `choice` is given, graders may differ, and it says why we do not."""
    assert reward(case["response"], case["reference"]) == case["reward"]


def test_responses_are_graded_as_labelled():
    """Labelled by hand: letters stated, hedged, denied, asked, in lists, in names, in boxes, tags and thinking."""
    rows = [json.loads(line) for line in (FOLDER / "multiple_choice_by_kind.jsonl").read_text().splitlines()]
    assert len(rows) >= 280
    assert not [row for row in rows if reward(row["response"], row["reference"]) != row["reward"]]


# %s is the letter that is stated, {} another one.
STATEMENTS = [
    "The answer is %s.", "**Answer:** (%s)", "The correct option is %s) 5 m/s.", "I choose %s.",
    "Option %s is right.",
]  # fmt: skip
REMARKS = [
    " Option {} is wrong.",
    "\n\nOption {} is wrong because it ignores friction.",
    "\n\nExplanation: option {} would need more energy.",
    " Choice ({}) can be ruled out.",
    "\n({}) has the wrong sign, and so has the rest.",
    " {} is a common mistake.",
    " Option {} would be correct if there were no friction.",
    " If there were no friction, the answer would be {}.",
    "\nIt cannot be {}.",
    "\n\nWhy not {}? It violates the conservation of energy.",
    "\n\nSome may think that the answer is {}.",
    "\n\nWe do not choose {}.",
]


@pytest.mark.parametrize("remark", REMARKS)
@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_is_said_of_other_options_changes_no_statement(statement, remark):
    for letter in LETTERS:
        for other in LETTERS.replace(letter, ""):
            text = statement % letter + remark.format(other)
            assert extract_answer(text) == letter, text


CONTRASTS = [
    ", not option {}", " rather than choice {}", " instead of {}", " over option {}",
    ", whereas option ({}) is 3 m/s",
]  # fmt: skip


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("statement", ["The answer is %s", "I choose %s", "Answer: (%s)", "So it is %s"])
def test_a_contrast_is_not_the_answer(statement, contrast):
    for letter, other in ("AB", "CA", "BD"):
        assert extract_answer(statement % letter + contrast.format(other) + ".") == letter


LINKS = [
    " or ", " and ", ", ", "; ", "/", " / ", "|", " & ", " ", ". ", ", maybe ", " (or ", "; or perhaps ",
    " then ", " as well as ", ", but also ", ", but it could be ", "+", ") or (", " \\quad ", r" \lor ",
    r" \text{ or } ", ", if not ",
]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [r"\boxed{%s}", "The answer is %s", "The answer is (%s).", "Answer: %s", "%s", "I choose %s.", "So it is %s!"],
)
@pytest.mark.parametrize("link", LINKS)
def test_several_letters_are_no_answer(form, link):
    for letters in ("AC", "CA", "BD"):
        assert extract_answer(form % link.join(letters)) is None
    assert extract_answer(form % "C/C") == "C"


DENIALS = [
    "The answer cannot be %s.", "The answer is not %s.", "The answer isn't %s",
    "I don't think the answer is %s.", "It is not %s.", "We rule out %s", "We can exclude %s.", "Excluding %s",
    "Not %s", "not (%s)", "Never %s", "%s is excluded", "%s is wrong", "%s can be ruled out", "(%s) is wrong",
    "So %s is not the answer", "Anything but %s", "All but %s", "The wrong answer is %s.",
    "The answer is unclear, but %s is excluded", "The answer is other than %s", "Discard %s",
    "I would not choose %s.", r"\boxed{\neg %s}", r"\boxed{\text{not } %s}", r"\boxed{\lnot %s}",
    r"The answer is \boxed{\neg %s}", r"\boxed{\overline{%s}}", r"\boxed{\text{%s is wrong}}",
    "The answer is %s. Wait, %s is wrong.", "Answer: %s\n\nNo, it is not %s.",
]  # fmt: skip
DOUBTS = [
    "The answer is %s?", "Is the answer %s?", "It might be %s.", "It could be %s", "Perhaps %s",
    r"\boxed{%s?}", "Some think the answer is %s.", "The answer is %s if friction is ignored.",
]  # fmt: skip
NAMES = [
    "vitamin %s", "blood type %s", "25 %s", "It reacts with %s", "see figure %s", "the plan %s",
    "The magnetic field is %s", "The answer is vitamin %s", "sample %s dissolves", "a function of %s",
    "from here to %s",
]  # fmt: skip


@pytest.mark.parametrize("form", DENIALS + DOUBTS + NAMES)
def test_a_letter_that_is_denied_doubted_or_a_name_is_no_answer(form):
    for letter in LETTERS:
        assert extract_answer(form.replace("%s", letter)) is None


@pytest.mark.parametrize(
    "text, letter",
    [
        ("A, B, and C are ruled out, so the answer is D.", "D"),
        ("It must be D, because A, B and C are ruled out.", "D"),
        ("Eliminating A, B, and D leaves C.", "C"),
        ("The answer is not A but B.", "B"),
        ("The answer is B. A, C and D are incorrect.", "B"),
        ("The answer is B – A and C violate the law.", "B"),
        ("Answer: D) A and B only", "D"),
        ("D. Both A and B", "D"),
        (r"\boxed{C. 5 A}", "C"),
        ("Answer: C. 25 C", "C"),
        ("The answer is C and D is wrong", "C"),
        ("The answer is, without doubt, C.", "C"),
        ("Answer: ‘C’", "C"),
        ("Answer: [C]", "C"),
        ("Answer: «C»", "C"),
        ("We add.\n<answer>C</answer>", "C"),
        ("Correct option: B. Option A: wrong", "B"),
        ("- A is wrong\n- B is wrong\n- C is right\n- D is wrong", "C"),
        ("Among A, B, C and D, only C works.", "C"),
        ("The answer is A. Actually, it's C.", "C"),
        ("A is false. B is false. C is true. D is false.", None),
        ("Answer → C", "C"),
        ("The answer to this question is C.", "C"),
        ("Thus, C is the correct answer.", "C"),
        ("The answer is C.\nNo, it is D.", "D"),
        ("Some people think the answer is D, but it is C.", "C"),
        ("Both A and C are correct.", None),
        ("The answer is A. C is also correct.", None),
        ("A, B, C, D are all wrong", None),
        ("A) 1 B) 2 C) 3", None),
        ("A Guide\n\n" + "This is how waves move. " * 10, None),
        ("A wave moves", None),
    ],
)
def test_letters_among_letters(text, letter):
    assert extract_answer(text) == letter


@pytest.mark.parametrize(
    "text, letter",
    [
        ("<think>The answer is A.</think>\n\nThe answer is B.", "B"),
        (r"<think>\boxed{A}</think> B", "B"),
        ("The answer is A.</think>", None),
        ("<think>The answer is A.", None),
        ("Answer: C<think>or not", None),
        ("<think>x</think><think>y</think>C", "C"),
    ],
)
def test_thinking_is_no_answer(text, letter):
    assert extract_answer(text) == letter


@given(st.text(alphabet="ABCDabi \n().:*$\\boxed{}answer is option", max_size=80))
def test_any_text_is_read_without_error(text):
    assert extract_answer(text) in {None, *"ABCDEFGHIJ"}


@pytest.mark.parametrize(
    "unit", ["answer is ", "answer\n", "A ", "(A) ", "A or ", "(", r"\boxed{", r"\text{", "*", "option ", "I choose ",
             "A, ", "not ", "answer is C. C is wrong. ", "the answer is A or ", "<think>", "</think>", "'A' ", "if "]
)  # fmt: skip
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
        ("<think>The answer is A. \\boxed{A}</think> **So** the ", "answer is (C)."),
        ("<think>The answer is A. \\boxed{A}", ""),
        ("Option D is wrong. The answer is not A. If so, the answer is B. The ", "answer is C."),
        ("The ", "answer is A or B."),
    ],
)
def test_where_a_text_first_states_its_letter(before, statement):
    found = find_statement(before + statement)
    # "I choose" begins with its "I".
    assert found == len(before) - (2 if statement.startswith("choose") else 0)


@pytest.mark.parametrize(
    "text, letter",
    [
        ("So the answer is C", ""),
        ("So the answer is C.", "C"),
        ("So the answer is C.\n\nNow", "C"),
        ("So the answer is (C)", ""),
        ("So the answer is (C) or", ""),
        ("So the answer is A or C. ", ""),
        ("The answer is C. No, the answer is B", ""),
        ("The answer is C. Let us see: A)", "C"),
        ("The answer is C. But C is wrong", ""),
        (r"So \boxed{C} since", "C"),
        (r"So \boxed{C}. No, \boxed{A", ""),
        (r"So \boxed{C", ""),
        ("Let us see.\n\nA)", ""),
        ("Let us see.\n\nOption A:", ""),
        ("**C**", ""),
        ("c", ""),
        ("<think>The answer is C. ", ""),
        ("", ""),
    ],
)
def test_what_was_stated_before_the_cut(text, letter):
    assert before_cut(text) == (rf"\boxed{{{letter}}}" if letter else "")
    assert extract_answer(before_cut(text)) == (letter or None)
