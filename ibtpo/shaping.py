"""Shaping of the rewards in the advantages only: terms by their weights, and the overlong penalty.

Correctness steers the tree and everything that is reported; see docs/extending.md.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ibtpo.advantages import overlong_penalty
from ibtpo.rewards.terms import TERMS, parse_terms
from ibtpo.tree import Tree, response_mask, tokens_of_response


def shape(
    tree: Tree, reward: Any, max_new_tokens: int, text: Callable[[np.ndarray], str]
) -> tuple[np.ndarray | None, dict[str, float]]:
    """(the values added to the rewards, [Q, R], or None; {"term_<name>": mean over the responses}).

    Args:
      tree: [Q, ...], NumPy.
      reward: the `reward` section of a config: terms, overlong_share, overlong_penalty.
      max_new_tokens: the longest response.
      text: the text of generated tokens.
    """
    weights, exists = parse_terms(reward.terms) or {}, response_mask(tree)
    shaping, means = np.zeros_like(tree.rewards), {}
    for name, weight in weights.items():
        values = np.zeros_like(shaping)
        for q, r in zip(*np.nonzero(exists)):
            tokens = np.asarray(tree.tokens[q, tokens_of_response(tree, r, q)])
            values[q, r] = TERMS[name](text(tokens), len(tokens) / max_new_tokens)
        shaping += weight * values
        means[f"term_{name}"] = float(values[exists].mean())
    if reward.overlong_share:
        shaping += overlong_penalty(
            tree,
            max_new_tokens=max_new_tokens,
            tokens=reward.overlong_share * max_new_tokens,
            penalty=reward.overlong_penalty,
        )
    return (shaping if weights or reward.overlong_share else None), means
