"""The judge of countdown: right, execution, coverage or format, on any text in bounded time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards import KINDS, find_extractor, find_statement
from ibtpo.rewards.countdown import VERDICTS, extract_answer, fast_reward, judge, reward
from ibtpo.rewards.pool import Grader

REFERENCE = "22 2 3 5 7"
RIGHT = "7-2=5: 3 5 5\n\n5*5=25: 3 25\n\n25-3=22: 22\n\n\\boxed{22}"
CASES = [
    ("right", RIGHT),
    ("right", RIGHT.replace("3 25", "25 3")),  # a list in another order is the same
    ("right", "2+7=9: 3 5 9\n\n3*9=27: 5 27\n\n27-5=22: 22\n\n\\boxed{22}"),  # either order
    # legal, but something else is left
    ("coverage", "7-2=5: 3 5 5\n\n5*5=25: 3 25\n\n25+3=28: 28\n\n\\boxed{28}"),
    ("coverage", "7*3=21: 2 5 21\n\n5-2=3: 3 21\n\n21+3=24: 24\n\n\\boxed{24}"),
    ("coverage", "7-2=5: 3 5 5\n\n5*5=25: 3 25\n\n\\boxed{25}"),  # not all are used
    ("coverage", "\\boxed{7}"),
    ("coverage", "5+3=8: 2 7 8\n\n7*2=14: 8 14\n\n14-8=6: 6\n\n\\boxed{6}"),
    # a number that is not there
    ("execution", "7-1=6: 2 3 5 6\n\n\\boxed{6}"),
    ("execution", "7-2=5: 3 5 5\n\n5*7=35: 3 35\n\n35-3=32: 32\n\n\\boxed{32}"),  # used twice
    ("execution", "2+2=4: 3 4 5 7\n\n\\boxed{4}"),
    ("execution", "22*1=22: 22\n\n\\boxed{22}"),
    ("execution", "\\boxed{22}"),  # the target without a step
    # a wrong result, or one below zero
    ("execution", RIGHT.replace("25-3=22", "25-3=21")),
    ("execution", "7-2=6: 3 5 6\n\n6*5=30: 3 30\n\n30-3=27: 27\n\n\\boxed{27}"),
    ("execution", "2-7=5: 3 5 5\n\n5*5=25: 3 25\n\n25-3=22: 22\n\n\\boxed{22}"),
    # a wrong list
    ("execution", RIGHT.replace("3 5 5", "3 5")),
    ("execution", RIGHT.replace("3 5 5", "3 3 5 5")),
    ("execution", RIGHT.replace("3 5 5", "2 3 5 5")),
    ("execution", RIGHT.replace("=22: 22", "=22: 22 22")),
    # a box of something else
    ("execution", RIGHT.replace("\\boxed{22}", "\\boxed{25}")),
    ("execution", "7-2=5: 3 5 5\n\n\\boxed{22}"),
    # no solution
    ("format", ""),
    ("format", " " + RIGHT),
    ("format", RIGHT + "\n"),
    ("format", RIGHT + RIGHT),
    ("format", RIGHT + " or 21"),
    ("format", RIGHT.replace("\n\n", "\n")),
    ("format", RIGHT.replace("\n\n", "\n\n\n")),
    ("format", RIGHT.replace("7-2", "7 - 2")),
    ("format", RIGHT.replace("7-2", "07-2")),
    ("format", RIGHT.replace("7-2=5:", "7-2=5")),
    ("format", RIGHT.replace("7-2", "7/2")),
    ("format", RIGHT.replace("7-2=5", "-7+12=5")),
    ("format", RIGHT.replace("25-3", "2\u0665-3")),  # another script's digit
    ("format", RIGHT.replace("\\boxed{22}", "22")),
    ("format", RIGHT.replace("{22}", "{22, 23}")),
    ("format", RIGHT.replace("{22}", "{022}")),
    ("format", RIGHT.replace("{22}", "{22")),
    ("format", "So: " + RIGHT),
    ("format", RIGHT.removesuffix("\\boxed{22}")),
    ("format", "7-2=5: 3 5 5\n\n" * 30 + "\\boxed{5}"),  # far more steps than a solution can have
    ("format", "1+1=2: 2" * 1000),
    ("format", "9" * 100 + "+1=2: 2\n\n\\boxed{2}"),
]


@pytest.mark.parametrize("verdict, text", CASES)
def test_verdicts(verdict, text):
    assert judge(text, REFERENCE) == verdict
    assert reward(text, REFERENCE) == fast_reward(text, REFERENCE) == float(verdict == "right")


def test_every_verdict_is_named():
    assert {verdict for verdict, _ in CASES} == set(VERDICTS)


@given(st.integers(0, len(RIGHT) - 1), st.characters(codec="utf-8"))
def test_a_changed_character_makes_it_wrong(place, character):
    for changed in (
        RIGHT[:place] + character + RIGHT[place + 1 :],
        RIGHT[:place] + RIGHT[place + 1 :],
        RIGHT[:place] + character + RIGHT[place:],
    ):
        assert (judge(changed, REFERENCE) == "right") == (changed == RIGHT)


@given(st.text(alphabet="0123567+-*=: \n\\boxed{}", max_size=80))
def test_any_text_gets_a_verdict(text):
    assert judge(text, REFERENCE) in VERDICTS[1:]
    assert 0 <= find_statement("countdown")(text) <= len(text)


@pytest.mark.parametrize("text", [
    "7-2=5: 3 5 5\n\n" * 1_000_000,
    "\\boxed{" * 2_000_000,
    "1 " * 10_000_000,
    "\n" * 10_000_000,
    RIGHT + "\x00" * 10_000_000,
    "\ud800" * 1000,
], ids=["steps", "boxes", "numbers", "lines", "zeros", "surrogates"])  # fmt: skip
def test_hostile_texts_are_judged_by_their_length(text):
    assert judge(text, REFERENCE) == "format" and extract_answer(text) is None
    assert find_statement("countdown")(text) == max(text.find("\\boxed"), 0 if "\\boxed" in text else len(text))


def test_equal_answers_are_right_or_wrong_together():
    answers = {}
    for verdict, text in CASES:
        answer = extract_answer(text)
        assert (answer is None) == (verdict == "format")
        if answer is not None:
            assert answers.setdefault(answer, verdict) == verdict
    assert extract_answer(RIGHT) == "7-2=5: 3 5 5, 5*5=25: 3 25, 25-3=22: 22, 22"
    assert find_extractor("countdown") is extract_answer


def test_the_pool_grades_it():
    with Grader("countdown", workers=1) as grader:
        found = [grader.submit(text, REFERENCE).result() for _, text in CASES[:8]]
    assert found == [float(verdict == "right") for verdict, _ in CASES[:8]]
    assert "countdown" in KINDS
