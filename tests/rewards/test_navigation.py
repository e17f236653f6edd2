"""The judge of paths: right, execution, coverage or format, to the letter, on any text in bounded time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.errors import UserError
from ibtpo.rewards import KINDS, find_extractor, find_statement
from ibtpo.rewards.navigation import VERDICTS, extract_answer, fast_reward, judge, reward
from ibtpo.rewards.pool import Grader

# A 3 x 3 corner: A1 to C3, B2 closed. Ways: RRDD and DDRR.
REFERENCE = "A1 C3 B2"
RIGHT = "R B1\n\nR C1\n\nD C2\n\nD C3\n\n\\boxed{C3}"
CASES = [
    ("right", RIGHT),
    ("right", "D A2\n\nD A3\n\nR B3\n\nR C3\n\n\\boxed{C3}"),
    # legal, but it ends elsewhere
    ("coverage", "\\boxed{A1}"),
    ("coverage", "R B1\n\n\\boxed{B1}"),
    ("coverage", "R B1\n\nR C1\n\nR D1\n\n\\boxed{D1}"),
    ("coverage", "R B1\n\nR C1\n\nD C2\n\nD C3\n\nD C4\n\n\\boxed{C4}"),  # past the goal
    # a move that the rules do not allow
    ("execution", "R B1\n\nD B2\n\nD B3\n\nR C3\n\n\\boxed{C3}"),  # through a blocked place
    ("execution", "".join(f"R {x}1\n\n" for x in "BCDEFG") + "R A1\n\n\\boxed{A1}"),  # off the grid
    # a place that does not follow
    ("execution", "R B2\n\nR C2\n\nD C3\n\n\\boxed{C3}"),
    ("execution", "R C1\n\nD C2\n\nD C3\n\n\\boxed{C3}"),  # two at once
    ("execution", "D B1\n\nR C1\n\nD C2\n\nD C3\n\n\\boxed{C3}"),  # the other move
    ("execution", "R A1\n\n\\boxed{A1}"),
    ("execution", "\\boxed{C3}"),  # the goal without a path
    ("execution", "R B1\n\n\\boxed{C3}"),
    ("execution", RIGHT.replace("{C3}", "{C2}")),
    ("execution", "D C3\n\n\\boxed{C3}"),
    # no path
    ("format", ""),
    ("format", " " + RIGHT),
    ("format", RIGHT + " "),
    ("format", RIGHT + "\n"),
    ("format", RIGHT + RIGHT),
    ("format", RIGHT + "\n\n" + RIGHT),
    ("format", RIGHT.replace("\n\n", "\n")),
    ("format", RIGHT.replace("\n\n", "\n\n\n")),
    ("format", RIGHT.replace("\n\n", "\r\n\r\n")),
    ("format", RIGHT.replace("R B1", "r B1")),
    ("format", RIGHT.replace("R B1", "R  B1")),
    ("format", RIGHT.replace("R B1", "R b1")),
    ("format", RIGHT.replace("R B1", "L B1")),
    ("format", RIGHT.replace("B1", "B\u0661")),  # another script's digit
    ("format", RIGHT.replace("B1", "\uff221")),  # a wide letter
    ("format", RIGHT.replace("R B1", "R H1")),
    ("format", RIGHT.replace("\\boxed{C3}", "C3")),
    ("format", RIGHT.replace("\\boxed{C3}", "\\boxed {C3}")),
    ("format", RIGHT.replace("\\boxed{C3}", "\\boxed{ C3 }")),
    ("format", RIGHT.replace("\\boxed{C3}", "\\boxed{C3, C2}")),
    ("format", RIGHT.replace("\\boxed{C3}", "\\boxed{\\text{C3}}")),
    ("format", RIGHT.replace("\\boxed{C3}", "\\boxed{C3")),
    ("format", "So: " + RIGHT),
    ("format", RIGHT.removesuffix("\\boxed{C3}")),
    ("format", "R B1\n\n" * 30 + "\\boxed{B1}"),  # far more steps than a path can have
]


@pytest.mark.parametrize("verdict, text", CASES)
def test_verdicts(verdict, text):
    assert judge(text, REFERENCE) == verdict
    assert reward(text, REFERENCE) == fast_reward(text, REFERENCE) == float(verdict == "right")


def test_every_verdict_is_named():
    assert {verdict for verdict, _ in CASES} == set(VERDICTS)


@given(st.integers(0, len(RIGHT) - 1), st.characters(codec="utf-8"))
def test_a_right_response_is_right_to_the_letter(place, character):
    changed = RIGHT[:place] + character + RIGHT[place + 1 :]
    assert (judge(changed, REFERENCE) == "right") == (changed == RIGHT)
    assert judge(RIGHT[:place] + RIGHT[place + 1 :], REFERENCE) != "right"
    assert judge(RIGHT[:place] + character + RIGHT[place:], REFERENCE) != "right"


@given(st.text(alphabet="RD ABC123\n\\boxed{}", max_size=80))
def test_any_text_gets_a_verdict(text):
    assert judge(text, REFERENCE) in VERDICTS[1:]
    assert 0 <= find_statement("navigation")(text) <= len(text)


@pytest.mark.parametrize("text", [
    "R B1\n\n" * 3_000_000,
    "\\boxed{" * 2_000_000,
    "{" * 10_000_000,
    "\n" * 10_000_000,
    RIGHT + "\x00" * 10_000_000,
    "\ud800" * 1000,
], ids=["steps", "boxes", "braces", "lines", "zeros", "surrogates"])  # fmt: skip
def test_hostile_texts_are_judged_by_their_length(text):
    """Nothing is matched against them, so that their length takes no time."""
    assert judge(text, REFERENCE) == "format" and extract_answer(text) is None
    assert find_statement("navigation")(text) == max(text.find("\\boxed"), 0 if "\\boxed" in text else len(text))


def test_a_reference_that_is_none_is_said():
    for bad in ("", "C3", "A1 C3 B2 H9", "A1 B1 B1"):
        with pytest.raises(UserError, match="navigation problem"):
            reward(RIGHT, bad)


def test_equal_answers_are_right_or_wrong_together():
    answers = {}
    for verdict, text in CASES:
        answer = extract_answer(text)
        assert (answer is None) == (verdict == "format")
        if answer is not None:
            assert answers.setdefault(answer, verdict) == verdict
    assert extract_answer(RIGHT) == "R B1, R C1, D C2, D C3, C3"
    assert find_extractor("navigation") is extract_answer


def test_an_answer_is_stated_by_its_box():
    assert RIGHT[find_statement("navigation")(RIGHT) :] == "\\boxed{C3}"
    assert find_statement("navigation")("R B1\n\n") == 6


def test_the_pool_grades_it():
    with Grader("navigation", workers=1) as grader:
        found = [grader.submit(text, REFERENCE).result() for _, text in CASES[:8]]
    assert found == [float(verdict == "right") for verdict, _ in CASES[:8]]
    assert "navigation" in KINDS
