"""Advantages over a tree: one function per method, one signature.

Each takes (tree, options) and returns A [Q, R, N]: the advantage that response r gives node n of
its path; 0 off the path, at the root (the question is not the policy's doing) and on padding.
Methods whose advantage belongs to the node give every response through it the same number.
Standard deviations are over the population (divided by the count, not the count less one).

Q questions, R responses, N nodes. Sources: docs/method.md for IB-TPO; the papers named in each
docstring for the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ibtpo import choices
from ibtpo.ib_score import ScoreOptions, eta1, ib_score, node_confidence, node_values
from ibtpo.tree import (
    Array,
    Tree,
    at_parent,
    namespace,
    node_length,
    on_path,
    response_mask,
    sum_over_children,
)

EPSILON = 1e-6  # added to the standard deviation by the GRPO family


@dataclass(frozen=True)
class AdvantageOptions:
    """Options of the advantages; the flat and the other tree methods read none of them.

    Attributes:
      score: of the IB-Score, whose p̂, η1 and π the advantage of IB-TPO takes.
      ib_weight: λ, the weight of A_IB.
    """

    score: ScoreOptions = field(default_factory=ScoreOptions)
    ib_weight: float = 0.1

    @classmethod
    def from_config(cls, config: Any) -> "AdvantageOptions":
        """Reads the options of the IB-Score and loss.ib_weight."""
        return cls(score=ScoreOptions.from_config(config), ib_weight=config.loss.ib_weight)


def overlong_penalty(tree: Tree, *, max_new_tokens: int, tokens: float, penalty: float) -> Array:
    """The values added to the rewards, [Q, R]: penalty * min(0, (max_new_tokens - tokens - length) / tokens).

    0 for responses up to max_new_tokens - tokens long, -penalty for the longest, a line between; 0 on padding.
    Source: DAPO, arXiv 2503.14476, eq. 13.
    """
    xp = namespace(tree.rewards)
    excess = (max_new_tokens - tokens - tree.response_length).astype(tree.rewards.dtype) / tokens
    return xp.where(response_mask(tree), penalty * xp.minimum(excess, 0), 0).astype(tree.rewards.dtype)


def spread_nodes(tree: Tree, advantage: Array) -> Array:
    """[Q, N] -> [Q, R, N] on every path, the root left out."""
    xp = namespace(advantage)
    path = on_path(tree) & (tree.node_parent >= 0)[:, None, :]
    return xp.where(path, advantage[:, None, :], 0)


def spread_responses(tree: Tree, advantage: Array) -> Array:
    """[Q, R] -> [Q, R, N] on every path, the root left out."""
    xp = namespace(advantage)
    path = on_path(tree) & (tree.node_parent >= 0)[:, None, :]
    return xp.where(path, advantage[:, :, None], 0)


def mean_std(x: Array, mask: Array) -> tuple[Array, Array]:
    """Mean and population standard deviation over the last axis where mask, that axis kept.

    The deviation is exactly 0 where all entries are equal: the rounding of their mean must not
    pass for a spread, since it is about to be divided by.
    """
    xp = namespace(x)
    count = xp.maximum(xp.sum(mask, axis=-1, keepdims=True), 1).astype(x.dtype)
    mean = xp.sum(xp.where(mask, x, 0), axis=-1, keepdims=True) / count
    variance = xp.sum(xp.where(mask, (x - mean) ** 2, 0), axis=-1, keepdims=True) / count
    low = xp.min(xp.where(mask, x, xp.inf), axis=-1, keepdims=True)
    high = xp.max(xp.where(mask, x, -xp.inf), axis=-1, keepdims=True)
    return mean, xp.where(high > low, xp.sqrt(variance), 0)


def _group_normalised(x: Array, mask: Array) -> Array:
    """(x − mean)/(std + ε) over the last axis where mask; 0 elsewhere and where all are equal."""
    xp = namespace(x)
    mean, std = mean_std(x, mask)
    return xp.where(mask & (std > 0), (x - mean) / (std + EPSILON), 0)


def ibtpo(tree: Tree, options: AdvantageOptions, shaped: Tree | None = None) -> Array:
    """IB-TPO: A(s) = A_GL(s) + λ·A_IB(s) for every step s. Returns [Q, R, N].

        A_GL(s) = (p̂(s) − p̂(q)) / std of the rewards of the tree's responses    (0 if std = 0)
        A_IB(s) = η1(s)·π(s)

    π comes from `tree.log_probs`, the sampling policy's; for the frozen reference's confidence
    pass ``tree.replace(log_probs=reference_log_probs)``, nothing else here reads them.
    shaped: the tree with the rewards that A_GL compares, where those are not the graded ones.
    Source: arXiv 2605.28109.
    """
    outcome = _outcome(tree if shaped is None else shaped, options)
    return spread_nodes(tree, outcome + options.ib_weight * _information(tree, options))


def _outcome(tree: Tree, options: AdvantageOptions) -> Array:
    """A_GL, [Q, N]."""
    xp = namespace(tree.tokens)
    values = node_values(tree, value=options.score.value, root=options.score.root)
    _, std = mean_std(tree.rewards, response_mask(tree))
    return xp.where(std > 0, (values - values[:, :1]) / xp.where(std > 0, std, 1), 0)


def _information(tree: Tree, options: AdvantageOptions) -> Array:
    """A_IB, [Q, N]."""
    score = options.score
    values = node_values(tree, value=score.value, root=score.root)
    gain = eta1(values, tree, beta=score.beta, ratio_power=score.ratio_power)
    return gain * node_confidence(tree, confidence=score.confidence)


def grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """GRPO: (R − mean)/(std + 1e-6) over the question's responses. Returns [Q, R, N].

    Source: DeepSeekMath, arXiv 2402.03300, outcome supervision.
    """
    return spread_responses(tree, _group_normalised(tree.rewards, response_mask(tree)))


def dr_grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """Dr. GRPO: R − mean over the question's responses. Returns [Q, R, N].

    Source: arXiv 2503.20783.
    """
    mean, _ = mean_std(tree.rewards, response_mask(tree))
    return spread_responses(tree, tree.rewards - mean)


def _leave_one_out(tree: Tree) -> Array:
    """[Q, R]: R − mean of the question's other rewards; 0 on padding and for a lone response."""
    xp = namespace(tree.rewards)
    mask = response_mask(tree)
    count = xp.sum(mask, axis=1, keepdims=True).astype(tree.rewards.dtype)
    mean, _ = mean_std(tree.rewards, mask)
    return xp.where(mask & (count > 1), (tree.rewards - mean) * count / xp.maximum(count - 1, 1), 0)


def rloo(tree: Tree, options: AdvantageOptions) -> Array:
    """RLOO: R − mean of the other responses' rewards. Returns [Q, R, N].

    Source: arXiv 2402.14740.
    """
    return spread_responses(tree, _leave_one_out(tree))


def treerl(tree: Tree, options: AdvantageOptions) -> Array:
    """TreeRL: A(n) = (V(n) − V(parent)) + V(n). Returns [Q, R, N].

    With l_r the leave-one-out reward and k(n) the responses through n,
    V(n) = Σ l_r / sqrt(k(n)) / k(n). Source: arXiv 2506.11902.
    """
    xp = namespace(tree.tokens)
    path = on_path(tree).astype(tree.rewards.dtype)
    count = xp.maximum(xp.sum(path, axis=1), 1)
    value = xp.sum(path * _leave_one_out(tree)[:, :, None], axis=1) / (count * xp.sqrt(count))
    return spread_nodes(tree, 2 * value - at_parent(tree, value))


def treepo(tree: Tree, options: AdvantageOptions) -> Array:
    """TreePO: mean over the ancestors n of r of (R_r − mean R through n). Returns [Q, R, N].

    Ancestors that only r runs through are skipped, the question never. Depth counts nodes of the
    tree. The source whitens over the batch afterwards (`whiten`). Source: arXiv 2508.17445.
    """
    xp = namespace(tree.tokens)
    path = on_path(tree)
    shared = xp.sum(path, axis=1) > 1
    counted = path & (shared | (xp.arange(path.shape[2]) == 0))[:, None, :]
    deviation = tree.rewards[:, :, None] - node_values(tree)[:, None, :]
    depth = xp.maximum(xp.sum(counted, axis=2), 1).astype(tree.rewards.dtype)
    return spread_responses(tree, xp.sum(xp.where(counted, deviation, 0), axis=2) / depth)


def tree_grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """Tree-GRPO: GRPO over the question's responses + GRPO over the same tree's. [Q, R, N].

    There a question has several trees, one per initial response; here those are the subtrees of
    the root's children, so a response forked at the question counts as a tree of its own.
    Source: arXiv 2509.21240.
    """
    xp = namespace(tree.tokens)
    mask = response_mask(tree)
    top = on_path(tree) & (tree.node_parent == 0)[:, None, :]  # [Q, R, N] the root's child above r
    same = xp.any(top[:, :, None, :] & top[:, None, :, :], axis=3)
    rewards = xp.broadcast_to(tree.rewards[:, None, :], same.shape)
    within = xp.sum(xp.where(xp.eye(same.shape[1]) > 0, _group_normalised(rewards, same), 0), 2)
    return spread_responses(tree, _group_normalised(tree.rewards, mask) + within)


def spo_tree(tree: Tree, options: AdvantageOptions) -> Array:
    """SPO-tree: A(n) = V(n) − V(parent), V the recursive mean over children. Returns [Q, R, N].

    The source also drops tokens that the sampling policy gave 0.9 or more; that is a matter of
    token weights. Source: arXiv 2505.23564.
    """
    value = node_values(tree, value="backup")
    return spread_nodes(tree, value - at_parent(tree, value))


def treerpo(tree: Tree, options: AdvantageOptions) -> Array:
    """TreeRPO: (V(n) − mean)/(std + 1e-6) among n and its siblings. Returns [Q, R, N].

    V is the recursive mean over children; 0 for an only child or equal siblings.
    Source: arXiv 2506.05183.
    """
    xp = namespace(tree.tokens)
    value = node_values(tree, value="backup")
    count = xp.maximum(sum_over_children(tree, xp.ones_like(value)), 1)
    deviation = value - at_parent(tree, sum_over_children(tree, value) / count)
    std = at_parent(tree, xp.sqrt(sum_over_children(tree, deviation**2) / count))
    # Equal siblings differ from their mean by rounding alone, which is far below ε.
    rounding = 8 * xp.finfo(value.dtype).eps * xp.maximum(xp.abs(value), 1)
    return spread_nodes(tree, xp.where(std > rounding, deviation / (std + EPSILON), 0))


ADVANTAGES: dict[str, Callable[..., Array]] = {name: globals()[name] for name in choices.ADVANTAGES}


def whiten(tree: Tree, advantages: Array, mask: Array | None = None) -> Array:
    """(A − mean)/(std + 1e-6) over the generated tokens of all responses of the batch, [Q, R, N].

    A shared token counts once per response through it. 0 off the path, and where all are equal.

    Args:
      advantages: [Q, R, N].
      mask: bool [Q, R], the responses that are counted and whose advantages are returned; the others' are 0.
    """
    xp = namespace(tree.rewards)
    here = on_path(tree) & (tree.node_parent >= 0)[:, None, :]
    here = here if mask is None else here & mask[:, :, None]
    tokens = xp.where(here, node_length(tree)[:, None, :], 0).astype(advantages.dtype)
    count = xp.maximum(xp.sum(tokens), 1)
    centred = advantages - xp.sum(tokens * advantages) / count
    std = xp.sqrt(xp.sum(tokens * centred**2) / count)
    # Equal advantages differ from their mean by rounding alone, which must not be divided by.
    rounding = 8 * xp.finfo(advantages.dtype).eps * xp.maximum(xp.max(xp.abs(advantages)), 1)
    return xp.where(here & (std > rounding), centred / (std + EPSILON), 0)


def compute_advantages(name: str, tree: Tree, options: AdvantageOptions, shaping: Array | None = None) -> Array:
    """The advantages of method `name`, a key of ADVANTAGES, [Q, R, N]; `shaping` [Q, R] is added to the rewards.

    Shaping of a reward (terms, the overlong penalty) belongs to the outcomes that a method compares. It says nothing
    about the answer, so the ratios p̂(s)/p̂(s_p) of IB-TPO's A_IB are made of the rewards as they were graded: a shaped
    value is no probability, and one just above 0 would make the ratio anything.
    """
    if shaping is None:
        return ADVANTAGES[name](tree, options)
    shaped = replace(tree, rewards=tree.rewards + shaping)
    return ibtpo(tree, options, shaped) if name == "ibtpo" else ADVANTAGES[name](shaped, options)


def group_is_uniform(tree: Tree) -> Array:
    """[Q] bool: all rewards of the question's responses are equal (so A_GL is 0)."""
    xp = namespace(tree.rewards)
    mask = response_mask(tree)
    high = xp.max(xp.where(mask, tree.rewards, -xp.inf), axis=1)
    return high <= xp.min(xp.where(mask, tree.rewards, xp.inf), axis=1)


def diagnostics(tree: Tree, options: AdvantageOptions) -> dict[str, tuple[Array, Array]]:
    """The balance of exploring and exploiting, for any method; name -> (sum, weight) over Q.

    ib_score: J of nodes with children; ib_score_root: J of the question.
    cov: Cov(η1, η2) of nodes with two children or more; cov_root: of the question. Independent
      responses branch at the question alone, so compare methods by the `_root` pair.
    eff_rate: share of groups whose rewards are not all equal.
    avg_rate: mean reward of all responses, which guided branching biases; avg_rate_initial: of
      the unguided ones alone. Read them side by side.
    """
    xp = namespace(tree.tokens)
    score = ib_score(tree, options.score)
    mask = response_mask(tree)

    def over(x, where):
        where = where.astype(tree.rewards.dtype)
        return xp.sum(x * where), xp.sum(where)

    return {
        "ib_score": over(score.J, score.has_children),
        "ib_score_root": over(score.J[:, 0], score.has_children[:, 0]),
        "cov": over(score.cov, score.num_children > 1),
        "cov_root": over(score.cov[:, 0], score.num_children[:, 0] > 1),
        "eff_rate": over(~group_is_uniform(tree), xp.any(mask, axis=1)),
        "avg_rate": over(tree.rewards, mask),
        "avg_rate_initial": over(tree.rewards, mask & (tree.response_round == 0)),
    }
