"""What tokens say, from a table of bytes made by hand."""

import numpy as np
import pytest

from ibtpo.errors import UserError
from ibtpo.rewards import find_statement
from ibtpo.sampling import Codec

PIECES = [b"", b"a", b" b", b"\n\n", b"\\", b"boxed{", b"3}", "é".encode()[:1], "é".encode()[1:]]
# Three ids more than the tokenizer has.
CODEC = Codec(12, stop_ids=[0], token_bytes=PIECES, find_answer=find_statement("math"))


def test_text_steps_and_answer_of_tokens():
    tokens = np.array([1, 2, 3, 1, 4, 5, 6, 11, 0])
    assert CODEC.text(tokens) == "a b\n\na\\boxed{3}"
    assert CODEC.step_ends(tokens) == [3, 9]
    assert CODEC.answer_start(tokens) == 4
    assert CODEC.answer_start(tokens[:4]) == 4  # none: behind the last
    assert CODEC.text([7, 8]) == "é" and CODEC.text([7]) == "\ufffd"


def test_a_separator_and_a_rule_of_ones_own():
    codec = Codec(12, token_bytes=PIECES, separator=b"b", find_answer=lambda text: text.find("3"))
    assert codec.step_ends(np.array([1, 2, 1, 6])) == [2, 4]
    assert codec.answer_start([1, 2, 6, 6]) == 2
    assert codec.answer_start([1, 2, 6, 6], len) == 4  # a question's rule comes first


def test_the_answer_is_found_behind_bytes_that_are_no_text():
    broken = [8, 7, 1, 7, 8, 4, 5, 6]  # half a letter, another half, and a whole one before the box
    assert CODEC.answer_start(broken) == 5


def test_without_bytes_a_response_is_one_step_unless_a_function_cuts_it():
    tokens = np.array([1, 3, 1])
    assert Codec(12).step_ends(tokens) == [3]
    assert Codec(12).answer_start(tokens) == 3 and Codec(12).text(tokens) == ""
    assert Codec(12, token_bytes=PIECES, cut_steps=lambda tokens: [1, len(tokens)]).step_ends(tokens) == [1, 3]


def test_stops_are_made_once_and_checked():
    codec = Codec(12, stop_ids=[0], stop_strings=["ab"], token_bytes=PIECES)
    assert codec.stops is codec.stops
    assert len(codec.stops.table) == 2 and len(CODEC.stops.table) == 1
    with pytest.raises(UserError, match=r"stop tokens \[12\] lie outside the vocabulary of 12"):
        assert Codec(12, stop_ids=[12]).stops


def test_a_stop_string_that_ended_a_response_is_no_part_of_its_answer():
    codec = Codec(12, stop_ids=[0], stop_strings=["a b", "{"], token_bytes=PIECES)
    for tokens, text in (
        ([3, 1, 2], "\n\n"),
        ([1, 1, 2], "a"),
        ([1, 4, 5], "a\\boxed"),
        ([1, 3, 0], "a\n\n"),  # a token ended it
        ([1, 3], "a\n\n"),  # cut off
        ([], ""),
    ):
        assert codec.answer_text(tokens) == text
        assert codec.stops.ends(tokens) == (tokens[-1:] in ([2], [5], [0]))
    assert codec.text([1, 2]) == "a b"  # what was generated
    assert Codec(12).answer_text([1]) == ""
