"""Where a response's thinking ends: nothing within <think> ... </think> is an answer."""

_OPEN, _CLOSE = "<think>", "</think>"


def visible_start(text: str) -> int:
    """Where the text that a reader sees begins: behind the last "</think>"; the text's length where a "<think>" behind
    that is never closed; 0 without tags.

    A prompt may itself open the thinking, so a "</think>" counts without a "<think>" before it.
    """
    closed = text.rfind(_CLOSE)
    start = closed + len(_CLOSE) if closed >= 0 else 0
    return len(text) if text.find(_OPEN, start) >= 0 else start
