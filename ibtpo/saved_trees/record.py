"""A sampled tree as plain JSON values: what `files` writes. The fields are described there.

Q questions, R responses, N nodes, T tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ibtpo.advantages import AdvantageOptions, by_token, compute_advantages
from ibtpo.choices import TOKEN_ADVANTAGES
from ibtpo.data.problems import Problem
from ibtpo.ib_score import child_weights, ib_score
from ibtpo.policy import Policy
from ibtpo.rewards import show_reference, stated
from ibtpo.saved_trees.files import LOG_PROB_UNIT, VERSION, TreeFile
from ibtpo.tree import Array, Tree, node_mask, on_path, response_mask, scatter_sum, tokens_of_response

_DIGITS = 7  # significant ones of a float32


def tree_file(
    kind: str,
    step: int,
    trees: Sequence[Tree],
    problems: Sequence[Problem],
    policy: Policy,
    config: Any,
    advantages: np.ndarray | None = None,
    of_tokens: bool = False,
) -> TreeFile:
    """The trees of one time.

    Args:
      kind: "train" or "eval".
      step: updates done when they were sampled.
      trees: each of one question; padding is left out.
      problems: of each tree.
      policy: that drew them; its codec and tokenizer name the tokens.
      config: of the run.
      advantages: [Q, R, N] of each tree, as the loss took them; None: what the method gives these trees.
      of_tokens: whether those advantages are of tokens (`advantages.by_token`), not of nodes.
    """
    options = AdvantageOptions.from_config(config)
    method, default_kind = config.loss.advantage, config.reward.kind
    if advantages is None:
        of_tokens = method in TOKEN_ADVANTAGES
    records = []
    for q, (tree, problem) in enumerate(zip(trees, problems)):
        exact = unpadded(tree)
        given = advantages_of(exact, method, options) if advantages is None else advantages[q]
        records.append(
            question_fields(exact, problem, policy, default_kind)
            | tree_fields(exact)
            | score_fields(exact, options)
            | advantage_fields(exact, given, of_tokens)
        )
    used = sorted({token for r in records for name in ("prompt", "tokens") for token in r[name]})
    return TreeFile(
        version=VERSION,
        kind=kind,
        step=step,
        options=dataclasses.asdict(options) | {"advantage": method, "confidence_of": config.loss.ib_confidence},
        vocabulary=vocabulary(used, policy),
        trees=records,
    )


def unpadded(tree: Tree) -> Tree:
    """A tree of one question [1, ...] without its padding, which lies behind everything real; NumPy."""
    sizes = {
        "tokens": int((np.asarray(tree.step)[0] >= 0).sum()),
        "nodes": int(np.asarray(node_mask(tree))[0].sum()),
        "responses": int(np.asarray(response_mask(tree))[0].sum()),
    }
    of = {"node_parent": "nodes", "node_end": "nodes", "prompt_length": ""}
    of |= dict.fromkeys(("response_node", "response_length", "rewards", "response_round", "truncated"), "responses")
    fields = {}
    for field in dataclasses.fields(Tree):
        array, size = np.asarray(getattr(tree, field.name)), of.get(field.name, "tokens")
        fields[field.name] = array[:, : sizes[size]] if size else array
    return Tree(**fields)


def question_fields(tree: Tree, problem: Problem, policy: Policy, default_kind: str) -> dict[str, Any]:
    """What was asked, and what each response answered."""
    kind = problem.kind or default_kind
    texts = [policy.text(np.asarray(tree.tokens)[0, tokens_of_response(tree, r)]) for r in range(tree.rewards.shape[1])]
    prompt = int(tree.prompt_length[0])
    return {
        "problem": problem.id,
        "question": problem.question,
        "answer": show_reference(kind, problem.answer),
        "prompt": tree.tokens[0, :prompt].tolist(),
        "stated": [stated(kind, text, bool(cut)) for text, cut in zip(texts, tree.truncated[0])],
    }


def tree_fields(tree: Tree) -> dict[str, Any]:
    """Nodes, tokens and responses. Depth-first order makes a node's tokens a range, so lengths tell them apart."""
    prompt, nodes = int(tree.prompt_length[0]), tree.node_parent.shape[1]
    log_probs = np.clip(tree.log_probs[0, prompt:] / -LOG_PROB_UNIT, 0, 2**31 - 1)
    return {
        "parent": tree.node_parent[0].tolist(),
        "length": [0, *np.bincount(tree.step[0, prompt:], minlength=nodes)[1:].tolist()],
        "tokens": tree.tokens[0, prompt:].tolist(),
        "log_probs": np.rint(log_probs).astype(int).tolist(),
        "leaf": tree.response_node[0].tolist(),
        "round": tree.response_round[0].tolist(),
        "reward": _numbers(tree.rewards[0]),
        "cut": tree.truncated[0].astype(int).tolist(),
    }


def score_fields(tree: Tree, options: AdvantageOptions) -> dict[str, Any]:
    """The IB-Score and its factors. J is None where a node has no children."""
    score = ib_score(tree, options.score)
    return {
        "value": _numbers(score.values[0]),
        "eta1": _numbers(score.eta1[0]),
        "eta2": _numbers(score.eta2[0]),
        "weight": _numbers(child_weights(tree, child_weight=options.score.child_weight)[0]),
        "J": [j if has else None for j, has in zip(_numbers(score.J[0]), score.has_children[0])],
    }


def advantages_of(tree: Tree, method: str, options: AdvantageOptions) -> np.ndarray:
    """[R, N] that a method gives the tree, of nodes or, for a method that sees every token, of tokens."""
    seen = by_token(tree) if method in TOKEN_ADVANTAGES else tree
    return np.asarray(compute_advantages(method, seen, options))[0]


def advantage_fields(tree: Tree, advantages: np.ndarray, of_tokens: bool) -> dict[str, Any]:
    """A of each node: the mean over the responses through it and, of tokens, over its tokens; with the lowest and the
    highest of its responses where these differ anywhere. advantages: [R, N], padded or not."""
    path, nodes = on_path(tree)[0], tree.node_parent.shape[1]
    responses, generated = tree.rewards.shape[1], int((tree.step > 0).sum())
    if of_tokens:
        node = np.broadcast_to(tree.step[:1, -generated:], (responses, generated))
        each = np.asarray(advantages[:responses, 1 : generated + 1], float)
        length = np.maximum(np.bincount(tree.step[0, -generated:], minlength=nodes), 1)
        given = scatter_sum(node, each, nodes) / length
    else:
        given = np.asarray(advantages[:responses, :nodes], float)
    inside = path & (np.arange(nodes) > 0)
    count = np.maximum(inside.sum(axis=0), 1)
    fields = {"A": _numbers(np.where(inside, given, 0).sum(axis=0) / count)}
    low = np.where(inside, given, np.inf).min(axis=0)
    high = np.where(inside, given, -np.inf).max(axis=0)
    if np.any(inside.any(axis=0) & (high - low > 1e-6)):
        some = inside.any(axis=0)
        fields |= {"A_low": _numbers(np.where(some, low, 0)), "A_high": _numbers(np.where(some, high, 0))}
    return fields


def vocabulary(tokens: Sequence[int], policy: Policy) -> Mapping[str, str]:
    """{token: its bytes, one character each}; a token that is no text has its name after a zero byte."""
    table = policy.codec.token_bytes
    found = {}
    for token in tokens:
        spelled = table[token] if token < len(table) else b""
        if not spelled:
            name = policy.tokenizer.convert_ids_to_tokens(int(token))
            spelled = b"\0" + str(name if name is not None else token).encode("utf-8", "replace")
        found[str(token)] = spelled.decode("latin-1")
    return found


def _numbers(x: Array) -> list[float]:
    """Floats as short decimals."""
    return [float(f"{value:.{_DIGITS}g}") for value in np.asarray(x, float).tolist()]
