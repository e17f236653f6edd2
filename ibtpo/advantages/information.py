"""The advantage of IB-TPO, and the diagnostics of its balance that any method logs."""

from ibtpo.advantages.options import AdvantageOptions, group_is_uniform, mean_deviation, spread_nodes
from ibtpo.ib_score import eta1, ib_score, node_confidence, node_values
from ibtpo.tree import Array, Tree, namespace, response_mask


def ibtpo(tree: Tree, options: AdvantageOptions, shaped: Tree | None = None) -> Array:
    """IB-TPO: A(s) = A_GL(s) + λ·A_IB(s) for every step s. Returns [Q, R, N].

        A_GL(s) = (p̂(s) − p̂(q)) / std of the rewards of the tree's responses    (0 if std = 0)
        A_IB(s) = η1(s)·π(s)

    π comes from `tree.log_probs`, the sampling policy's; for the frozen reference's confidence
    pass ``tree.replace(log_probs=reference_log_probs)``, nothing else here reads them. Reads `deviation` (std).
    shaped: the tree with the rewards that A_GL compares, where those are not the graded ones.
    Source: arXiv 2605.28109.
    """
    outcome = _outcome(tree if shaped is None else shaped, options)
    return spread_nodes(tree, outcome + options.ib_weight * _information(tree, options))


def _outcome(tree: Tree, options: AdvantageOptions) -> Array:
    """A_GL, [Q, N]."""
    xp = namespace(tree.tokens)
    values = node_values(tree, value=options.score.value, root=options.score.root)
    _, std = mean_deviation(tree.rewards, response_mask(tree), options.deviation)
    return xp.where(std > 0, (values - values[:, :1]) / xp.where(std > 0, std, 1), 0)


def _information(tree: Tree, options: AdvantageOptions) -> Array:
    """A_IB, [Q, N]."""
    score = options.score
    values = node_values(tree, value=score.value, root=score.root)
    gain = eta1(values, tree, beta=score.beta, ratio_power=score.ratio_power)
    return gain * node_confidence(tree, confidence=score.confidence)


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
