"""Extraction: the answer of every usual statement, and nothing else of it."""

import pytest

from ibtpo.rewards.math import TAIL_CHARACTERS, extract_answer, find_statement, verify


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{5} then 7", "5"),
        (r"the answer is 9, no: \boxed{5", "9, no"),
        (r"\boxed{18", None),
        (r"x \\\boxed{18}", "18"),
        (r"7 \\boxed{18}", "18"),
        (r"7 \\boxed{x} \boxed{3}", "3"),
        (r"I get 4. \boxed{18", "4"),
        (r"\fbox{6}", "6"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        ("work <<2+2=4>>\n#### 1,234", "1,234"),
        ("#### 3\n#### 4 ", "4"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is: $\\frac{1}{2}$.", r"\frac{1}{2}"),
        ("**The answer is 12** hours. Done.", "12 hours"),
        ("Final Answer: 2**3", "2**3"),
        ("the answer is the point $(1, 2)$, as shown", "(1, 2)"),
        ("so x = 5-3", "5-3"),
        ("so it takes 1,000.25 m", "1,000.25"),
        ("so x = -3 or 1,000.25 m", "x = -3 or 1,000.25"),
        ("it is -3", "-3"),
        ("about 3/4 of it", "3/4"),
        ("no idea", None),
        ("", None),
        (r"\boxed{}", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


# {} is the answer: each must extract it, for numbers, formulas and words alike.
STATEMENTS = [
    "The answer is:\n\n{}", "The answer is:\n\n$${}$$", "The final answer is:\n$$\n{}\n$$", "**Answer:**\n\n{}",
    "The answer is:\n\\[\n{}\n\\]\nThis holds for n = 3.", "The answer is\n\\[ {} \\]\n", "The answer is: $$\n{}\n$$",
    "Answer:\n${}$\nI hope it is correct.", "The answer is:\n```\n{}\n```", "The answer is:\n\n**{}**\n\nCheck: 6*7.",
    "The answer is \\[{}\\]", "The answer is {}, because 3*6=18.", "So the answer is {} (since 3*6).",
    "The answer is ${}$, since $x=1$.", "The answer is {} because of it", "The answer is `{}`.", "The answer is `{}.`",
    "The answer is {},", "The answer is {};", "The answer is {}:", "Final Answer: The final answer is {}. I hope so.",
    "Answer: Therefore, the answer is {}.", "It is 3*6, so the answer is {}.",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize("answer", ["42", "-7", "−7", "1,234.5", r"\frac{1}{2}", "(1, 2)", "x^2+1", "Friday"])
def test_an_answer_is_found_in_every_statement(statement, answer):
    assert extract_answer("We have 3 + 4 = 7.\n\n" + statement.replace("{}", answer)) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The answer is therefore 18.", "18"),
        ("The answer is therefore equal to −18.", "−18"),
        ("The answer is 18, so Janet makes that.", "18"),
        ("The answer is 18. This answer is correct.", "18"),
        ("Answer: Janet makes 18 dollars every day.", "18 dollars"),
        ("Answer: Janet's profit is $1,800 in a year.", "1,800"),
        ("Answer: therefore 18 km, as required.", "18 km"),
        ("The answer is 18 km.", "18 km"),
        ("The answer is therefore 18%.", "18"),
        ("The answer is 3*6, so the answer is 18.", "18"),
        ("The answer is 5. Wait, the answer is 6.", "6"),
        ("I get −3", "−3"),
        ("The result is −3.", "−3"),
        ("Answer:\n16 - 3 - 4 = 9 eggs\n9*2 = 18", "18"),  # reasoning: the last number
        ("Answer:\nJanet sells 9 eggs for 18 dollars.", "18"),
        ("Answer:\n$$3x=6$$\n$$x=2$$", "2"),
        ("Answer: So they pay 6 + 5 + 21 = $32 a day.", "$32 a day"),
        ("The answer is $8 + $3 = $11", "$11"),
        ("The answer is 3x + 2 = 8.", "3x + 2 = 8"),
        ("The answer is not 3 + 2 = 5.", "not 3 + 2 = 5"),
        ("Each gets 25 * 2 = <<25*2=50>>50 shells", "50"),
        ("She gets 16 because 4 x 4 = 16", "16"),
        ("Red:27(1/3)=9 birds", "9"),
        ("so 2x = 6", "2x = 6"),
        ("It is 42. The answer is:", "42"),
        ("It is 42. The answer is: **", "42"),
    ],
)
def test_the_number_of_a_sentence(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "sentence",
    [
        "Friday", "Janet", "x = 5", "March 5", "5 May", "Room 12", "day 3", "10:30", "3:2", "n!", "(n-1)!", "5! + 3",
        "5! Or 6", "5 and not 6", "3 or 4", "5 or maybe 6", "either 5 or 6", "not 5", "not 5, but 6", "5, 6",
        "5 or more", "9, no",
        "5, because it is even, or maybe 6", "5 (since 6 is too large, or maybe not)", "2x = 6, so x = 3", "about 18",
        "greater than 5", "half of 18", "a multiple of 5", "obtained by adding 5", "in step 3", "2 xy",
        "therefore 2x", "18, but it could be 19", 
    ],
)  # fmt: skip
def test_other_sentences_are_the_answer_as_they_stand(sentence):
    for head in ("The answer is ", "The answer is:\n\n"):
        assert extract_answer(f"We add 3.\n{head}{sentence}.") == sentence


HEDGES = [
    "{a} or {b}", "{a} and not {b}", "{a} or maybe {b}", "{a}; maybe {b}", "{a} (or {b})", "not {a}, but {b}",
    "{a}, {b}", "{a} and {b}", "{a}, since it is not {b}, or {b}", "{a} (since {b} is large, or maybe {b})",
    "{a}! Or {b}", "`{a}` or `{b}`", "${a}$ or ${b}$", "$${a}$$ or $${b}$$", "{a}-{b}",
]  # fmt: skip


@pytest.mark.parametrize("hedge", HEDGES)
def test_no_statement_makes_one_of_two_answers_right(hedge):
    for head in ("The answer is ", "The answer is: ", "The answer is:\n\n", "Answer: ", "Final Answer: The answer is "):
        text = f"We add 2.\n{head}{hedge.format(a=5, b=8)}."
        assert not verify(text, "5") and not verify(text, "8"), text


def test_only_the_tail_is_read():
    assert extract_answer(r"\boxed{1}" + " " * TAIL_CHARACTERS) is None
    assert extract_answer(r"\boxed{1}" + " " * (TAIL_CHARACTERS - 9)) == "1"


@pytest.mark.parametrize(
    "before, statement",
    [
        ("12+3=15\n\nThe ", "answer is \\boxed{15}."),
        ("So ", r"\boxed{5} and more, the answer is 6"),
        ("So ", r"\boxed{5"),
        ("8 - 3 = 5\n", "#### 5"),
        ("Thus the ", "answer is 5. Wait, the answer is 6."),
        ("", "Answer: $x$"),
        ("So the ", "answer is:\n\n$$5$$"),
        ("The answer is not clear yet. We add 4.\n\nThe ", "answer is 9."),
        ("Who was it? The ", "answer is Paris"),
        ("Answer:\nJanet sells 9 eggs for 18 dollars.\nThe ", "answer is 18."),  # reasoning behind "Answer:"
        ("We add 4 and 5 and have 9.", ""),
        ("It is the answer that matters; 7 in all.", ""),
        ("", ""),
        # Nothing that is thought is stated.
        ("<think>The answer is 3.</think>So the ", "answer is 5."),
        (r"<think>\boxed{3}</think>We see that ", ""),
        (r"<think>The answer is 3, \boxed{3}", ""),
        # Broken off where a statement may have begun.
        ("So the ", "answer"),
        ("So the ", "answer is"),
        ("So the ", "ans"),
        ("Hence ", r"\box"),
        ("8 - 3 = 5\n", "##"),
    ],
)
def test_where_a_text_first_states_its_answer(before, statement):
    assert find_statement(before + statement) == len(before)


@pytest.mark.parametrize("text", STATEMENTS)
def test_every_statement_that_is_graded_is_found(text):
    """Whatever the grader takes, but a mere last number, is behind the place that is found, and no later than it."""
    text = "We have 3 apples.\n\n" + text.replace("{}", "17")
    assert extract_answer(text) == "17"
    assert find_statement(text) <= text.index("17")
