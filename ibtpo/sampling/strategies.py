"""Where a tree branches next: one function per strategy, one signature, NumPy on the host.

    strategy(tree, responses, options, rng, limits=None, pending=()) -> list of Fork

chooses the forks of one round from a question's finished responses (`tree` is theirs, Q = 1). `pending` are the
responses of the rounds under way, of which no more is known than where they forked (with options.lag). A round brings
`top_k * branch` new responses, so every strategy spends the same budget: a question ends with G = initial +
(rounds − 1)·top_k·branch responses (`num_responses`), or up to `extra_rounds` rounds later if their rewards are all
equal until then.

Rules they share
- A fork keeps a prefix of a finished response. A prefix qualifies if a continuation follows it in
  that response, at least `min_new_tokens` of `max_new_tokens` are left, and no answer is stated in it: `limits[r]` is
  the first generated token of the first statement of response r. The question, with nothing kept, always qualifies.
- If fewer than `top_k` prefixes qualify, the ranking is gone through again from the top: the
  budget is spent in full.
- Prefixes that several responses share are named by the oldest of them.

Sources: IB-TPO arXiv 2605.28109; TreeRL 2506.11902; Tree-GRPO 2509.21240; TreePO 2508.17445; AT2PO 2601.04767;
InfoTree 2605.05262.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ibtpo import choices, own_code
from ibtpo.ib_score import ScoreOptions, ib_score, node_confidence, node_values
from ibtpo.tree import Response, Tree, children_mask, fork_owner, last_token_of_node, on_path

TOLERANCE = 1e-6  # scores closer than this are equal: far above rounding, far below any difference that matters


@dataclass(frozen=True)
class Fork:
    """Start of a new response: the first `position` generated tokens of response `response`.

    Position 0 is the question itself, whichever response is named.
    """

    response: int
    position: int


@dataclass(frozen=True)
class TreeOptions:
    """Shape of a question's tree and how it is grown.

    Attributes:
      strategy: a key of STRATEGIES, or module:function (`ibtpo.own_code`).
      initial: unguided responses to start with (B0).
      rounds: rounds in all, the initial one included (L).
      top_k: nodes that branch in each later round (K).
      branch: new responses from each (B).
      score: of the IB-Score, read by "ib".
      rebranch: rounds in which one node may branch, the first being one for the question; 0: any number. Of "ib".
      sibling_penalty: α of "at2po".
      explore, surprise: weights of "uucb".
      extra_rounds: rounds more, at most, for a question whose rewards are all equal.
      lag: rounds of which the next does not wait: round r is chosen from the responses of the first round and of those
        up to r - 1 - lag. Not of "fixed_width", and not for extra rounds.
      min_new_tokens: a prefix with less of the budget left does not branch.
      max_new_tokens: most generated tokens of a response.
      segment_tokens: segment length of "fixed_width".
    """

    strategy: str = "ib"
    initial: int = 4
    rounds: int = 9
    top_k: int = 1
    branch: int = 1
    score: ScoreOptions = field(default_factory=ScoreOptions)
    rebranch: int = 1
    sibling_penalty: float = 0.05
    explore: float = 0.5
    surprise: float = 1.0
    extra_rounds: int = 0
    lag: int = 0
    min_new_tokens: int = 1
    max_new_tokens: int = 2048
    segment_tokens: int = 512

    def __post_init__(self):
        if self.strategy not in STRATEGIES and not own_code.is_path(self.strategy):
            raise ValueError(f"strategy={self.strategy!r}: expected one of {', '.join(STRATEGIES)}")
        for name in (
            "initial", "rounds", "top_k", "branch", "min_new_tokens", "max_new_tokens",
            "segment_tokens",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    @classmethod
    def from_config(cls, config: Any, **changes: Any) -> "TreeOptions":
        """Reads the `tree` section of a config and sampling.max_new_tokens. changes: fields to override."""
        of_score = {of.name for of in fields(ScoreOptions)}
        own = {key: value for key, value in config.tree.to_dict().items() if key not in of_score}
        longest = config.sampling.max_new_tokens
        return cls(**own | {"score": ScoreOptions.from_config(config), "max_new_tokens": longest} | changes)


def flat_group(count: int) -> dict[str, Any]:
    """Fields of TreeOptions for `count` independent responses, whatever tree is configured: as in an evaluation."""
    return {"strategy": "independent", "initial": count, "rounds": 1, "extra_rounds": 0, "lag": 0}


def num_responses(options: TreeOptions) -> int:
    """G = initial + (rounds − 1)·top_k·branch, the responses of a finished tree."""
    return options.initial + (options.rounds - 1) * options.top_k * options.branch


def most_responses(options: TreeOptions) -> int:
    """The responses of a tree that has all its extra rounds."""
    return num_responses(options) + options.extra_rounds * options.top_k * options.branch


def mean_in_flight(options: TreeOptions) -> float:
    """Responses of a question that are decoded at the same time, in the mean over its life, where a branch is half as
    long as an unguided response and all of a round take as long. Where all begin at once, the longest of 8 to 16
    responses is about twice as long as the mean one (log-normal lengths, 0.5 of the logarithm), so half are at work."""
    if options.strategy in ("independent", "fixed_width"):
        return max(1.0, num_responses(options) / 2)
    branches, rounds = num_responses(options) - options.initial, (options.rounds - 1) / (1 + options.lag)
    return (options.initial + branches / 2) / (1 + rounds / 2)


def fill_round(ranked: Sequence[Fork], options: TreeOptions) -> list[Fork]:
    """The first top_k of `ranked`, gone through again if there are fewer; `branch` forks each."""
    chosen = [ranked[i % len(ranked)] for i in range(options.top_k)]
    return [fork for fork in chosen for _ in range(options.branch)]


def inner_prefixes(
    tree: Tree, options: TreeOptions, limits: Sequence[int] | None = None
) -> tuple[np.ndarray, list[Fork]]:
    """Nodes that may branch, [M], the question first, and the fork after each."""
    last = np.asarray(last_token_of_node(tree))[0]
    depth = np.asarray(tree.positions)[0, last] + 1 - int(tree.prompt_length[0])
    inner = np.asarray(children_mask(tree))[0].any(axis=1)
    oldest = np.asarray(on_path(tree))[0].argmax(axis=0)
    may = depth + options.min_new_tokens <= options.max_new_tokens
    if limits is not None:
        may &= depth <= np.asarray(limits)[oldest]
    nodes = np.flatnonzero(inner & (may | (np.arange(len(inner)) == 0)))
    return nodes, [Fork(int(oldest[n]), int(depth[n])) for n in nodes]


def places(responses: Sequence[Response]) -> list[tuple[int, int]]:
    """Where each response forked: (the response that owns the token before it, its position); (-1, 0): the question."""
    return [(fork_owner(responses, r), r.fork) for r in responses]


def rounds_branched(responses: Sequence[Response], forks: Sequence[Fork]) -> list[int]:
    """In how many rounds each of these prefixes has branched already; the question did so in the first."""
    rounds: dict[tuple[int, int], set[int]] = {}
    for place, r in zip(places(responses), responses):
        rounds.setdefault(place, set()).add(r.round)
    return [len(rounds.get((f.response if f.position else -1, f.position), ())) for f in forks]


def forks_pending(responses: Sequence[Response], pending: Sequence[Response], forks: Sequence[Fork]) -> np.ndarray:
    """How many of the responses under way forked at each of these prefixes."""
    begun = places([*responses, *pending])[len(responses) :]
    return np.array([begun.count((f.response if f.position else -1, f.position)) for f in forks], int)


def may_branch(
    tree: Tree, responses: Sequence[Response], options: TreeOptions,
    limits: Sequence[int] | None = None, pending: Sequence[Response] = (),
) -> tuple[np.ndarray, list[Fork]]:  # fmt: skip
    """The nodes of `inner_prefixes` that have branched in fewer than `rebranch` rounds; all of them where none has."""
    nodes, forks = inner_prefixes(tree, options, limits)
    if options.rebranch:
        rounds = rounds_branched([*responses, *pending], forks)
        fresh = [i for i, times in enumerate(rounds) if times < options.rebranch]
        if fresh:
            nodes, forks = nodes[fresh], [forks[i] for i in fresh]
    return nodes, forks


def scores(tree: Tree, options: TreeOptions, values: np.ndarray | None = None) -> np.ndarray:
    """J of each node, [N], as "ib" ranks by it. values: of the nodes, [N], in place of the estimate p̂."""
    # Rounding in float32 grows with beta and could exceed the tolerance.
    rewards, log_probs = np.asarray(tree.rewards, np.float64), np.asarray(tree.log_probs, np.float64)
    exact = replace(tree, rewards=rewards, log_probs=log_probs)
    return np.asarray(ib_score(exact, options.score, None if values is None else values[None]).J)[0]


def ib(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """The top_k nodes by IB-Score J, among the question and all inner nodes.

    Scores within 1e-6 of the best that is left are equal to it; of those the node with the fewest
    tokens before the fork goes first, then the one whose oldest response is oldest. Two nodes
    that agree in both are the same node, so neither rounding nor `rng` decides.
    """
    nodes, forks = may_branch(tree, responses, options, limits, pending)
    return _by_score(scores(tree, options)[nodes], forks, options)


def _by_score(score: Sequence[float] | np.ndarray, forks: Sequence[Fork], options: TreeOptions) -> list[Fork]:
    """The forks of highest score, ties by the rule of `ib`; those that are equal in all go in their order."""
    left = list(range(len(forks)))
    ranked: list[Fork] = []
    while left and len(ranked) < options.top_k:
        best = max(score[i] for i in left)
        equal = [i for i in left if score[i] >= best - TOLERANCE]
        pick = min(equal, key=lambda i: (forks[i].position, forks[i].response))
        left.remove(pick)
        ranked.append(forks[pick])
    return fill_round(ranked, options)


def _surprises(tree: Tree) -> np.ndarray:
    """[N] mean −log π of each node's own tokens; 0 at the question."""
    log_probs = tree.replace(log_probs=np.asarray(tree.log_probs, np.float64))
    return -np.log(np.asarray(node_confidence(log_probs))[0])


def at2po(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """Steps to be drawn anew: the top_k by surprise less a penalty on what has been expanded (AT2PO).

    H(n) − sibling_penalty · (siblings of n), H the mean −log π of n's tokens, over the inner nodes; the fork is before
    n, at its parent's end. The question is a candidate too, of H = 0, with its children but one for siblings. Responses
    under way are siblings already. Ties as of `ib`, then the oldest step.
    Source: arXiv 2601.04767, algorithm 1; zzfoutofspace/ATPO, vllm_rollout_with_tools_tree_offline.py 341-403.
    """
    nodes, prefixes = inner_prefixes(tree, options, limits)
    place = dict(zip(nodes.tolist(), prefixes))
    children, surprise = np.asarray(children_mask(tree))[0].sum(axis=1), _surprises(tree)
    children[nodes] += forks_pending(responses, pending, prefixes)
    score, forks = [0.0 - options.sibling_penalty * max(0, int(children[0]) - 1)], [Fork(0, 0)]
    oldest = np.asarray(on_path(tree))[0].argmax(axis=0)
    for n in sorted(np.flatnonzero(children > 0).tolist(), key=lambda n: oldest[n]):
        parent = int(tree.node_parent[0, n])
        if parent in place:
            score.append(float(surprise[n]) - options.sibling_penalty * (int(children[parent]) - 1))
            forks.append(place[parent])
    return _by_score(score, forks, options)


def uucb(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """The top_k by an upper confidence bound with a term of uncertainty, after InfoTree's UUCB.

    p̂(n) + explore · sqrt(ln(M + 1) / k(n)) + surprise · (mean −log π of the steps behind n, steps alike), over the
    nodes of `ib`: p̂ the mean reward of the responses through n, k(n) their number and that of those under way from n, M
    the question's responses. Ties as of `ib`.
    The three kinds of terms are the source's (arXiv 2605.05262, abstract), their forms and weights ours: its method was
    not to be had.
    """
    nodes, forks = inner_prefixes(tree, options, limits)
    exact = replace(tree, rewards=np.asarray(tree.rewards, np.float64))
    value, through = np.asarray(node_values(exact))[0], np.asarray(on_path(tree))[0].sum(axis=0)
    children = np.asarray(children_mask(tree))[0]
    behind = (children * _surprises(tree)).sum(axis=1) / np.maximum(children.sum(axis=1), 1)
    through[nodes] += forks_pending(responses, pending, forks)
    unsure = np.sqrt(np.log(len(responses) + len(pending) + 1) / np.maximum(through, 1))
    score = value + options.explore * unsure + options.surprise * behind
    return _by_score(score[nodes], forks, options)


def random(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """top_k different nodes, uniformly among the question and all inner nodes (Tree-GRPO)."""
    _, forks = inner_prefixes(tree, options, limits)
    return fill_round([forks[i] for i in rng.permutation(len(forks))], options)


def entropy(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """The prefixes before the top_k least probable sampled tokens of the question (EPTree).

    Ranked by −log π of the sampled token over the question's whole tree. Not eligible: the first token that a response
    itself sampled, a token at or after limits[r] (the first of the answer's statement), and one before which another
    response forked already (unless no other is left). Ties: fewest tokens before the fork, then the oldest response.
    Without any eligible token the fork is at the question.
    """
    owners, positions, surprise = [], [], []  # of the tokens, each listed with who sampled it
    for r in responses:
        end = min(len(r.tokens), options.max_new_tokens - options.min_new_tokens + 1)
        if limits is not None:
            end = min(end, limits[r.index])
        own = np.arange(r.fork + 1, max(end, r.fork + 1))
        owners.append(np.full(len(own), r.index))
        positions.append(own)
        surprise.append(-np.asarray(r.log_probs, np.float64)[own])
    owner, position = np.concatenate(owners), np.concatenate(positions)
    taken = set(places([*responses, *pending]))
    order = np.lexsort((owner, position, -np.concatenate(surprise)))
    forks = [Fork(int(owner[i]), int(position[i])) for i in order]
    fresh = [f for f in forks if (f.response, f.position) not in taken]
    return fill_round(fresh or forks or [Fork(0, 0)], options)


def independent(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """Every fork at the question: more independent responses."""
    return fill_round([Fork(0, 0)], options)


def segment_forks(
    active: Sequence[tuple[int, int]], num_finished: int, options: TreeOptions, stated: Collection[int] = ()
) -> list[Fork]:
    """New paths at a segment's end (TreePO): the open width, shared evenly by the active paths.

    G − num_finished paths may be active. The missing ones are dealt out one by one to the active
    paths in their order, at most `branch` new ones to each, so a tree widens segment by segment. A path that has stated
    its answer gets none.

    Args:
      active: (response, generated tokens) of the paths that paused at the segment's end; they
        themselves go on.
      num_finished: responses that have ended.
      stated: the responses among the active ones that have stated their answer.
    """
    missing = num_responses(options) - num_finished - len(active)
    open_paths = [path for path in active if path[0] not in stated]
    missing = max(0, min(missing, options.branch * len(open_paths)))
    share = [missing // len(open_paths) + (i < missing % len(open_paths)) for i in range(len(open_paths))]
    return [Fork(r, p) for (r, p), count in zip(open_paths, share) for _ in range(count)]


def fixed_width(
    tree: Tree,
    responses: Sequence[Response],
    options: TreeOptions,
    rng: np.random.Generator,
    limits: Sequence[int] | None = None,
    pending: Sequence[Response] = (),
) -> list[Fork]:
    """Once no path is active: all responses that are missing, from finished ones (TreePO).

    Each starts at a uniformly drawn segment boundary of a uniformly drawn finished response that qualifies, the
    question being the first boundary. While paths are active, `segment_forks` branches instead.
    """
    forks = []
    missing = num_responses(options) - len(responses)
    for _ in range(missing if missing > 0 else options.top_k * options.branch):  # none is: an extra round
        r = responses[int(rng.integers(len(responses)))]
        end = min(len(r.tokens) - 1, options.max_new_tokens - options.min_new_tokens)
        end = end if limits is None else min(end, limits[r.index])
        boundaries = max(end, 0) // options.segment_tokens + 1
        forks.append(Fork(r.index, int(rng.integers(boundaries)) * options.segment_tokens))
    return forks


STRATEGIES: dict[str, Callable[..., list[Fork]]] = {name: globals()[name] for name in choices.STRATEGIES}
