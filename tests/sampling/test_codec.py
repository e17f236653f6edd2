"""What tokens say, from a table of bytes made by hand."""

import numpy as np
import pytest

from ibtpo.errors import UserError
from ibtpo.rewards import find_statement
from ibtpo.sampling import Codec
from ibtpo.sampling.codec import MOST_MOVED, move_ends

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


def test_moved_ends_are_a_share_of_them_later_and_the_last_one_stays():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, 20_000)
    ends = [*range(10, 20_000, 10), 20_000]
    assert move_ends(tokens, ends, 0.0) == ends and move_ends(tokens[:0], [], 0.5) == []
    moved = move_ends(tokens, ends, 0.3)
    late = [end % 10 for end in moved if end % 10]
    assert len(moved) == len(ends) and moved[-1] == 20_000
    assert abs(len(late) / len(ends) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(ends))
    assert [late.count(n) / len(late) for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert all(end % 10 for end in move_ends(tokens, ends, 1.0)[:-1])
    assert set(late) == {1, 2, MOST_MOVED}


def test_moved_ends_are_the_same_for_whoever_shares_them():
    """A response and its beginning, and a branch, are cut alike in what they share; steps that meet are one."""
    rng = np.random.default_rng(1)
    codec = Codec(12, stop_ids=[0], token_bytes=PIECES, moved_steps=0.5)
    for _ in range(50):
        tokens = rng.choice([1, 2, 3], 60)
        branch = np.concatenate([tokens[:40], rng.choice([1, 2, 3], 30)])
        ends, others = (set(codec.step_ends(t)) for t in (tokens, branch))
        assert {e for e in ends if e <= 40} == {e for e in others if e <= 40}
        assert max(ends) == 60 and list(codec.step_ends(tokens)) == sorted(ends)


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
