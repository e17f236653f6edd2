"""Terms that shape the reward in training: plain functions (text, length) -> float, composed by weights.

`reward.terms` names them, "format:0.1,length:-0.05"; the weighted sum is added to the graded rewards in the advantages
only, see `ibtpo.advantages.compute_advantages`. A term runs in the training process on every response: it must take
bounded time on any text. To add one called <name>, write <name>_term and enter the name in `choices.TERMS`.

length: generated tokens of the response over sampling.max_new_tokens, above 0 and at most 1.
"""

import math
from collections.abc import Callable

from ibtpo import choices
from ibtpo.rewards.math import BOX, find_boxes


def format_term(text: str, length: float) -> float:
    r"""1.0 if the response has exactly one \boxed{...}, complete and not empty; else 0.0."""
    content, _ = find_boxes(text)
    return float(content is not None and bool(content.strip()) and len(BOX.findall(text)) == 1)


def length_term(text: str, length: float) -> float:
    """The length itself; a negative weight prices it."""
    return length


TERMS: dict[str, Callable[[str, float], float]] = {name: globals()[f"{name}_term"] for name in choices.TERMS}


def parse_terms(text: str) -> dict[str, float] | None:
    """{name: weight} of `reward.terms`; None where the text is none, or names an unknown term or one twice."""
    parts = [part.split(":") for part in text.split(",")] if text.strip() else []
    try:
        weights = {name.strip(): float(weight) for name, weight in parts}
    except ValueError:
        return None
    known = weights.keys() <= TERMS.keys() and all(map(math.isfinite, weights.values()))
    return weights if known and len(weights) == len(parts) else None
