"""Flat groups of any trainer, several responses to each prompt, as packed rows: every common prefix is computed once.

    packed = pack_groups(prompts, responses, row_tokens=...)
    log_probs = gather_responses(model(packed.rows), packed)      [N, L], as if every response had been a row

The rows are those of `ibtpo.packing.rows`: a model reads their tokens and positions, and its
attention lets token i see token j iff j <= i < subtree_end[j] (`ibtpo.kernels.tree_attention`). What a trainer computes
from log-probabilities stays its own, and so does the gradient: what flows back to a shared token is the sum over the
responses that share it.

Dimension letters: Q prompts, N responses of all, L tokens of the longest, B rows, T tokens of a row.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ibtpo.packing.rows import Layout, TokenBatch, fill, plan, row_length, unpack
from ibtpo.tree import Array, Response, Tree, build_tree, stack_trees, tokens_of_response

AGREE = 1e-5  # nats that the log-probabilities of a shared token may differ by

Ragged = Sequence[Sequence[Any]]  # by prompt, by response: its tokens, or a value for each or for all of them


class PackedGroups(flax.struct.PyTreeNode):
    """The rows of flat groups, and where the tokens of each response lie in them.

    rows: [B, T] each; ref_log_probs and old_log_probs are None.
    index: int32 [N, L], cell b T + t of each token of each response, in the order given; 0 behind its end.
    mask: bool [N, L], whether there is a token.
    flat_tokens: tokens that the forward pass of one row for each response and its prompt, as long as the longest,
      would compute; sequence_tokens: the same without its padding; unique_tokens: without what they share.
    """

    rows: TokenBatch
    index: Array
    mask: Array
    flat_tokens: int = flax.struct.field(pytree_node=False)
    sequence_tokens: int = flax.struct.field(pytree_node=False)
    unique_tokens: int = flax.struct.field(pytree_node=False)


def pack_groups(
    prompts: Sequence[Sequence[int]],
    responses: Ragged,
    *,
    row_tokens: int = 0,
    rows_per_step: int = 1,
    num_rows: int = 0,
    log_probs: Ragged | None = None,
    advantages: Ragged | None = None,
    weights: Ragged | None = None,
    only_prompts: bool = False,
) -> PackedGroups:
    """Lays the responses to each prompt out as a tree of their common prefixes, and the trees in rows.

    Two responses share the tokens before the first in which they differ; of two that are equal, or of which one begins
    with all of the other, the last token of the shorter stays apart. Prompts are not compared with one another.

    With `advantages` the rows are those of `ibtpo.losses.policy_loss`, whose loss and gradient are then those of

        sum over responses and tokens of - w min(r A, clip(r) A) + kl w k3

    over the flat responses: P = sum w max(A, 0), N = sum w min(A, 0) and W = sum w over those that share a token.

    Args:
      prompts: token ids of each, at least one.
      responses: of each prompt, at least one; token ids of each, at least one.
      row_tokens: T; 0: as many as the longest tree needs, rounded up. A longer tree is cut (`packing.plan`).
      rows_per_step, num_rows: see `packing.plan`.
      log_probs: of each token under the policy that drew it; None: 0.
      advantages: A of each token, or one number for a response; None: P, N and W are 0.
      weights: w of each token, or one number for a response; 0 leaves a token out. None: 1.
      only_prompts: share the prompt alone.

    Raises:
      ValueError: values and tokens do not match in number; something is empty; or `advantages` are given and the
        log-probabilities of a shared token differ by more than 1e-5, for then no one ratio is right for all.
    """
    if len(prompts) != len(responses) or not len(prompts):
        raise ValueError(f"{len(prompts)} prompts with {len(responses)} groups of responses: give as many, and some")
    groups = [[np.asarray(tokens, np.int32) for tokens in group] for group in responses]
    behaviour = _values("log_probs", log_probs, groups, 0.0)
    tree = _stacked(prompts, groups, behaviour, only_prompts)
    row_tokens = row_tokens or row_length(int((tree.step >= 0).sum(axis=1).max()))
    layout = plan(tree, row_tokens=row_tokens, rows_per_step=rows_per_step, num_rows=num_rows)
    rows, (index, mask) = fill(layout, tree), _places(tree, layout, groups)
    if advantages is not None:
        given = (_values("advantages", advantages, groups, 0.0), _values("weights", weights, groups, 1.0))
        _add_weights(rows, index, mask, behaviour, *given)
    lengths = [len(prompt) + len(tokens) for prompt, group in zip(prompts, groups) for tokens in group]
    unique = int((tree.step >= 0).sum())
    return PackedGroups(rows, index, mask, len(lengths) * max(lengths), sum(lengths), unique)


def gather_responses(values: Array, packed: PackedGroups) -> jax.Array:
    """Values of the tokens of rows, [B, T, ...], as those of the flat responses, [N, L, ...]; 0 behind their ends."""
    values = jnp.asarray(values)
    found = jnp.take(values.reshape(-1, *values.shape[2:]), jnp.asarray(packed.index), axis=0)
    return jnp.where(jnp.asarray(packed.mask).reshape(*packed.mask.shape, *[1] * (found.ndim - 2)), found, 0)


def _stacked(
    prompts: Sequence[Sequence[int]], groups: list[list[np.ndarray]], log_probs: list[np.ndarray], only_prompts: bool
) -> Tree:
    """The trees of all groups; a step ends only where responses fork."""
    return stack_trees(
        [
            build_tree(prompt, _responses(group, values, only_prompts), lambda tokens: [len(tokens)])
            for prompt, group, values in zip(prompts, groups, _grouped(log_probs, groups))
        ]
    )


def _responses(group: list[np.ndarray], log_probs: list[np.ndarray], only_prompts: bool) -> list[Response]:
    """The responses as a tree: each forks off the earlier one with which it shares most."""
    found: list[Response] = []
    for index, tokens in enumerate(group):
        shared = [0 if only_prompts else _shared(tokens, other) for other in group[:index]]
        fork = max(shared, default=0)
        parent = shared.index(fork) if fork else -1
        found.append(Response(index, parent, fork, 0, tokens, log_probs[index], "stop", 0.0))
    return found


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that two responses have in common from the start, fewer than either has."""
    most = min(len(a), len(b)) - 1
    differ = np.flatnonzero(a[: max(most, 0)] != b[: max(most, 0)])
    return int(differ[0]) if len(differ) else max(most, 0)


def _values(name: str, given: Ragged | None, groups: list[list[np.ndarray]], default: float) -> list[np.ndarray]:
    """A value for each token of each response of all groups; one number of a response is that of all of its tokens."""
    if given is None:
        return [np.full(len(tokens), default) for group in groups for tokens in group]
    if list(map(len, given)) != list(map(len, groups)):
        raise ValueError(f"{name}: {list(map(len, given))} responses of the prompts, not {list(map(len, groups))}")
    found = []
    for q, (values, group) in enumerate(zip(given, groups)):
        for r, (value, tokens) in enumerate(zip(values, group)):
            value = np.asarray(value, np.float64)
            if value.shape not in ((), tokens.shape):
                raise ValueError(f"{name}: {value.size} values of response {r} of prompt {q}, not {len(tokens)}")
            found.append(np.broadcast_to(value, tokens.shape))
    return found


def _grouped(values: list[np.ndarray], groups: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    ends = np.cumsum([len(group) for group in groups])
    return [values[end - len(group) : end] for end, group in zip(ends, groups)]


def _places(tree: Tree, layout: Layout, groups: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(index, mask) of `PackedGroups`."""
    cells = unpack(np.arange(np.prod(layout.rows), dtype=np.int32).reshape(layout.rows), layout)
    places = [cells[q, tokens_of_response(tree, r, q)] for q, group in enumerate(groups) for r in range(len(group))]
    mask = np.arange(max(map(len, places))) < np.asarray(list(map(len, places)))[:, None]
    index = np.zeros(mask.shape, np.int32)
    index[mask] = np.concatenate(places)
    return index, mask


def _add_weights(
    rows: TokenBatch,
    index: np.ndarray,
    mask: np.ndarray,
    log_probs: list[np.ndarray],
    advantages: list[np.ndarray],
    weights: list[np.ndarray],
) -> None:
    """P, N and W of the rows."""
    cells, advantage, weight = index[mask], np.concatenate(advantages), np.concatenate(weights)
    counted = weight != 0
    apart = np.abs(np.concatenate(log_probs) - rows.log_probs.reshape(-1)[cells])[counted]
    if apart.max(initial=0) > AGREE:
        raise ValueError(
            f"log_probs: those of a token that responses share differ by {apart.max():.3g}, so that no one ratio is "
            "right for all: leave advantages out, and compute your own loss of gather_responses(log_probs, packed)"
        )
    for name, value in (
        ("positive", weight * np.maximum(advantage, 0)),
        ("negative", weight * np.minimum(advantage, 0)),
        ("weight", weight),
    ):
        total = np.bincount(cells, value, minlength=rows.tokens.size)
        getattr(rows, name)[...] = total.reshape(rows.tokens.shape)
