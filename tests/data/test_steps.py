"""Where reasoning steps end: behind separators, by the definition; behind sentences, by examples."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.data.steps import sentence_spans, step_ends
from ibtpo.errors import UserError
from ibtpo.sampling.codec import Codec

SEPARATOR = b"\n\n"


def assert_prefix_stays(prefix, more, table, separator):
    """Every end but the last is decided by the tokens seen so far."""
    inner = step_ends(prefix, table, separator)[:-1]
    assert step_ends(prefix + more, table, separator)[: len(inner)] == inner


_TABLE = [
    b"",
    b"a",
    b"b",
    b"\n",
    b" ",
    b"\n\n",
    b"a\n\n",
    b"\n\nb",
    b"\n\n\n",
    b"\nb\n",
    b"ab",
    b"a\n\nb\n\na",
    b"\xe2",
]
_STOP = 0


def _definition(tokens, separator):
    """Step ends read off the definition, byte by byte: for each token, does a separator end in it
    that has content of the current step before it?"""
    text = b"".join(_TABLE[token] for token in tokens)
    owner = [index for index, token in enumerate(tokens) for _ in _TABLE[token]]
    occurrences = [match.span() for match in re.finditer(re.escape(separator), text)]
    covered = {byte for begin, end in occurrences for byte in range(begin, end)}
    content = [byte for byte in range(len(text)) if byte not in covered and not text[byte : byte + 1].isspace()]
    ends = [0]
    for index in range(len(tokens)):
        for begin, end in occurrences:
            if owner[end - 1] == index and ends[-1] <= index:
                if any(owner[byte] >= ends[-1] and byte < begin for byte in content):
                    ends.append(index + 1)
    ends = ends[1:]
    tail = ends[-1] if ends else 0
    blank = not any(owner[byte] >= tail for byte in content) and _STOP not in tokens[tail:]
    if blank and ends:
        ends.pop()
    return sorted({*ends, len(tokens)}) if tokens else []


@given(st.lists(st.integers(0, len(_TABLE) - 1), max_size=14), st.sampled_from([b"\n\n", b"\n", b"a", b"\nb", b"ab"]))
def test_steps_of_arbitrary_tokens_follow_the_definition(tokens, separator):
    ends = step_ends(tokens, _TABLE, separator, stop_ids=(_STOP,))
    assert ends == _definition(tokens, separator)
    assert ends == step_ends(np.asarray(tokens, np.int32), _TABLE, separator, stop_ids={_STOP})
    assert ends == sorted(set(ends)) and (ends[-1:] == [len(tokens)] or not tokens)


@given(
    st.lists(st.integers(1, len(_TABLE) - 1), min_size=1, max_size=14),
    st.lists(st.integers(1, len(_TABLE) - 1), max_size=6),
)
def test_steps_of_a_prefix_stay_when_more_follows(prefix, more):
    assert_prefix_stays(prefix, more, _TABLE, SEPARATOR)


def test_step_examples():
    a, nn, stop = 1, 5, _STOP
    for tokens, expected in [
        ([], []),
        ([a, nn, a], [2, 3]),
        ([a, nn, stop], [2, 3]),  # end of text alone after a separator
        ([a, nn, a, stop], [2, 4]),
        ([a, nn, nn, a], [2, 4]),  # a second separator opens the next step
        ([nn, a], [2]),
        ([a, nn], [2]),
        ([a, nn, nn], [3]),  # nothing but blanks at the end
        ([nn], [1]),
        ([7, a], [2]),  # text after the separator within a token: no content before it
        ([a, 7, a], [2, 3]),
        ([11, a], [1, 2]),  # two separators in one token
        ([a, nn, 99], [3]),  # an id beyond the table has no bytes
    ]:
        assert step_ends(tokens, _TABLE, SEPARATOR, stop_ids=[stop]) == expected, tokens
    with pytest.raises(UserError, match=r"data.separator"):
        step_ends([a], _TABLE, b"")


# ------------------------------------------------------------------------------------- sentences

# Sentences as they are cut, each with what belongs to it.
SENTENCES = [
    ["She has 3 pens."],
    ["She has 3 pens.", " Tom has 4.", " Together they have 7."],
    ["So 3.5 + 1.25 = 4.75.", " It costs $4.75."],
    ["Is it 5?", " Yes!", " It is 5."],
    ["First line\n", "Second line.\n", "\nThird...", " and on."],  # the second break opens the next step
    ["1. Add 3 and 4.\n", "2. Take 1 away.\n", "The answer is 6."],
    ["a. One.", " Two.\n", "- 3. Three.\n", "  iv. Four."],
    ["Dr. Smith has 3, i.e. a few, or approx. 3.", " Mrs. Lee has e.g. 4 p.m. as hers."],
    ["Let x be 3.", " Then y is x.", " So y = 3."],  # a letter alone ends one in mathematics
    ['He said "It is 5."', " (It was 6.)", " **Done.**", " Well"],
    ["\\boxed{7}.", " Or not"],
    ["我有三个。", "你有四个！", "一共七个。”", "他说"],
    ["Wait...", " no.", " Really?!", " Yes…", " ok"],
    ["see http://a.b/c.d?e=f.", " end"],
    ["A.\r\n", "B"],
]


@pytest.mark.parametrize("sentences", SENTENCES)
@pytest.mark.parametrize("unit", ["byte", "word"])
def test_sentences(sentences, unit):
    text = "".join(sentences)
    split = re.findall(r" ?[^\s.!?。！？…”]+|\r?\n|.", text, re.DOTALL) if unit == "word" else list(text)
    if unit == "byte":
        pieces = [bytes([byte]) for byte in text.encode()]
    else:
        pieces = [piece.encode() for piece in split]
    ends = step_ends(range(len(pieces)), pieces, None)
    steps = [b"".join(pieces[i:j]).decode() for i, j in zip([0, *ends], ends)]
    assert steps == sentences


_PIECES = [
    b"", b"a", b"b", b".", b" ", b"\n", b". ", b"\n\n", b"1", b"e.g", b"Dr", b"?", b'"', b".\n", b" c. d",
    b"\xe3\x80\x82", b"\xe2", b"\x80", b"\x9d", b"\xe3\x80\x82\xe2", b"\r",
]  # fmt: skip


@given(
    st.lists(st.integers(1, len(_PIECES) - 1), min_size=1, max_size=20),
    st.lists(st.integers(1, len(_PIECES) - 1), max_size=6),
)
def test_sentences_of_a_prefix_stay_when_more_follows(prefix, more):
    assert_prefix_stays(prefix, more, _PIECES, None)
    ends = step_ends(prefix, _PIECES, None, stop_ids=(0,))
    assert ends == sorted(set(ends)) and ends[-1] == len(prefix)
    text = b"".join(_PIECES[token] for token in prefix)
    if text.strip():
        assert all(b"".join(_PIECES[t] for t in prefix[i:j]).strip() for i, j in zip([0, *ends], ends))
    spans = list(sentence_spans(text))
    assert all(0 < at <= end <= len(text) or text[at:end] == b"\n" for at, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_an_end_of_text_behind_a_line_is_a_step_and_behind_a_full_stop_is_not():
    stop, a, dot, line = 0, 1, 3, 13
    assert step_ends([a, line, stop], _PIECES, None, stop_ids=(stop,)) == [2, 3]
    assert step_ends([a, dot, stop], _PIECES, None, stop_ids=(stop,)) == [3]
    assert step_ends([], _PIECES, None) == []


def test_the_codec_cuts_by_either_rule():
    tokens = np.array([1, 2, 6, 1, 3, 7, 2])  # "ab. a.\n\nb"
    assert Codec(len(_PIECES), token_bytes=_PIECES).step_ends(tokens) == [6, 7]
    assert Codec(len(_PIECES), token_bytes=_PIECES, separator=None).step_ends(tokens) == [3, 6, 7]
    assert Codec(len(_PIECES), separator=None).step_ends(tokens) == [7]  # no text, one step
