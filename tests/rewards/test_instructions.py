"""Instruction following: every kind with responses that follow, that violate, and that lie at the bound."""

import json
import pathlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.rewards import instructions
from ibtpo.rewards.instruction_checks import CHECKS, capital_words, count_sentences
from ibtpo.rewards.instructions import check, parse, reward, variants
from ibtpo.rewards.pool import Grader

ENGLISH = "the river runs slowly through the green valley and the children play beside the old stone bridge"
GERMAN = "Der Fluss fließt langsam durch das grüne Tal, und die Kinder spielen neben der alten Brücke."
CASES = {
    # kind: [(arguments, responses that follow, responses that do not)]
    "keywords:existence": [
        (dict(keywords=["sea", "a.b"]), ["A.B by the SEA", "research a.b"], ["the sea", "a.b", "the sea, axb"]),
    ],
    "keywords:frequency": [
        (dict(keyword="sea", frequency=2, relation="at least"), ["sea Sea", "seasea", "sea sea sea"], ["sea", "none"]),
        (dict(keyword="sea", frequency=2, relation="less than"), ["sea", "none"], ["sea SEA"]),
        (dict(keyword="  sea ", frequency=3, relation="at least"), ["\n sea, Sea, SEA\n"], ["sea, SEA"]),
    ],
    "keywords:forbidden_words": [
        (dict(forbidden_words=["sea", "C++"]), ["research", "seas", "C+"], ["the SEA.", "in C++ or", "sea"]),
    ],
    "keywords:letter_frequency": [
        (dict(letter="e", let_frequency=2, let_relation="at least"), ["eE", "see me"], ["e", "x"]),
        (dict(letter="E", let_frequency=2, let_relation="less than"), ["e", "x"], ["eE"]),
        (dict(letter="#", let_frequency=1, let_relation="at least"), ["#a"], ["a"]),
    ],
    "language:response_language": [
        (dict(language="de"), [GERMAN, GERMAN.upper()], [ENGLISH, "123 ...", "!"]),
        (dict(language="en"), [ENGLISH], [GERMAN]),
        (dict(language="zh"), ["这是一个关于河流和山谷的故事，孩子们在桥边玩耍。"], [ENGLISH]),
        (dict(language="hi"), ["नदी हरी घाटी से होकर धीरे-धीरे बहती है।"], [ENGLISH]),
    ],
    "length_constraints:number_sentences": [
        (dict(num_sentences=2, relation="at least"), ["One. Two!", "Is it? It is. Three"], ["One.", "Dr. No is here."]),
        (dict(num_sentences=2, relation="less than"), ["One.", "no end at all", "e.g. this"], ["One. Two."]),
    ],
    "length_constraints:number_paragraphs": [
        (
            dict(num_paragraphs=2),
            ["a\n***\nb", "***a***b", "a *** b\n***\n"],
            ["a", "a\n\nb", "a***b***c", "a***\n***b", "***a***"],
        ),
        (dict(num_paragraphs=1), ["a", "a\n\nb"], ["a***b"]),
    ],
    "length_constraints:number_words": [
        (dict(num_words=3, relation="at least"), ["one two three", "it's so"], ["one two", "... !"]),
        (dict(num_words=3, relation="less than"), ["one two"], ["one two three"]),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            dict(num_paragraphs=2, nth_paragraph=2, first_word="So"),
            ["a\n\nso it is", 'a\n\n"So," he said', "a\n\n\n\nSO! b", "a\n\nso"],
            ["a\n\nsoon", "so\n\na", "a\n\nso\n\nb", "so", "a\nso"],
        ),
        (dict(num_paragraphs=1, nth_paragraph=2, first_word="a"), [], ["a", "a\n\na"]),
    ],
    "detectable_content:number_placeholders": [
        (dict(num_placeholders=2), ["[name] at [address]", "[a][b][c]"], ["[name]", "[a\nb] [c]", "name"]),
    ],
    "detectable_content:postscript": [
        (dict(postscript_marker="P.S."), ["Bye.\n\nP.S. more", "bye p. s. more"], ["Bye. PS more", "P.P.", "Bye"]),
        (dict(postscript_marker="P.P.S"), ["Bye.\nP.P.S more", "p. p. s more"], ["Bye.\nP.S. more"]),
        (dict(postscript_marker="N.B."), ["n.b. more"], ["nxbx"]),
    ],
    "detectable_format:number_bullet_lists": [
        (dict(num_bullets=2), ["* a\n* b", "- a\n  - b", "x\n* a\n- b\ny"], ["* a", "* a\n* b\n* c", "**a**\n* b"]),
        (dict(num_bullets=1), ["*\na", "*\n* a", "*a", "-", "***\n* a", "(*)\n\t* a"], ["*", "**", "a * b", "a - b"]),
    ],
    "detectable_format:constrained_response": [
        ({}, ["My answer is yes.", " My answer is maybe. \n"], ["yes", "my answer is yes.", "My answer is no"]),
    ],
    "detectable_format:number_highlighted_sections": [
        (dict(num_highlights=2), ["*a* b *c*", "**a** b **c**", "**a** *b* *c*"], ["*a*", "** ** * *", "*a\nb* *c*"]),
        (dict(num_highlights=2), ["***a***", "*a* **b**"], ["**a**", "*a*b*", "* *a* *", "a*b"]),
    ],
    "detectable_format:multiple_sections": [
        (
            dict(section_spliter="Section", num_sections=2),
            ["Section 1\na\nSection 2\nb", "Section1 Section2 Section3"],
            ["Section 1\na", "SECTION 1 SECTION 2", "Section one Section two"],
        ),
    ],
    "detectable_format:json_format": [
        (
            {},
            ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```', " [1] "],
            ["{a: 1}", 'Here: {"a": 1}', '{"a": 1', "[" * 100_000],
        ),
    ],
    "detectable_format:title": [
        ({}, ["<<A day>>\ntext", "text <<x>>"], ["<<>>", "<< >>", "<A day>", "<<a\nb>>", "A day"]),
    ],
    "combination:two_responses": [
        (
            {},
            ["a\n******\nb", "******a******b", "a******b******"],
            ["a", "a******a", "a***b", "a******b******c", "a************b"],
        ),
    ],
    "combination:repeat_prompt": [
        (dict(prompt_to_repeat="Write it. "), ["write it. So", " Write it."], ["It", "So write it."]),
    ],
    "startend:end_checker": [
        (dict(end_phrase="Is it?"), ["So. is it?", '"Is it?" \n'], ["Is it? No.", "it?"]),
    ],
    "startend:quotation": [
        ({}, ['"a"', ' "a b"\n', '""'], ['"', "'a'", 'a "b"', '"a" b']),
    ],
    "change_case:capital_word_frequency": [
        (
            dict(capital_frequency=2, capital_relation="at least"),
            ["I SEE", "NASA and U.S. law", "WELL-KNOWN x A", "NASA's A", "I'M here", "DON'T", "CANNOT", "A—B"],
            ["See", "NASA", "A b", "NASA's", "NASA_ESA go", "WELL-KNOWN", "U.S.", "A/B", "’A’"],
        ),
        (dict(capital_frequency=2, capital_relation="less than"), ["See NASA", "no"], ["SEE IT"]),
    ],
    "change_case:english_capital": [
        ({}, [ENGLISH.upper() + "!"], [ENGLISH, GERMAN.upper().replace("ß", "SS"), ENGLISH.upper() + " x", "123"]),
    ],
    "change_case:english_lowercase": [
        ({}, [ENGLISH + "."], [ENGLISH.upper(), "T" + ENGLISH[1:], GERMAN.lower(), "123"]),
    ],
    "punctuation:no_comma": [
        ({}, ["a b; c", "a، b"], ["a, b", ","]),
    ],
}  # fmt: skip


def reference(*pairs):
    """The reference of (kind, arguments) pairs, as IFEval's data set writes it."""
    names, arguments = zip(*pairs)
    return json.dumps({"instruction_id_list": names, "kwargs": arguments, "prompt": "Write."})


def test_all_25_kinds_have_cases():
    assert len(CHECKS) == 25 and set(CASES) == set(CHECKS)
    assert all(any(bad for _, _, bad in cases) and any(good for _, good, _ in cases) for cases in CASES.values())


@pytest.mark.parametrize("kind", CHECKS)
def test_following_and_violating(kind):
    for arguments, good, bad in CASES[kind]:
        answer = reference((kind, arguments))
        for text in good:
            assert check(text, answer) == {"strict": [True], "loose": [True]}, text
            assert reward(text, answer) == 1.0
        for text in bad:
            assert check(text, answer)["strict"] == [False], text
            assert reward(text, answer) == 0.0
        for blank in ("", " \n"):
            assert check(blank, answer) == {"strict": [False], "loose": [False]}
            assert reward(blank, answer) == 0.0


@given(st.text(max_size=200), st.sampled_from(sorted(CHECKS)))
def test_any_text_gets_a_verdict(text, kind):
    for arguments, _, _ in CASES[kind]:
        verdict = check(text, reference((kind, arguments)))
        assert [type(x) for x in verdict["strict"] + verdict["loose"]] == [bool, bool]
        assert verdict["loose"] >= verdict["strict"]


# The counts, against ones known by construction.


@given(st.integers(0, 12), st.integers(0, 14), st.sampled_from(["at least", "less than"]))
def test_counts_are_compared_at_the_bound(count, bound, relation):
    expected = count >= bound if relation == "at least" else count < bound
    words = " ".join(["Word"] * count)
    for kind, text, arguments in [
        ("length_constraints:number_words", words, dict(num_words=bound, relation=relation)),
        ("length_constraints:number_sentences", "It is so. " * count, dict(num_sentences=bound, relation=relation)),
        ("keywords:frequency", words, dict(keyword="word", frequency=bound, relation=relation)),
        ("keywords:letter_frequency", words, dict(letter="w", let_frequency=bound, let_relation=relation)),
        (
            "change_case:capital_word_frequency",
            words.upper(),
            dict(capital_frequency=bound, capital_relation=relation),
        ),
    ]:
        assert CHECKS[kind](text, **arguments) is expected, kind


@pytest.mark.parametrize(
    "text, count",
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two! Three? Four", 4),
        ("Wait... what?! Yes.", 2),
        ("Wait... What?! Yes.", 3),
        ('He said "No." Then he left.', 2),
        ("Dr. Smith met J. R. Jones at 5 p.m. in Rome, e.g. Mr. No.", 1),
        ("small letters. all the way. three.", 3),
        ("It costs 3.50 dollars. v1.2 is out.", 2),
        ("1. First\n2. Second\n3. Third", 1),
        ("1. First.\n2. Second.\n", 2),
        ("So did I. It rained.", 2),
        ("A heading\n\nA sentence.", 1),
        ("这是第一句。这是第二句！", 2),
        ("यह पहला वाक्य है। यह दूसरा है।", 2),
        ("**Bold end.** Next one.", 2),
        ('He said, "Go!" and left.', 1),
        ('He said, "Go!" And left.', 2),
        ("At 5 p.m. He left.", 2),
        ("No. 5 is alive.", 1),
        ("No. He is alive.", 2),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


def test_instructions_are_checked_as_labelled():
    """Labelled by the published checker's rules, by hand."""
    lines = (pathlib.Path(__file__).parent / "cases" / "instructions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 190
    assert not [row for row in rows if CHECKS[row["kind"]](row["response"], **row["arguments"]) is not row["follows"]]


CAPITAL_WORDS = pathlib.Path(__file__).parent / "cases" / "capital_words.jsonl"


@pytest.mark.parametrize("text, count", map(json.loads, CAPITAL_WORDS.read_text(encoding="utf-8").splitlines()))
def test_capital_words_are_those_of_the_published_tokenizer(text, count):
    """Counted by nltk 3.10.4 (`NLTKWordTokenizer`); texts whose count is the same with and without its splitter of
    sentences."""
    assert len(capital_words(text)) == count, capital_words(text)


# Loose.


def test_the_eight_variants():
    assert variants("Sure:\n*a*\nb\nBye") == [
        "Sure:\n*a*\nb\nBye",
        "*a*\nb\nBye",
        "Sure:\n*a*\nb",
        "*a*\nb",
        "Sure:\na\nb\nBye",
        "a\nb\nBye",
        "Sure:\na\nb",
        "a\nb",
    ]


@pytest.mark.parametrize(
    "text, loose",
    [
        ('"a"', True),
        ('Sure:\n"a"', True),
        ('"a"\nBye', True),
        ('Sure:\n"a"\nBye', True),
        ('**"a"**', True),
        ('Sure:\n*"a"*', True),
        ('*"a"*\nBye', True),
        ('Sure:\n*"a"*\nBye', True),
        ('Sure:\nyes:\n"a"', False),
        ('__"a"__', False),
    ],
)
def test_loose_forgives_frames_and_asterisks(text, loose):
    verdict = check(text, reference(("startend:quotation", {})))
    assert verdict == {"strict": [text == '"a"'], "loose": [loose]}


def test_loose_does_not_forgive_a_response_that_is_all_frame():
    """No comma remains when the only line is taken away; nothing remains either."""
    assert check("a, b", reference(("punctuation:no_comma", {})))["loose"] == [False]


# Several instructions.


def test_each_instruction_has_its_verdict_and_the_reward_takes_all():
    both = reference(("punctuation:no_comma", {}), ("startend:quotation", {}))
    verdicts = [check(text, both) for text in ('"a"', 'Sure:\n"a"', '"a, b"')]
    assert [v["strict"] for v in verdicts] == [[True, True], [True, False], [False, True]]
    assert [v["loose"] for v in verdicts] == [[True, True], [True, True], [False, True]]
    assert [reward(text, both) for text in ('"a"', 'Sure:\n"a"', '"a, b"')] == [1.0, 0.0, 0.0]


def test_the_grader_checks_in_a_worker():
    answer = reference(("language:response_language", dict(language="de")), ("punctuation:no_comma", {}))
    with Grader("instructions", workers=1) as grader:
        assert grader.grade([(GERMAN.replace(",", ""), answer), (GERMAN, answer), (" ", answer)]) == [1.0, 0.0, 0.0]
        assert grader.counts == {"graded": 3, "fast": 1, "slow": 2, "timeout": 0, "crashed": 0}
        # The whole response is checked, however long.
        assert grader.grade([("a, " + "b " * 20_000, reference(("punctuation:no_comma", {})))]) == [0.0]
        with pytest.raises(ValueError, match="unknown instruction 'no_comma'"):
            grader.submit("a", reference(("no_comma", {})))


# References.


def test_numbers_as_floats_and_null_arguments_are_those_of_the_published_files():
    answer = reference(("length_constraints:number_words", dict(num_words=2.0, relation="at least", keywords=None)))
    assert reward("one two", answer) == 1.0 and reward("one", answer) == 0.0


@pytest.mark.parametrize(
    "answer, words",
    [
        ("C", "JSON object"),
        ("[]", "JSON object"),
        ('{"instruction_id_list": ["punctuation:no_comma"]}', "'kwargs'"),
        (json.dumps(dict(instruction_id_list=[], kwargs=[])), "0 instructions"),
        (json.dumps(dict(instruction_id_list=["punctuation:no_comma"], kwargs=[{}, {}])), "2 sets of arguments"),
        (json.dumps(dict(instruction_id_list=["punctuation:no_comma"], kwargs=[None])), "expected a JSON object"),
        (reference(("punctuation:comma", {})), "unknown instruction 'punctuation:comma'; known: keywords:existence"),
        (reference(("punctuation:no_comma", dict(words=1))), "no argument 'words': it takes none"),
        (reference(("length_constraints:number_words", dict(relation="at least"))), "num_words=None: expected a whole"),
        (reference(("length_constraints:number_words", dict(num_words=1.5, relation="at least"))), "num_words=1.5"),
        (reference(("length_constraints:number_words", dict(num_words=True, relation="at least"))), "num_words=True"),
        (reference(("length_constraints:number_words", dict(num_words=3, relation="above"))), "'less than' or 'at lea"),
        (reference(("keywords:existence", dict(keywords="sea"))), "keywords='sea': expected a list of texts"),
        (reference(("keywords:existence", dict(keywords=[]))), "keywords=[]: expected a list of texts"),
        (reference(("keywords:letter_frequency", dict(letter="ab"))), "letter='ab': expected one letter"),
        (reference(("startend:end_checker", dict(end_phrase=" "))), "end_phrase=' ': expected text"),
    ],
)
def test_a_reference_that_cannot_be_used_is_one_error(answer, words):
    for function in (parse, lambda answer: instructions.fast_reward("a", answer), lambda answer: check("a", answer)):
        with pytest.raises(ValueError, match="cannot be used") as caught:
            function(answer)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "unit", [".", "a. ", "[", "<<", "*", "*a", "**a ", "-\n", "a\n\n", "***", "'", "A.", "1. ", '"', "p.", "漢", "\n"]
)
def test_hostile_repetitions_take_bounded_time(unit):
    """Evaluation checks in its own process: no text may hold it up."""
    text = unit * (50_000 // len(unit))
    start = time.process_time()
    for kind, cases in CASES.items():
        if kind not in ("language:response_language", "change_case:english_capital", "change_case:english_lowercase"):
            CHECKS[kind](text, **cases[0][0])
    assert time.process_time() - start < 1.0
