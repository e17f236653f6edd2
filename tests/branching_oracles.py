"""Where to branch next, worked out the obvious way from the list of responses.

Plain Python and float64, written from the definitions alone, to compare the library with. Nodes are Steps; None is
the question. A fork is named (response, position): it keeps that many tokens of that response.
"""

import math

from tests.tree_cases import nested, obvious_confidence, obvious_values, token_owner

TIE = 1e-6


def position(s):
    """Generated tokens up to the end of a Step; 0 for the question."""
    return 0 if s is None else s.end


def mean(values):
    return sum(values) / len(values)


def surprisal(responses, s):
    """Mean of -log_prob over the step's own tokens."""
    return mean([-float(responses[s.owner].log_probs[p]) for p in range(s.begin, s.end)])


# Scores


def weighted_children(responses, beta, ratio_power, confidence, branch_value, root, child_weight):
    """{Step or None: [(weight, eta1, eta2) of each child]} of those with children; the weights add up to 1."""
    children, through = nested(responses)
    values = obvious_values(responses, value=branch_value, root=root)
    confidences = obvious_confidence(responses, confidence=confidence)
    result = {}
    for above, below in children.items():
        if not below:
            continue
        total = sum(len(through[s]) for s in below)
        rows = []
        for s in below:
            if child_weight == "uniform":
                weight = 1 / len(below)
            elif child_weight == "responses":
                weight = len(through[s]) / total
            else:
                raise ValueError(child_weight)
            ratio = values[s] / values[above] if values[above] >= 1e-6 else 1.0
            rows.append((weight, ratio**ratio_power - (1 + 1 / beta), confidences[s]))
        result[above] = rows
    return result


def score(responses, *, beta, ratio_power, confidence, branch_value, root, child_weight):
    """{Step or None: J} of those with children."""
    table = weighted_children(responses, beta, ratio_power, confidence, branch_value, root, child_weight)
    return {s: 1 + beta * sum(w * eta1 * eta2 for w, eta1, eta2 in rows) for s, rows in table.items()}


def covariance(responses, *, beta, ratio_power, confidence, branch_value, root, child_weight):
    """{Step or None: weighted covariance of eta1 and eta2 over the children}."""
    table = weighted_children(responses, beta, ratio_power, confidence, branch_value, root, child_weight)
    result = {}
    for s, rows in table.items():
        mean1 = sum(w * eta1 for w, eta1, _ in rows)
        mean2 = sum(w * eta2 for w, _, eta2 in rows)
        result[s] = sum(w * (eta1 - mean1) * (eta2 - mean2) for w, eta1, eta2 in rows)
    return result


def mean_confidence(responses, *, beta, ratio_power, confidence, branch_value, root, child_weight):
    """{Step or None: weighted mean of eta2 over the children}."""
    table = weighted_children(responses, beta, ratio_power, confidence, branch_value, root, child_weight)
    return {s: sum(w * eta2 for w, _, eta2 in rows) for s, rows in table.items()}


# Places to fork


def eligible(responses, *, min_new_tokens, max_new_tokens, limits=None):
    """[(Step or None, position, oldest response)] where a fork is allowed; the question comes first."""
    children, through = nested(responses)
    result = [(None, 0, 0)]
    for s in children:
        if s is None or not children[s]:
            continue
        oldest = min(through[s])
        room = s.end + min_new_tokens <= max_new_tokens
        if room and (limits is None or s.end <= limits[oldest]):
            result.append((s, s.end, oldest))
    return result


def times_branched(responses, place):
    """Number of different rounds in which a response started at the end of this Step; the question's first counts."""
    rounds = set()
    for r in responses:
        if place is None:
            here = r.fork == 0
        else:
            here = r.fork > 0 and r.fork == place.end and token_owner(responses, r.parent, r.fork - 1) == place.owner
        if here:
            rounds.add(r.round)
    return len(rounds)


# Choices


def ranked(candidates):
    """Candidates (value, tie break, fork), highest value first.

    Those within TIE of the best that remains are ties: the smallest tie break goes first.
    """
    remaining, order = list(candidates), []
    while remaining:
        best = max(value for value, _, _ in remaining)
        ties = [c for c in remaining if c[0] >= best - TIE]
        first = min(ties, key=lambda c: c[1])
        order.append(first)
        remaining.remove(first)
    return order


def forks(candidates, top_k, branch):
    """The top_k first forks, over again where there are fewer; each `branch` times in a row."""
    order = [fork for _, _, fork in ranked(candidates)]
    return [order[i % len(order)] for i in range(top_k) for _ in range(branch)]


def next_ib(responses, top_k, branch, rebranch, *, min_new_tokens, max_new_tokens, limits=None, **score_options):
    """[(response, position)] by J; with rebranch > 0, places branched that many times only if no other is left."""
    places = eligible(responses, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, limits=limits)
    if rebranch > 0:
        fresh = [place for place in places if times_branched(responses, place[0]) < rebranch]
        places = fresh if fresh else places
    scores = score(responses, **score_options)
    candidates = [(scores[s], (at, oldest), (oldest, at)) for s, at, oldest in places]
    return forks(candidates, top_k, branch)


def next_at2po(responses, top_k, branch, sibling_penalty, *, min_new_tokens, max_new_tokens, limits=None):
    """[(response, position)]: a surprising step with few siblings is forked at the end of its parent."""
    children, through = nested(responses)
    places = eligible(responses, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, limits=limits)
    allowed = {s for s, _, _ in places}
    candidates = [(-sibling_penalty * max(0, len(children[None]) - 1), (0, 0, 0), (0, 0))]
    for parent, below in children.items():
        for s in below:
            if not children[s] or parent not in allowed:
                continue
            value = surprisal(responses, s) - sibling_penalty * max(0, len(below) - 1)
            at, oldest = position(parent), min(through[parent])
            candidates.append((value, (at, oldest, min(through[s])), (oldest, at)))
    return forks(candidates, top_k, branch)


def next_uucb(responses, top_k, branch, explore, surprise, *, min_new_tokens, max_new_tokens, limits=None):
    """[(response, position)] by value, plus a bonus for few responses and one for surprising children."""
    children, through = nested(responses)
    values = obvious_values(responses, value="leaf_mean", root="all")
    candidates = []
    for s, at, oldest in eligible(
        responses, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, limits=limits
    ):
        bonus = math.sqrt(math.log(len(responses) + 1) / len(through[s]))
        entropy = mean([surprisal(responses, c) for c in children[s]])
        candidates.append((values[s] + explore * bonus + surprise * entropy, (at, oldest), (oldest, at)))
    return forks(candidates, top_k, branch)
