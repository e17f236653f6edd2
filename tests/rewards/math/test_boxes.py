"""The answer in a box, whole; several boxes are one answer only if they are joined."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.math import extract_answer, find_boxes, verify


@st.composite
def balanced(draw, depth=2):
    """Text whose braces balance, with escaped braces and commands between them."""
    parts = draw(
        st.lists(
            st.sampled_from(["1", "x", " ", r"\frac", r"\{", r"\}", r"\\", "+", "{}", "é"]),
            max_size=5,
        )
    )
    if depth and draw(st.booleans()):
        parts.append("{" + draw(balanced(depth=depth - 1)) + "}")
    return "".join(parts)


@given(balanced(), balanced(), st.sampled_from(["", " so ", "\n\n", " 12 "]))
def test_the_last_box_is_returned_whole(first, last, between):
    text = rf"We get \boxed{{{first}}}{between}\boxed{{{last}}} as asked"
    expected = last.strip() or first.strip() or None  # an empty box hides none
    assert extract_answer(text) == expected
    assert extract_answer(rf"\boxed{{a \boxed{{{last}}} b}}") == rf"a \boxed{{{last}}} b"
    assert extract_answer(text + r" and \boxed{\frac{1}{2") == expected


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"$x=\boxed{1}$ and $x=\boxed{2}$", "1, 2"),
        (r"\boxed{1}, \boxed{2} \text{ or } \boxed{3}", "1, 2, 3"),
        (r"$\boxed{3}$ or $\boxed{3}$", "3"),
        (r"\boxed{1}. And then \boxed{2}", "2"),
        (r"\boxed{1} and so we get \boxed{2}", "2"),
        (r"\boxed{0}, so \boxed{1} or \boxed{2}", "1, 2"),
        (r"\boxed{\boxed{1}, \boxed{2}}", r"\boxed{1}, \boxed{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{1} \quad \boxed{2}", "1, 2"),
        (r"\boxed{1}\; \text{and}\; y_2 = \boxed{2}", "1, 2"),
        ("1. $\\boxed{1}$\n2. $\\boxed{2}$", "1, 2"),
        (r"\boxed{1}, or it may be \boxed{2}", "1, 2"),
        (r"\boxed{1} vs \boxed{2}", "1, 2"),
        (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{1}, then \boxed{}", "1"),
        (r"\boxed{1}, then \boxed{\ldots}", "1"),
    ],
)
def test_several_boxes_are_one_answer_only_if_joined(text, answer):
    assert extract_answer(text) == answer


def test_alternatives_are_one_answer_of_a_reference_and_several_of_a_response():
    text = r"$\boxed{1\frac12},$ or $\boxed{\frac32}$ inches"
    assert find_boxes(text)[0] == r"\frac32"
    assert find_boxes(text, alternatives=True)[0] == r"1\frac12, \frac32"
    assert find_boxes(r"\boxed{1} and \boxed{2}")[0] == "1, 2"


def test_hedging_between_boxes_is_wrong():
    hedged = r"$\boxed{1}$ or $\boxed{2}$"
    assert not verify(hedged, "2") and not verify(hedged, "1")
    assert verify(hedged, "2, 1") and verify(r"\boxed{1.5} or \boxed{\frac32}", "3/2")
