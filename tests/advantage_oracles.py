"""Advantages and token weights, computed the obvious way from the list of responses.

Plain Python and float64, written from the definitions alone, to compare the library with. Every advantage oracle
returns f, where f(r, p) is the advantage of generated token p (counted from 0) of response r.

Two responses share token p if it is the same sampled token; they agree on it if only its value is the same.
"""

import dataclasses
import math

import numpy as np

from tests.tree_cases import nested, obvious_confidence, obvious_values, paths, token_owner

EPS = 1e-6


# Groups of numbers


def mean(values):
    return sum(values) / len(values)


def spread(values, deviation):
    """Deviation of a group; 0 where all its values are equal."""
    if max(values) == min(values):
        return 0.0
    if deviation == "population":
        return float(np.std(values))
    if deviation == "sample":
        return float(np.std(values, ddof=1))  # unequal values: there are at least two
    if deviation == "bernoulli":
        return max(0.0, mean(values) * (1 - mean(values)))
    raise ValueError(deviation)


def normalised(value, group, deviation, group_of_one="zero"):
    """(value - mean) / (deviation + EPS); 0 where the group does not vary."""
    if group_of_one not in ("zero", "reward"):
        raise ValueError(group_of_one)
    if len(group) == 1:
        return value / (1 + EPS) if group_of_one == "reward" else 0.0
    width = spread(group, deviation)
    return (value - mean(group)) / (width + EPS) if width > 0 else 0.0


def rewards_of(responses):
    return [float(r.reward) for r in responses]


# Who shares what


def shares(responses, r, k, p):
    """Whether response k contains the very token that response r has at position p."""
    return len(responses[k].tokens) > p and token_owner(responses, k, p) == token_owner(responses, r, p)


def sharing(responses, r, p):
    """All responses through token p of response r, r included."""
    return [k for k in range(len(responses)) if shares(responses, r, k, p)]


def agreeing(responses, r, m):
    """All responses whose first m tokens have the values of response r's first m, r included."""
    start = list(responses[r].tokens[:m])
    return [k.index for k in responses if len(k.tokens) >= m and list(k.tokens[:m]) == start]


# Segments: paths cut only where some response forked. None is the root, the question.


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens begin .. end - 1, all sampled by response `owner`."""

    owner: int
    begin: int
    end: int


def segment_paths(responses):
    """The path of every response as a list of Segments, the root left out."""
    fork_places = set()  # (response that sampled the token before the fork, position of the fork)
    for r in responses:
        if r.fork > 0:
            fork_places.add((token_owner(responses, r.parent, r.fork - 1), r.fork))
    result = []
    for r in responses:
        path, begin = [], 0
        for end in range(1, len(r.tokens) + 1):
            owner = token_owner(responses, r.index, end - 1)
            if (owner, end) in fork_places or end == len(r.tokens):
                path.append(Segment(owner, begin, end))
                begin = end
        result.append(path)
    return result


def segment_tree(responses):
    """(children, through) of every Segment and of None, the root."""
    children, through = {None: []}, {None: []}
    for r, path in enumerate(segment_paths(responses)):
        through[None].append(r)
        above = None
        for n in path:
            if n not in through:
                through[n], children[n] = [], []
                children[above].append(n)
            through[n].append(r)
            above = n
    return children, through


def segment_values(responses):
    """{Segment or None: V}: the reward at a leaf, else the mean of the children's V."""
    children, through = segment_tree(responses)

    def backup(n):
        if not children[n]:
            return float(responses[through[n][0]].reward)
        return mean([backup(c) for c in children[n]])

    return {n: backup(n) for n in through}


def segment_parents(responses):
    children, _ = segment_tree(responses)
    return {c: n for n in children for c in children[n]}


def along_path(path, p):
    """The part of a path (Segments or Steps) that contains token p."""
    for n in path:
        if n.begin <= p < n.end:
            return n
    raise IndexError(p)


# Advantages


def grpo(responses, *, deviation, group_of_one="zero"):
    """Reward normalised over all responses."""
    rewards = rewards_of(responses)

    def f(r, p):
        return normalised(rewards[r], rewards, deviation, group_of_one)

    return f


def tree_grpo(responses, *, deviation, group_of_one="zero"):
    """GRPO over all responses, plus GRPO over those that share the first sampled token."""
    rewards = rewards_of(responses)
    over_all = grpo(responses, deviation=deviation, group_of_one=group_of_one)

    def f(r, p):
        group = [rewards[k] for k in sharing(responses, r, 0)]
        return over_all(r, p) + normalised(rewards[r], group, deviation, group_of_one)

    return f


def treerl(responses, *, center):
    """Leave-one-out rewards, averaged per segment; local plus global term."""
    rewards = rewards_of(responses)
    gains = []
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        gains.append(reward - mean(others) if others else 0.0)

    _, through = segment_tree(responses)
    values = {n: mean([gains[r] for r in rs]) for n, rs in through.items()}
    if center == "tokens":
        total, count = 0.0, 0
        for n, rs in through.items():
            if n is not None:
                total += values[n] * len(rs) * (n.end - n.begin)
                count += len(rs) * (n.end - n.begin)
        values = {n: v - total / count for n, v in values.items()}
    elif center != "none":
        raise ValueError(center)
    scaled = {n: values[n] / math.sqrt(len(through[n])) for n in values}

    advantage, routes = {}, segment_paths(responses)
    for path in routes:
        above, local_above = None, None
        for n in path:
            local = scaled[n] - scaled[above]
            if above is not None and abs(local) < 1e-8:
                local = local_above
            advantage[n] = local + scaled[n]
            above, local_above = n, local

    def f(r, p):
        return advantage[along_path(routes[r], p)]

    return f


def spo_tree(responses):
    """A segment's value minus its parent's."""
    values, parents, routes = segment_values(responses), segment_parents(responses), segment_paths(responses)

    def f(r, p):
        n = along_path(routes[r], p)
        return values[n] - values[parents[n]]

    return f


def treerpo(responses, *, deviation):
    """A segment's value normalised among its siblings; 0 where they differ by less than 0.1."""
    values, parents, routes = segment_values(responses), segment_parents(responses), segment_paths(responses)
    children, _ = segment_tree(responses)

    def f(r, p):
        n = along_path(routes[r], p)
        group = [values[c] for c in children[parents[n]]]
        if max(group) - min(group) < 0.1:
            return 0.0
        return normalised(values[n], group, deviation)

    return f


def treepo(responses, *, segment_tokens):
    """Mean over depths of the reward minus its group's mean; depths are fixed numbers of tokens."""
    rewards = rewards_of(responses)

    def f(r, p):
        terms = [rewards[r] - mean(rewards) if len(rewards) > 1 else rewards[r]]
        depth = 1
        while depth * segment_tokens <= len(responses[r].tokens):
            group = sharing(responses, r, depth * segment_tokens - 1)
            if len(group) > 1:
                terms.append(rewards[r] - mean([rewards[k] for k in group]))
            depth += 1
        return mean(terms)

    return f


def treeadv(responses, *, deviation, group_of_one="zero"):
    """Mean GRPO advantage of the responses through the token."""
    plain = grpo(responses, deviation=deviation, group_of_one=group_of_one)

    def f(r, p):
        return mean([plain(k, p) for k in sharing(responses, r, p)])

    return f


def tempo(responses, *, deviation):
    """GRPO plus the change, at this token, of the mean reward of the responses that agree so far."""
    rewards = rewards_of(responses)
    width = spread(rewards, deviation)

    def value(r, m):
        return mean([rewards[k] for k in agreeing(responses, r, m)])

    def f(r, p):
        if width == 0:
            return 0.0
        return (rewards[r] - mean(rewards) + value(r, p + 1) - value(r, p)) / (width + EPS)

    return f


def ibtpo(responses, *, beta, ratio_power, confidence, value, root, ib_weight, deviation):
    """Value over the question's, in deviations, plus the weighted information-bottleneck term; one per step."""
    children, _ = nested(responses)
    parents = {c: s for s in children for c in children[s]}
    values = obvious_values(responses, value=value, root=root)
    confidences = obvious_confidence(responses, confidence=confidence)
    routes = paths(responses)
    width = spread(rewards_of(responses), deviation)

    def f(r, p):
        s = along_path(routes[r], p)
        above = values[parents[s]]
        outcome = (values[s] - values[None]) / width if width > 0 else 0.0
        ratio = values[s] / above if above >= 1e-6 else 1.0
        return outcome + ib_weight * (ratio**ratio_power - (1 + 1 / beta)) * confidences[s]

    return f


# Weights of tokens in the loss. `groups` is a batch: a list of lists of responses; keys are (group, response, token).


def every_token(groups):
    return [(g, r.index, p) for g, responses in enumerate(groups) for r in responses for p in range(len(r.tokens))]


def is_trained(trained, key):
    return trained is None or bool(trained(*key))


def is_kept(groups, trained, max_old_probability, key):
    """Trained, and less probable when sampled than the maximum; a maximum of 1 keeps all."""
    g, r, p = key
    if not is_trained(trained, key):
        return False
    return max_old_probability == 1 or math.exp(float(groups[g][r].log_probs[p])) < max_old_probability


def trained_sharing(groups, trained, key):
    """Number of responses that share this sampled token and are trained on it."""
    g, r, p = key
    return sum(is_trained(trained, (g, k, p)) for k in sharing(groups[g], r, p))


def loss_weights(groups, *, aggregation, shared_tokens, max_new_tokens, trained=None, max_old_probability=1.0):
    """{(g, r, p): weight} of every token of the batch; trained(g, r, p) false: weight 0."""
    keys = every_token(groups)
    if aggregation == "unique_mean":
        return unique_mean_weights(groups, trained, max_old_probability)
    num_responses = sum(len(responses) for responses in groups)
    weights = {}
    for g, r, p in keys:
        if aggregation == "response_mean":
            weight = 1 / (num_responses * len(groups[g][r].tokens))
        elif aggregation == "token_mean":
            weight = 1 / len(keys)
        elif aggregation == "fixed_length":
            weight = 1 / (num_responses * max_new_tokens)
        else:
            raise ValueError(aggregation)
        if shared_tokens == "once":
            weight /= len(agreeing(groups[g], r, p + 1))
        weights[g, r, p] = weight if is_trained(trained, (g, r, p)) else 0.0
    return weights


def unique_mean_weights(groups, trained, max_old_probability):
    """Each sampled token counts once, over the number of those kept; all 0 where none is kept."""
    keys = every_token(groups)
    unique = set()
    for g, r, p in keys:
        if is_kept(groups, trained, max_old_probability, (g, r, p)):
            unique.add((g, token_owner(groups[g], r, p), p))
    weights = {}
    for key in keys:
        if unique and is_trained(trained, key):
            weights[key] = 1 / trained_sharing(groups, trained, key) / len(unique)
        else:
            weights[key] = 0.0
    return weights


def whitened(groups, fs, *, trained=None, once=False, max_old_probability=1.0):
    """{(g, r, p): whitened advantage} of the trained tokens; mean and variance are those of the kept ones."""
    keys = [key for key in every_token(groups) if is_trained(trained, key)]
    advantage = {(g, r, p): float(fs[g](r, p)) for g, r, p in keys}
    weight = {}
    for key in keys:
        if is_kept(groups, trained, max_old_probability, key):
            weight[key] = 1 / trained_sharing(groups, trained, key) if once else 1.0
    n = sum(weight.values())
    if n <= 1 + 1e-9:  # the fractions of one shared token may add up to a little more than 1
        return {key: 0.0 for key in keys}
    kept = [advantage[key] for key in weight]
    if max(kept) - min(kept) <= 1e-12 * max(abs(a) for a in kept):
        return {key: 0.0 for key in keys}
    m = sum(w * advantage[key] for key, w in weight.items()) / n
    variance = sum(w * (advantage[key] - m) ** 2 for key, w in weight.items()) / n * n / (n - 1)
    return {key: (advantage[key] - m) / math.sqrt(variance + 1e-8) for key in keys}


# The options that each reads, by their names in `AdvantageOptions`.
METHODS = {
    "grpo": ("deviation", "group_of_one"),
    "tree_grpo": ("deviation", "group_of_one"),
    "treerl": ("value_center",),
    "spo_tree": (),
    "treerpo": ("deviation",),
    "treepo": ("segment_tokens",),
    "treeadv": ("deviation", "group_of_one"),
    "tempo": ("deviation",),
    "ibtpo": ("deviation", "score", "ib_weight"),
}


def expected_advantage(name, responses, options):
    """f(response, position) of a method by the library's options."""
    keys = {key: getattr(options, key) for key in METHODS[name]}
    if name == "treerl":
        keys = dict(center=options.value_center)
    if name == "ibtpo":
        score = dataclasses.asdict(keys.pop("score"))
        keys |= {k: score[k] for k in ("beta", "ratio_power", "confidence", "value", "root")}
    return globals()[name](responses, **keys)
