"""Responses that break off: nothing of them is an answer but what was stated before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.math import TAIL_CHARACTERS, before_cut, extract_answer, verify

BEFORE = "She has 16 - 12 = 4.\n\n"
# The last number of each counts a part or belongs to something that does not end.
UNFINISHED = [
    "Step 2:", "Step 2", "Step 2.", "**Step 2**:", "**Step 2:**", "Step **2**", "### Step 2", "Step #2:", "Step No. 2:",
    "Step 2: Find the cost", "Stage 2:", "Phase 2", "Part (2)", "Case 2.", "Round 2:", "Month 2:", "Q2:", "2nd step:",
    "2.", "2)", "(2)", "**2.**", "2. Find the cost", "2. **Find the cost**", "- 2)", "#### 2.", "## 2.", "3 * 2 =",
    "3 + 2 +", "2 -", "2 \\times", "$2 \\cdot", "so $x = \\frac{2", "so $x = \\frac{1}{2", "\\[ x = 2", "\\( x = 2",
    "$$x = 2", "so $x = 2", "the cost of 2 apples is", "the 2 apples cost", "So she buys 2 and", "Now, for the 2",
    "So 2,", "We subtract 2:", "2 < ", "2 dollars for the", "(so there are 2", "which is 2 times", "So 2 is the",
]  # fmt: skip


@pytest.mark.parametrize("end", UNFINISHED)
@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_the_last_number_of_a_text_that_breaks_off_is_no_answer(end, blank):
    text = BEFORE + end + blank
    assert not verify(text, "2") and not verify(text, "1/2"), extract_answer(text)
    assert before_cut(text) == ""


FINISHED = [
    ("So there are 2", "2"), ("So there are 2.", "2"), ("**2**", "2"), ("so **2** apples", "2"), ("It is 2!", "2!"),
    ("x = 2", "2"), ("She pays $2.", "$2"), ("She pays $2", "$2"), ("$2$", "2"), ("$$x = 2$$", "2"),
    ("\\[x = 2\\]", "2"),
    ("she has 3 - 1 = 2 apples left (not 4 pears)", None), ("We get\n2.", "2"), ("16 - 12 = 2\n\n2.", "2"),
    ("Step 2: 4 - 2 = 2", "2"), ("Step 2: So we get 2 in all.", "2"), ("2. So we get 3", "3"), ("Total: 2", "2"),
    ("Solution: 2", "2"), ("So 2.\n\nProblem:", "2"), ("So 2.\n\n**Question 3:**", "2"), ("- 2", "2"),
    ("It is 2. The answer is:", "2"), ("It is 2, and that is what we were looking for.", "2"),
]  # fmt: skip


@pytest.mark.parametrize("end, answer", FINISHED)
def test_the_last_number_of_a_text_that_ends_is_its_answer(end, answer):
    found = extract_answer(BEFORE + end)
    if answer is not None:
        assert found is not None and found.removeprefix("x = ").removeprefix("- ") == answer
    assert before_cut(BEFORE + end) == ""  # but the length limit may have cut off the rest of it


def test_an_item_is_one_where_others_come_before():
    assert extract_answer("1. We get 4.\n2.") is None
    assert extract_answer("1. We get 4.\n2. So it is nine") is None
    assert extract_answer("#### 1. Apples\nWe have 4.\n#### 2.") is None
    assert extract_answer("We get 2 * 9 = 18.\n#### 18.") == "18."


@pytest.mark.parametrize(
    "text, stated",
    [
        (r"So \boxed{18} and then", "18"),
        (r"So \boxed{18}", "18"),
        (r"\boxed{18}. Let me check: \boxed{", "18"),
        (r"\boxed{18}. Let me check: \boxed{18", "18"),
        (r"\boxed{18}. No, it is \boxed{2", ""),
        (r"So \boxed{18", ""),
        (r"\boxed{\frac{1}{2}} is", r"\frac{1}{2}"),
        (r"$x=\boxed{1}$ and $x=\boxed{2}$ are", "1, 2"),
        ("So the answer is 18", ""),
        ("So the answer is 18.", ""),  # ... 5
        ("So the answer is 18. ", "18"),
        ("So the answer is 18.\n\nCheck: 3", "18"),
        ("So the answer is 18\n", "18"),
        ("So the answer is 18 apples.", "18 apples"),
        ("So the answer is $18$.", "18"),
        ("So the answer is **18**.", "18"),
        ("So the answer is $\\frac{1}{2}$", ""),
        ("So the answer is 18 or maybe", ""),
        ("The answer is 18. So the answer is", "18"),
        ("The answer is 18. So the answer is 18", "18"),
        ("The answer is 18. No, the answer is 2", ""),
        ("The answer is 18. No, the answer is 17.\nThus", "17"),
        ("The answer is:\n\n18", ""),
        ("The answer is:\n\n18\n", "18"),
        ("Answer:\n16 - 3 = 13 apples\n", ""),  # reasoning may begin there
        ("8 * 2 = 18\n#### 18", ""),
        ("8 * 2 = 18\n#### 18\n", "18"),
        ("#### 18\n#### 1", "18"),
        ("#### 18\n#### 2", ""),
        ("#### Step 2\nWe have", ""),
        ("<answer>18</answer>", "18"),
        ("<answer>18", ""),
        ("<answer>18\n", ""),
        ("<answer>18</answer> no, <answer>19", ""),
        ("<think>The answer is 18. ", ""),
        ("<think>The answer is 18. </think> We have 7. ", ""),
        ("We have 7. ", ""),
        ("I don't think the answer is 18. ", ""),
        ("", ""),
        (r"\boxed{18}" + " " * TAIL_CHARACTERS, ""),
    ],
)
def test_what_was_stated_before_the_cut(text, stated):
    found = before_cut(text)
    assert found == (rf"\boxed{{{stated}}}" if stated else "")
    assert extract_answer(found) == (stated or None)
    assert before_cut(found) == found


PIECES = [
    "The answer is ", "Answer:", "\\boxed{", "}", "#### ", "<answer>", "</answer>", "<think>", "</think>", "18", "1",
    ".", ". ", "\n", " or ", "$", "\\frac{1}{2}", "Step 2:", "2. ", "**", "= ", "(", "not ", "é", "\\",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60))
def test_of_any_text_nothing_more_is_stated_than_what_stays_when_it_goes_on(text):
    stated = before_cut(text)
    assert before_cut(stated) == stated and (extract_answer(stated) is not None) == bool(stated)
    assert extract_answer(text) is None or isinstance(extract_answer(text), str)


@pytest.mark.parametrize("unit", ["\n", "\\", "#", "* ", "2. ", "Step 2: ", "the answer is ", "$", "(", "\n2.", "{"])
def test_long_texts_take_no_longer(unit):
    """Both run in the training process; a fault of this kind would take minutes."""
    text = unit * (20_000 // len(unit)) + "2. "
    before_cut(text)
    extract_answer(text)
