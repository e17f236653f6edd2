"""Terms of the reward, and the text that composes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards.terms import TERMS, parse_terms


@pytest.mark.parametrize(
    "text, value",
    [
        (r"So \boxed{5}.", 1.0),
        (r"So \boxed{\frac{1}{2}}", 1.0),
        (r"So \fbox {5}", 1.0),
        (r"\boxed{5} or \boxed{6}", 0.0),
        (r"\boxed{\boxed{6}}", 0.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{5", 0.0),
        (r"\boxed{5} and \boxed{", 0.0),
        ("5", 0.0),
        ("", 0.0),
    ],
)
def test_format_is_one_complete_box(text, value):
    assert TERMS["format"](text, 0.5) == value


@given(st.text(max_size=100), st.floats(0, 1))
def test_terms_of_any_text_are_in_range(text, length):
    assert all(0 <= term(text, length) <= 1 for term in TERMS.values())
    assert TERMS["length"](text, length) == length


@given(st.dictionaries(st.sampled_from(sorted(TERMS)), st.floats(allow_nan=False, allow_infinity=False)))
def test_weights_survive_their_text(weights):
    assert parse_terms(" , ".join(f"{name}: {weight!r}" for name, weight in weights.items())) == weights


@pytest.mark.parametrize(
    "text",
    ["format", "format:", "format:x", ":1", "formal:1", "format:1,", "format:1:2", "format:1,format:2", "length:inf"],
)
def test_anything_else_is_refused(text):
    assert parse_terms(text) is None
