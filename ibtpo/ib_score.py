"""The IB-Score: how much information the next step carries against how sure the policy is of it.

For a step s with parent s_p in a tree sampled from the policy (docs/method.md derives this):

    p̂(s)    estimate that a response continuing from s ends correct       `node_values`
    η1(s)   = (p̂(s) / p̂(s_p))^k − (1 + 1/β),  k = ratio_power             `eta1`
    η2(s)   = π(s), the policy's confidence in s given its prefix          `node_confidence`
    J(s_p)  = 1 + β · mean over sampled children s of s_p of η1(s)·η2(s)   `ib_score`, `child_weights`

Everything is a pure function of NumPy or JAX arrays. Q questions, R responses, N nodes, T tokens.
Source: Jiang et al., arXiv 2605.28109; choices it leaves open are options named here.
"""

from dataclasses import dataclass, fields
from typing import Any

import flax.struct

from ibtpo import choices
from ibtpo.tree import (
    Array,
    Tree,
    at_parent,
    namespace,
    node_length,
    node_mask,
    on_path,
    response_mask,
    sum_by_node,
    sum_over_children,
)

# A parent's p̂ below this says nothing, as 0 does. One success in a million responses is far below what a group of
# responses can show, and the ratio of a p̂ ≤ 1 to it is 1e6 at most: η1 (1e12 for ratio_power 2), its square, which
# whitening sums over the tokens of a batch, and β times it stay far inside float32, which ends at 3e38.
SMALLEST_VALUE = 1e-6


@dataclass(frozen=True)
class ScoreOptions:
    """The choices that the IB-Score leaves open.

    Attributes:
      beta: β, weight of the information term of the bottleneck.
      ratio_power: 1 or 2, see `eta1`.
      confidence: "geometric_mean" or "joint", see `node_confidence`.
      value: "leaf_mean" or "backup", see `node_values`; of the advantages.
      branch_value: the same, of the score J that chooses where to branch and of its diagnostics.
      root: "all" or "initial", likewise; of both.
      child_weight: "responses" or "uniform", see `child_weights`.
    """

    beta: float = 5.0
    ratio_power: int = 1
    confidence: str = "geometric_mean"
    value: str = "leaf_mean"
    branch_value: str = "leaf_mean"
    root: str = "all"
    child_weight: str = "responses"

    @classmethod
    def from_config(cls, config: Any) -> "ScoreOptions":
        """Reads the keys of these names in the `tree` section of a config."""
        return cls(**{field.name: config.tree[field.name] for field in fields(cls)})


@flax.struct.dataclass
class IBScore:
    """IB-Score of every node and its factors; all [Q, N].

    Attributes:
      J: score of a node that has children, else 0.
      eta1: information gain of a step; 0 at the root and on padding.
      eta2: confidence of a step; 1 at the root and on padding.
      cov: covariance of η1 and η2 over a node's children (population, by their weights; 0 for fewer than two).
      has_children: bool.
      num_children: int32.
      values: p̂ of `branch_value`; 0 on padding.
    """

    J: Array
    eta1: Array
    eta2: Array
    cov: Array
    has_children: Array
    num_children: Array
    values: Array


def _choice(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")


def node_values(tree: Tree, *, value: str = "leaf_mean", root: str = "all") -> Array:
    """p̂(a*|node), [Q, N]; 0 on padding. Rewards are taken to lie in [0, 1].

    `value`:
      "leaf_mean": mean reward of all responses through the node (the paper's reward density).
      "backup": mean over children of their backups, a leaf's being its reward; written without
        recursion as Σ_r R_r · Π 1/children over the nodes from this one down to r's leaf.
    `root`:
      "all": the root's estimate is formed like any other node's.
      "initial": the root's is the mean over the unguided responses (round 0) alone, which no
        choice of where to branch has biased.

    Raises:
      ValueError: unknown `value` or `root`.
    """
    _choice("value", value, choices.VALUES)
    _choice("root", root, choices.ROOTS)
    xp = namespace(tree.tokens)
    path = on_path(tree)
    dtype = tree.rewards.dtype
    if value == "leaf_mean":
        weight = path.astype(dtype)
        count = xp.sum(weight, axis=1)
    else:
        # fan[n] = product of the child counts of n's proper ancestors; the share that leaf r has
        # in n's backup is fan[n] / fan[leaf]. Products of small integers: exact.
        node = xp.arange(tree.node_end.shape[1])
        ancestor = (node[:, None] < node) & (node < tree.node_end[:, :, None])  # [Q, above, below]
        children = sum_over_children(tree, xp.ones(tree.node_end.shape, dtype))
        fan = xp.prod(xp.where(ancestor, children[:, :, None], 1), axis=1)
        leaf_fan = xp.take_along_axis(fan, xp.maximum(tree.response_node, 0), axis=1)
        weight = xp.where(path, fan[:, None, :] / leaf_fan[:, :, None], 0).astype(dtype)
        count = xp.ones(tree.node_end.shape, dtype)
    total = xp.sum(weight * tree.rewards[:, :, None], axis=1)
    values = total / xp.maximum(count, 1)
    if root == "initial":
        initial = (response_mask(tree) & (tree.response_round == 0)).astype(dtype)
        unguided = xp.sum(initial * tree.rewards, axis=1) / xp.maximum(xp.sum(initial, axis=1), 1)
        first = xp.arange(tree.node_end.shape[1]) == 0
        values = xp.where(first, unguided[:, None], values)
    return values


def node_confidence(tree: Tree, *, confidence: str = "geometric_mean") -> Array:
    """η2 = π(node | its prefix) from `tree.log_probs`, [Q, N]; 1 at the root and on padding.

    "geometric_mean": exp(mean log-probability of the node's tokens), comparable across lengths.
    "joint": exp(sum), the probability of the step itself.

    Raises:
      ValueError: unknown `confidence`.
    """
    _choice("confidence", confidence, choices.CONFIDENCES)
    xp = namespace(tree.tokens)
    log_prob = sum_by_node(tree, tree.log_probs)
    if confidence == "geometric_mean":
        log_prob = log_prob / xp.maximum(node_length(tree), 1).astype(log_prob.dtype)
    return xp.where(tree.node_parent >= 0, xp.exp(log_prob), 1)


def eta1(values: Array, tree: Tree, *, beta: float, ratio_power: int = 1) -> Array:
    """η1 = (p̂(s)/p̂(s_p))^ratio_power − (1 + 1/β), [Q, N]; 0 at the root and on padding.

    Where the parent's estimate is below `SMALLEST_VALUE`, as at 0, the ratio says nothing and is taken as 1.
    `ratio_power` 1 is the printed form, 2 the strict conditional entropy.

    Raises:
      ValueError: ratio_power other than 1 or 2, or beta not positive.
    """
    _choice("ratio_power", ratio_power, choices.RATIO_POWERS)
    if isinstance(beta, (int, float)) and not beta > 0:
        raise ValueError(f"beta={beta}: the IB trade-off is positive (5 in the paper)")
    xp = namespace(values)
    parent = at_parent(tree, values)
    known = parent >= SMALLEST_VALUE
    ratio = xp.where(known, values / xp.where(known, parent, 1), 1)
    return xp.where(tree.node_parent >= 0, ratio**ratio_power - (1 + 1 / beta), 0)


def child_weights(tree: Tree, *, child_weight: str = "responses") -> Array:
    """The weight of each node in a mean over its parent's children, [Q, N]; they sum to 1 over the children of a node.

    "responses": the share of its parent's responses that run through it. Each response is a sample; a child that was
      branched stands for several. Then mean p̂(s) = p̂(s_p) for leaf means, hence J = 1 + β·Cov(η1, η2) − E[η2].
    "uniform": children count alike, as the formula is printed. For `backup` values mean p̂(s) = p̂(s_p) here.

    0 at the root and on padding.

    Raises:
      ValueError: unknown `child_weight`.
    """
    _choice("child_weight", child_weight, choices.CHILD_WEIGHTS)
    xp = namespace(tree.tokens)
    dtype = tree.rewards.dtype
    if child_weight == "responses":
        weight = xp.sum(on_path(tree), axis=1).astype(dtype)
    else:
        weight = xp.ones(tree.node_parent.shape, dtype)
    total = at_parent(tree, sum_over_children(tree, weight))
    return xp.where(tree.node_parent >= 0, weight / xp.where(total > 0, total, 1), 0)


def covariance(eta1: Array, eta2: Array, tree: Tree, weight: Array) -> Array:
    """Cov(η1, η2) over each node's children, [Q, N]: weighted mean of the product of deviations from weighted means.

    Population form (weights sum to 1), so that it is exactly the term of
    J = 1 + β·(Cov(η1, η2) + mean η1 · mean η2). 0 for fewer than two children.

    Args:
      weight: of `child_weights`.
    """

    def centred(x):
        return x - at_parent(tree, sum_over_children(tree, weight * x))

    return sum_over_children(tree, weight * centred(eta1) * centred(eta2))


def ib_score(tree: Tree, options: ScoreOptions = ScoreOptions(), values: Array | None = None) -> IBScore:
    """J(s_p) = 1 + β · mean over the sampled children s of s_p of η1(s)·η2(s), weighted by `child_weights`.

    A single child has p̂(s) = p̂(s_p), ratio 1, hence J = 1 − η2 (unless root="initial" gives the
    root an estimate of its own). High J: the node's continuations still differ in their content
    about the answer, or the policy is unsure how to go on.

    Args:
      values: p(a*|node), [Q, N], in place of the estimate p̂, where they are known (`benchmarks/exact.py`).

    Raises:
      ValueError: unknown option value, see the functions this is made of.
    """
    xp = namespace(tree.tokens)
    if values is None:
        values = node_values(tree, value=options.branch_value, root=options.root)
    gain = eta1(values, tree, beta=options.beta, ratio_power=options.ratio_power)
    sure = node_confidence(tree, confidence=options.confidence)
    weight = child_weights(tree, child_weight=options.child_weight)
    num_children = sum_over_children(tree, xp.ones(tree.node_parent.shape, xp.int32))
    has_children = num_children > 0
    mean = sum_over_children(tree, weight * gain * sure)
    return IBScore(
        J=xp.where(has_children & node_mask(tree), 1 + options.beta * mean, 0),
        eta1=gain,
        eta2=sure,
        cov=covariance(gain, sure, tree, weight),
        has_children=has_children,
        num_children=num_children,
        values=values,
    )
