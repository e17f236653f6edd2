"""Where the visible text of a response begins."""

import pytest

from ibtpo.rewards.thinking import visible_start


@pytest.mark.parametrize(
    "hidden, visible",
    [
        ("", "no tags at all"),
        ("", ""),
        ("<think>a</think>", "b"),
        ("the prompt opened it</think>", "b"),
        ("<think>a</think>b<think>c</think>", "d"),
        ("<think>never closed", ""),
        ("<think>a</think>b<think>again", ""),
        ("<think>a<think>b</think>", "c"),
    ],
)
def test_the_visible_text_begins_behind_the_last_tag(hidden, visible):
    assert visible_start(hidden + visible) == len(hidden)
