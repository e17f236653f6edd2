"""Advantages of the other tree methods, as their authors' code has them.

Their nodes are segments between forks (`segments`): a node whose parent has one child takes its parent's advantage. The
lines named here are of the commits of docs/method.md, section 6.
"""

from ibtpo.advantages.options import (
    EPSILON,
    AdvantageOptions,
    leave_one_out,
    mean_deviation,
    normalised,
    spread_nodes,
    spread_of,
    spread_responses,
)
from ibtpo.advantages.segments import inherited, whole_segments
from ibtpo.advantages.tokens import agreeing
from ibtpo.ib_score import node_values
from ibtpo.tree import (
    Array,
    Tree,
    at_parent,
    children_mask,
    namespace,
    node_length,
    on_path,
    response_mask,
    sum_over_children,
)

NO_CHANGE = 1e-8  # TreeRL: a local term smaller than this is the one before
LEAST_SPREAD = 0.1  # TreeRPO: siblings whose values lie closer together are not trained


def treerl(tree: Tree, options: AdvantageOptions) -> Array:
    """TreeRL: A(n) = (S(n) − S(parent)) + S(n), S(n) = V(n)/sqrt(k(n)). Returns [Q, R, N].

    k(n): the responses through n. V(n): the mean of their leave-one-out rewards. A local term S(n) − S(parent) of 0 is
    that of the segment before. With value_center="tokens" the mean of V over the tokens of all responses is taken off V
    first: an option of the source, off in what it releases.
    Source: arXiv 2506.11902; THUDM/TreeRL, tree_node.py 359-463, parallel_mcts.py 1557-1670.
    """
    xp = namespace(tree.tokens)
    path = on_path(tree)
    count = xp.maximum(xp.sum(path, axis=1), 1).astype(tree.rewards.dtype)
    value = xp.sum(path * leave_one_out(tree)[:, :, None], axis=1) / count
    if options.value_center == "tokens":
        tokens = xp.where(tree.node_parent >= 0, count * node_length(tree), 0)
        total = xp.maximum(xp.sum(tokens, axis=1, keepdims=True), 1)
        value = value - xp.sum(value * tokens, axis=1, keepdims=True) / total
    value = value / xp.sqrt(count)
    local = value - at_parent(tree, value)
    node = xp.arange(local.shape[1])
    counts = (tree.node_parent >= 0) & ((xp.abs(local) >= NO_CHANGE) | (tree.node_parent == 0))
    above = (node[:, None] <= node) & (node < tree.node_end[:, :, None]) & counts[:, :, None]  # [Q, above, below]
    source = xp.max(xp.where(above, node[:, None], 0), axis=1)
    return spread_nodes(tree, xp.take_along_axis(local, source, axis=1) + value)


def treepo(tree: Tree, options: AdvantageOptions) -> Array:
    """TreePO: mean over depths d of R_r − mean R over the responses that share r's first d segments. [Q, R, N].

    Segments have `segment_tokens` tokens, whether or not the tree forked between them, so an unbranched stretch counts
    once for each. Groups of one are not counted, but for the question's own, where R itself is. The source whitens over
    the batch afterwards (`whiten`).
    Source: arXiv 2508.17445; multimodal-art-projection/TreePO, verl/trainer/ppo/core_algos.py 266-355.
    """
    xp = namespace(tree.tokens)
    path = on_path(tree)
    shared = xp.sum(path, axis=1) > 1
    times = xp.where(shared, whole_segments(tree, options.segment_tokens), 0)
    question = xp.arange(path.shape[2]) == 0
    times = xp.where(question, 1, times)[:, None, :] * path
    mean = xp.where(question & ~shared, 0, node_values(tree))
    deviation = tree.rewards[:, :, None] - mean[:, None, :]
    depths = xp.maximum(xp.sum(times, axis=2), 1).astype(tree.rewards.dtype)
    return spread_responses(tree, xp.sum(times * deviation, axis=2) / depths)


def tree_grpo(tree: Tree, options: AdvantageOptions) -> Array:
    """Tree-GRPO: GRPO over the question's responses + GRPO over the same tree's. [Q, R, N].

    There a question has several trees, one per initial response; here those are the subtrees of
    the root's children, so a response forked at the question counts as a tree of its own.
    Reads `deviation` and `group_of_one`, which are "sample" and "reward" in the source.
    Source: arXiv 2509.21240; AMAP-ML/Tree-GRPO, verl/trainer/ppo/core_algos.py 142-153, ray_trainer_ts.py 168-189.
    """
    xp = namespace(tree.tokens)
    mask = response_mask(tree)
    top = on_path(tree) & (tree.node_parent == 0)[:, None, :]  # [Q, R, N] the root's child above r
    same = xp.any(top[:, :, None, :] & top[:, None, :, :], axis=3)
    rewards = xp.broadcast_to(tree.rewards[:, None, :], same.shape)
    within = xp.sum(xp.where(xp.eye(same.shape[1]) > 0, normalised(rewards, same, options), 0), 2)
    return spread_responses(tree, normalised(tree.rewards, mask, options) + within)


def spo_tree(tree: Tree, options: AdvantageOptions) -> Array:
    """SPO-tree: A(n) = V(n) − V(parent), V the recursive mean over children. Returns [Q, R, N].

    The source trains each segment once, without those of advantage 0 and without tokens that the sampling policy gave
    0.9 or more, and whitens over the rest: loss.aggregation, loss.skip_zero_advantages, loss.max_old_probability and
    loss.whiten_advantages.
    Source: arXiv 2505.23564; AIFrameResearch/SPO, tree_episode_generator.py 129-159, ppo_trainer.py 820-827, 1057-1111.
    """
    value = node_values(tree, value="backup")
    return spread_nodes(tree, inherited(tree, value - at_parent(tree, value)))


def treerpo(tree: Tree, options: AdvantageOptions) -> Array:
    """TreeRPO: (V(n) − mean)/(deviation + 1e-6) among n and its siblings. Returns [Q, R, N].

    V is the recursive mean over children; 0 where the siblings' values lie within 0.1, as that of an only child does.
    Reads `deviation`, "bernoulli" in the source: the divisor is μ(1 − μ), and no root is taken.
    Source: arXiv 2506.05183, by way of Umang-GoyalFP/Rl-LRMS, which is built on its code: ray_trainer.py 787-847.
    """
    xp = namespace(tree.tokens)
    value = node_values(tree, value="backup")
    count = xp.maximum(sum_over_children(tree, xp.ones_like(value)), 1)
    mean = sum_over_children(tree, value) / count
    from_mean = value - at_parent(tree, mean)
    spread = spread_of(mean, sum_over_children(tree, from_mean**2), count, options.deviation)
    siblings = children_mask(tree)  # [Q, parent, child]
    high = xp.max(xp.where(siblings, value[:, None, :], -xp.inf), axis=2)
    low = xp.min(xp.where(siblings, value[:, None, :], xp.inf), axis=2)
    apart = high - low >= LEAST_SPREAD
    advantage = xp.where(at_parent(tree, apart), from_mean / (at_parent(tree, spread) + EPSILON), 0)
    return spread_nodes(tree, inherited(tree, advantage))


def treeadv(tree: Tree, options: AdvantageOptions) -> Array:
    """TreeAdv: the mean over the responses through n of their GRPO advantages. Returns [Q, R, N].

    Reads `deviation`. The mean over leaves is ours: of the source only digests were to be had, which say that a segment
    takes the aggregate of the leaves below it. Source: arXiv 2601.03703.
    """
    xp = namespace(tree.tokens)
    path = on_path(tree).astype(tree.rewards.dtype)
    advantage = normalised(tree.rewards, response_mask(tree), options)
    count = xp.maximum(xp.sum(path, axis=1), 1)
    return spread_nodes(tree, xp.sum(path * advantage[:, :, None], axis=1) / count)


def tempo(tree: Tree, options: AdvantageOptions) -> Array:
    """TEMPO: (R_r − mean + V(n) − V(parent))/(deviation + 1e-6). Returns [Q, R, N].

    V: the mean reward of the responses that begin with the same tokens, whoever sampled them. For nodes that are tokens
    (`tokens.by_token`): the term V(n) − V(parent) belongs to the token at which responses part. Reads `deviation`,
    "sample" in the source.
    Source: arXiv 2509.18314; fatebreaker/tempo, verl/trainer/ppo/core_algos.py 261-352.
    """
    xp = namespace(tree.tokens)
    mean, spread = mean_deviation(tree.rewards, response_mask(tree), options.deviation)
    value = agreeing(tree, tree.rewards) / xp.maximum(agreeing(tree), 1)
    value = xp.where(xp.arange(value.shape[2]) == 0, mean[:, :, None], value)
    parent = xp.broadcast_to(xp.maximum(tree.node_parent, 0)[:, None, :], value.shape)
    step = value - xp.take_along_axis(value, parent, axis=2)
    advantage = (tree.rewards - mean)[:, :, None] + step
    advantage = xp.where(spread[:, :, None] > 0, advantage / (spread[:, :, None] + EPSILON), 0)
    return xp.where(on_path(tree) & (tree.node_parent >= 0)[:, None, :], advantage, 0)
