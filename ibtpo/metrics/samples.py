"""Saved trees as texts of bounded size, for TensorBoard and the services that show them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ibtpo.saved_trees import TreeFile

MOST_BYTES = 16_384  # of one text in UTF-8
_PART = 1_500  # characters of a prompt or a response
_STEP = 80  # of a step's text in a tree


def texts(content: TreeFile) -> dict[str, str]:
    """{"samples/<kind>": prompts, each with its best and its worst response, "tree/<kind>": the first tree}; each of at
    most `MOST_BYTES` bytes. kind: train or eval."""
    found = {f"samples/{content.kind}": "\n\n".join(_sample(content, tree) for tree in content.trees)}
    if content.trees:
        found[f"tree/{content.kind}"] = "\n".join(_lines(content, content.trees[0]))
    return {name: bounded(text) for name, text in found.items()}


def bounded(text: str, most: int = MOST_BYTES) -> str:
    """The text, cut to `most` bytes where it is longer, with a line that says so."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode("utf-8")
    said = f"\n(cut: {len(data):,} bytes in all)"
    return data[: most - len(said)].decode("utf-8", "ignore") + said


def is_due(step: int, every: int, most: int) -> bool:
    """Whether the texts of a step are kept, of one in `every` steps: all of the first `most`, of as many again every
    second, of twice as many again every fourth, and so on. Of n there are most (1 + log2(n / most) / 2) at the end.

    It depends on nothing but the step, so that a resumed run keeps the same.
    """
    number = step // max(every, 1)
    return number % 2 ** (number // most).bit_length() == 0


def _sample(content: TreeFile, tree: Mapping[str, Any]) -> str:
    rewards = list(tree["reward"])
    parts = [f"[{tree['problem']}] update {content.step}, answer {_short(str(tree['answer']), _STEP)}"]
    parts.append(f"prompt:\n{_short(spelled(content, tree['prompt']), _PART)}")
    if rewards:
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        for word, which in (("best", best), ("worst", worst))[: 1 + (best != worst)]:
            cut = ", cut off" * bool(tree["cut"][which])
            text = _short(spelled(content, _response(tree, which)), _PART)
            parts.append(f"{word} of {len(rewards)} responses, reward {rewards[which]:g}{cut}:\n{text}")
    return "\n\n".join(parts)


def _lines(content: TreeFile, tree: Mapping[str, Any]) -> Iterator[str]:
    """A line for each node, in depth-first order; a chain stays flush, as in `ibtpo.tree_text`."""
    parents, starts = tree["parent"], _starts(tree)
    children = [0] * len(parents)
    for parent in parents[1:]:
        children[parent] += 1
    leaves = {leaf: which for which, leaf in enumerate(tree["leaf"])}
    depth = [0] * len(parents)
    for node, parent in enumerate(parents):
        if node:
            depth[node] = depth[parent] + (children[parent] > 1)
        tokens = tree["tokens"][starts[node] : starts[node + 1]] if node else tree["prompt"]
        notes = [f"p̂={tree['value'][node]:.2f}"]
        if tree["J"][node] is not None:
            notes.append(f"J={tree['J'][node]:.3f}")
        if node in leaves:
            notes.append(f"response {leaves[node]} reward={tree['reward'][leaves[node]]:g}")
        text = _short(" ".join(spelled(content, tokens).split()), _STEP)
        yield f"{'  ' * min(depth[node], 20)}[{node}] {text}   {' '.join(notes)}"


def spelled(content: TreeFile, tokens: Sequence[int]) -> str:
    """The text of tokens; special ones, and half a character, have none."""
    words = (content.vocabulary[str(token)] for token in tokens)
    data = b"".join(word.encode("latin-1") for word in words if not word.startswith("\0"))
    return data.decode("utf-8", "replace").strip()


def _starts(tree: Mapping[str, Any]) -> list[int]:
    """Where each node's tokens begin, and where the last one's end."""
    found = [0]
    for length in tree["length"]:
        found.append(found[-1] + length)
    return found


def _response(tree: Mapping[str, Any], which: int) -> list[int]:
    """The tokens of a response, from the question to its leaf."""
    starts, node = _starts(tree), tree["leaf"][which]
    tokens: list[int] = []
    while node > 0:
        tokens = tree["tokens"][starts[node] : starts[node + 1]] + tokens
        node = tree["parent"][node]
    return tokens


def _short(text: str, most: int) -> str:
    """The text with its middle left out where it is longer: how it ends is what matters of a response."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {text[-(most - most // 2 - 3) :]}"
