"""Advantages of responses that stand side by side: one number for all of a response's steps."""

from ibtpo.advantages.options import AdvantageOptions, leave_one_out, mean_deviation, normalised, spread_responses
from ibtpo.tree import Array, Tree, response_mask


def grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """GRPO: (R − mean)/(deviation + 1e-6) over the question's responses. Returns [Q, R, N].

    Reads `deviation`, which DeepSeekMath leaves open and verl and TRL take of n - 1, and `group_of_one`.
    Source: DeepSeekMath, arXiv 2402.03300, outcome supervision.
    """
    return spread_responses(tree, normalised(tree.rewards, response_mask(tree), options))


def dr_grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """Dr. GRPO: R − mean over the question's responses. Returns [Q, R, N].

    Source: arXiv 2503.20783.
    """
    mean, _ = mean_deviation(tree.rewards, response_mask(tree))
    return spread_responses(tree, tree.rewards - mean)


def rloo(tree: Tree, options: AdvantageOptions) -> Array:
    """RLOO: R − mean of the other responses' rewards. Returns [Q, R, N].

    Source: arXiv 2402.14740.
    """
    return spread_responses(tree, leave_one_out(tree))
