"""The stop automaton against a search in the response's bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.sampling.stops import MATCHED, StopTable

STOP = 0


def first_end(tokens, pieces, strings):
    """Tokens of the response: up to the stop token, or the one in which a string is complete; None: it goes on."""
    text = b""
    for n, token in enumerate(tokens, 1):
        text += pieces[token]
        if token == STOP or any(string.encode() in text for string in strings):
            return n
    return None


few_bytes = st.text("abé", max_size=4)


@given(
    pieces=st.lists(few_bytes, min_size=2, max_size=8).map(lambda texts: [b"", *(t.encode() for t in texts)]),
    strings=st.lists(few_bytes.filter(bool), max_size=3),
    data=st.data(),
)
def test_the_automaton_ends_where_a_search_does(pieces, strings, data):
    tokens = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=20))
    stops = StopTable(len(pieces) + 2, [STOP], strings, pieces)  # two ids more than the tokenizer has
    state, end = 0, None
    for n, token in enumerate(tokens, 1):
        state = stops.table[state, token]
        if state == MATCHED:
            end = n
            break
        assert stops.after(tokens[:n]) == state
    assert end == first_end(tokens, pieces, strings)
    if not strings:
        assert len(stops.table) == 1
    np.testing.assert_array_equal(stops.table[:, -2:], np.arange(len(stops.table))[:, None].repeat(2, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, [4]), r"stop tokens \[4\] lie outside the vocabulary of 4"),
        ((4, [0], [""], [b"a"] * 4), "is empty"),
        ((4, [0], ["a"]), "need the bytes of the tokens"),
        ((4, [0], ["a" * 40_000], [b"a"] * 4), "40000 bytes together"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        StopTable(*arguments)
