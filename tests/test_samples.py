"""Trees as bounded texts."""

import pytest

from ibtpo.metrics.samples import MOST_BYTES, bounded, is_due, texts
from ibtpo.saved_trees import TreeFile

WORDS = ["Q", "a ", "b\n", "right", "wrong", "ü"]


def tree_file(word="a "):
    """A question with two responses that part after their first step."""
    vocabulary = {str(i): text.encode().decode("latin-1") for i, text in enumerate(WORDS)} | {"9": "\0<eos>"}
    vocabulary["1"] = word.encode().decode("latin-1")
    tree = {
        "problem": "p1", "question": "Q", "answer": "7", "prompt": [0], "parent": [-1, 0, 1, 1], "length": [0, 2, 2, 2],
        "tokens": [1, 2, 3, 9, 4, 5], "log_probs": [0] * 6, "leaf": [3, 2], "round": [0, 1], "reward": [0.0, 1.0],
        "cut": [1, 0], "stated": [None, "7"], "value": [0.5, 0.5, 1.0, 0.0], "J": [0.25, 0.5, None, None],
    }  # fmt: skip
    return TreeFile(1, "train", 20, {}, vocabulary, [tree])


def test_samples_have_prompt_best_and_worst_response_with_their_rewards():
    found = texts(tree_file())
    assert set(found) == {"samples/train", "tree/train"}
    assert found["samples/train"] == (
        "[p1] update 20, answer 7\n\nprompt:\nQ\n\nbest of 2 responses, reward 1:\na b\nright\n\n"
        "worst of 2 responses, reward 0, cut off:\na b\nwrongü"
    )
    assert found["tree/train"].splitlines() == [
        "[0] Q   p̂=0.50 J=0.250",
        "[1] a b   p̂=0.50 J=0.500",
        "  [2] right   p̂=1.00 response 1 reward=1",
        "  [3] wrongü   p̂=0.00 response 0 reward=0",
    ]


@pytest.mark.parametrize("word", ["x" * 100_000, "ü" * 50_000, "\n" * 50_000, "x\n" * 50_000])
def test_no_text_is_larger_than_it_may_be(word):
    content = tree_file(word)
    content = TreeFile(1, "eval", 20, {}, content.vocabulary, list(content.trees) * 50)
    for name, text in texts(content).items():
        assert len(text.encode()) <= MOST_BYTES, name
    assert "right" in texts(tree_file(word))["samples/train"]  # how a response ends is there


def test_a_cut_text_says_so_and_is_whole_characters():
    text = "ü" * 100
    assert bounded(text, 200) == text
    cut = bounded(text, 101)
    assert len(cut.encode()) <= 101 and cut.startswith("üü") and cut.endswith("(cut: 200 bytes in all)")


def test_long_runs_keep_fewer_and_fewer():
    kept = [step for step in range(20, 20 * 100_001, 20) if is_due(step, 20, 100)]
    assert kept[:99] == list(range(20, 2000, 20))  # all of the first hundred
    assert len(kept) < 100 * (1 + 10 / 2) + 1
    assert kept[-1] > 0.97 * 20 * 100_000
    assert is_due(7, 0, 100)  # evaluations alone are kept


def test_no_trees_are_no_tree():
    assert texts(TreeFile(1, "train", 1, {}, {}, [])) == {"samples/train": ""}
