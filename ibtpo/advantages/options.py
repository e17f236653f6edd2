"""The options of the advantages, and the arithmetic that they share. Q questions, R responses, N nodes."""

from dataclasses import dataclass, field, fields
from typing import Any

from ibtpo import choices
from ibtpo.ib_score import ScoreOptions
from ibtpo.tree import Array, Tree, namespace, on_path, response_mask

EPSILON = 1e-6  # added to the deviation by the GRPO family


@dataclass(frozen=True)
class AdvantageOptions:
    """Options of the advantages; each method reads those that its docstring names.

    Attributes:
      score: of the IB-Score, whose p̂, η1 and π the advantage of IB-TPO takes.
      ib_weight: λ, the weight of A_IB.
      deviation: "population", "sample" (n - 1) or "bernoulli", see `mean_deviation`.
      group_of_one: the normalised value of a group's only member: "zero", or its "reward".
      value_center: "none" or "tokens", see `trees.treerl`.
      segment_tokens: segment length of `trees.treepo`.
    """

    score: ScoreOptions = field(default_factory=ScoreOptions)
    ib_weight: float = 0.1
    deviation: str = "population"
    group_of_one: str = "zero"
    value_center: str = "none"
    segment_tokens: int = 512

    def __post_init__(self):
        for name, allowed in (
            ("deviation", choices.DEVIATIONS),
            ("group_of_one", choices.GROUPS_OF_ONE),
            ("value_center", choices.VALUE_CENTERS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(map(repr, allowed))}")

    @classmethod
    def from_config(cls, config: Any) -> "AdvantageOptions":
        """Reads the options of the IB-Score, tree.segment_tokens, and the keys of these names in `loss`."""
        of_loss = {f.name: config.loss[f.name] for f in fields(cls) if f.name in config.loss}
        return cls(score=ScoreOptions.from_config(config), segment_tokens=config.tree.segment_tokens, **of_loss)


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


def mean_deviation(x: Array, mask: Array, deviation: str = "population") -> tuple[Array, Array]:
    """Mean and deviation over the last axis where mask, that axis kept.

    `deviation`:
      "population": the standard deviation, of the count. "sample": of the count less one.
      "bernoulli": μ(1 − μ), the variance of one draw with probability μ; x lies in [0, 1] (TreeRPO's divisor).

    It is exactly 0 where all entries are equal: the rounding of their mean must not pass for a spread, since it is
    about to be divided by.
    """
    xp = namespace(x)
    count = xp.maximum(xp.sum(mask, axis=-1, keepdims=True), 1).astype(x.dtype)
    mean = xp.sum(xp.where(mask, x, 0), axis=-1, keepdims=True) / count
    low = xp.min(xp.where(mask, x, xp.inf), axis=-1, keepdims=True)
    high = xp.max(xp.where(mask, x, -xp.inf), axis=-1, keepdims=True)
    spread = spread_of(mean, xp.sum(xp.where(mask, (x - mean) ** 2, 0), axis=-1, keepdims=True), count, deviation)
    return mean, xp.where(high > low, spread, 0)


def spread_of(mean: Array, squares: Array, count: Array, deviation: str) -> Array:
    """The deviation of a group from its mean, the sum of the squared differences from it, and its count."""
    xp = namespace(mean)
    if deviation == "bernoulli":
        return xp.maximum(mean * (1 - mean), 0)
    return xp.sqrt(squares / xp.maximum(count - (deviation == "sample"), 1))


def normalised(x: Array, mask: Array, options: AdvantageOptions) -> Array:
    """(x − mean)/(deviation + ε) over the last axis where mask; 0 elsewhere and where all are equal.

    With group_of_one="reward" the only member of a group is x/(1 + ε), as of mean 0 and deviation 1.
    """
    xp = namespace(x)
    mean, spread = mean_deviation(x, mask, options.deviation)
    result = xp.where(mask & (spread > 0), (x - mean) / (spread + EPSILON), 0)
    if options.group_of_one == "reward":
        alone = mask & (xp.sum(mask, axis=-1, keepdims=True) == 1)
        result = xp.where(alone, x / (1 + EPSILON), result)
    return result


def leave_one_out(tree: Tree) -> Array:
    """[Q, R]: R − mean of the question's other rewards; 0 on padding and for a lone response."""
    xp = namespace(tree.rewards)
    mask = response_mask(tree)
    count = xp.sum(mask, axis=1, keepdims=True).astype(tree.rewards.dtype)
    mean, _ = mean_deviation(tree.rewards, mask)
    return xp.where(mask & (count > 1), (tree.rewards - mean) * count / xp.maximum(count - 1, 1), 0)


def group_is_uniform(tree: Tree) -> Array:
    """[Q] bool: all rewards of the question's responses are equal (so A_GL is 0)."""
    xp = namespace(tree.rewards)
    mask = response_mask(tree)
    high = xp.max(xp.where(mask, tree.rewards, -xp.inf), axis=1)
    return high <= xp.min(xp.where(mask, tree.rewards, xp.inf), axis=1)


def overlong_penalty(tree: Tree, *, max_new_tokens: int, tokens: float, penalty: float) -> Array:
    """The values added to the rewards, [Q, R]: penalty * min(0, (max_new_tokens - tokens - length) / tokens).

    0 for responses up to max_new_tokens - tokens long, -penalty for the longest, a line between; 0 on padding.
    Source: DAPO, arXiv 2503.14476, eq. 13.
    """
    xp = namespace(tree.rewards)
    excess = (max_new_tokens - tokens - tree.response_length).astype(tree.rewards.dtype) / tokens
    return xp.where(response_mask(tree), penalty * xp.minimum(excess, 0), 0).astype(tree.rewards.dtype)
