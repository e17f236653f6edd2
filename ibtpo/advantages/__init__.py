"""Advantages over a tree: one function per method, one signature.

Each takes (tree, options) and returns A [Q, R, N]: the advantage that response r gives node n of
its path; 0 off the path, at the root (the question is not the policy's doing) and on padding.
Methods whose advantage belongs to the node give every response through it the same number.

Q questions, R responses, N nodes. Sources: docs/method.md for IB-TPO; the papers and the code named in each
docstring for the rest.
"""

from collections.abc import Callable
from dataclasses import replace

from ibtpo import choices, own_code
from ibtpo.advantages.flat import dr_grpo, grpo, rloo
from ibtpo.advantages.information import diagnostics, ibtpo
from ibtpo.advantages.options import (
    AdvantageOptions,
    group_is_uniform,
    mean_deviation,
    overlong_penalty,
    spread_nodes,
    spread_responses,
)
from ibtpo.advantages.tokens import agreeing, at_tokens, by_token
from ibtpo.advantages.trees import spo_tree, tempo, tree_grpo, treeadv, treepo, treerl, treerpo
from ibtpo.errors import UserError
from ibtpo.tree import Array, Tree, namespace

ADVANTAGES: dict[str, Callable[..., Array]] = {name: globals()[name] for name in choices.ADVANTAGES}


def compute_advantages(name: str, tree: Tree, options: AdvantageOptions, shaping: Array | None = None) -> Array:
    """The advantages of method `name`, a key of ADVANTAGES or module:function, [Q, R, N]; `shaping` [Q, R] is added to
    the rewards.

    Shaping of a reward (terms, the overlong penalty) belongs to the outcomes that a method compares. It says nothing
    about the answer, so the ratios p̂(s)/p̂(s_p) of IB-TPO's A_IB are made of the rewards as they were graded: a shaped
    value is no probability, and one just above 0 would make the ratio anything.
    """
    if own_code.is_path(name):
        return _own(name, tree if shaping is None else replace(tree, rewards=tree.rewards + shaping), options)
    if shaping is None:
        return ADVANTAGES[name](tree, options)
    shaped = replace(tree, rewards=tree.rewards + shaping)
    return ibtpo(tree, options, shaped) if name == "ibtpo" else ADVANTAGES[name](shaped, options)


def _own(name: str, tree: Tree, options: AdvantageOptions) -> Array:
    """The advantages of a function of the user's; UserError where they are not A [Q, R, N]."""
    found = own_code.find("loss.advantage", name)(tree, options)
    wanted, shape = (*tree.response_node.shape, tree.node_parent.shape[1]), getattr(found, "shape", None)
    if shape != wanted:
        what = type(found).__name__ if shape is None else f"shape {shape}"
        raise UserError(
            f"loss.advantage={name!r} returned {what}, not an array of shape [questions, responses, nodes] = {wanted}"
        )
    if not namespace(found).isfinite(found).all():
        raise UserError(f"loss.advantage={name!r} returned values that are not finite")
    return found


__all__ = [
    "ADVANTAGES",
    "AdvantageOptions",
    "agreeing",
    "at_tokens",
    "by_token",
    "compute_advantages",
    "diagnostics",
    "dr_grpo",
    "group_is_uniform",
    "grpo",
    "ibtpo",
    "mean_deviation",
    "overlong_penalty",
    "rloo",
    "spo_tree",
    "spread_nodes",
    "spread_responses",
    "tempo",
    "tree_grpo",
    "treeadv",
    "treepo",
    "treerl",
    "treerpo",
]
