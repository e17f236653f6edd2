"""What is exactly known of a policy on the navigation task: its chance of a right response from every prefix.

Each right response of a problem has one text (`ibtpo.data.navigation`) and, with a tokenizer that has a token for each
byte, one sequence of tokens. Without truncation of the distribution

    p(a*|s) = sum over the right responses r that begin with s of  prod over r's tokens behind s of pi(token | before)

and the products come from one teacher-forced pass over the trie of all right responses, each shared token once.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from ibtpo.data.navigation import read_problem, response_of
from ibtpo.losses import token_log_probs
from ibtpo.packing import TokenBatch, fill, plan, unpack
from ibtpo.sampling import SampledTree, TreeOptions
from ibtpo.sampling.strategies import TOLERANCE, Fork, may_branch, scores
from ibtpo.tree import Response, Tree, build_tree, fork_owner, last_token_of_node, on_path, tokens_of_response

ROW_TOKENS = 512  # of the rows in which a trie is computed; one program for all

StepEnds = Callable[[np.ndarray], Sequence[int]]


def trie(prompt: Sequence[int], responses: Sequence[np.ndarray]) -> Tree:
    """All of these responses as one tree, in their order, each token that several share once.

    responses: in lexicographic order, none the beginning of another.
    """
    found: list[Response] = []
    for index, tokens in enumerate(responses):
        fork = 0
        if index:
            before = responses[index - 1]
            size = min(len(before), len(tokens))
            fork = int(np.argmin(np.append(before[:size] == tokens[:size], False)))
        parent = index - 1 if fork else -1
        zeros = np.zeros(len(tokens), np.float32)
        found.append(Response(index, parent, fork, 0, np.asarray(tokens, np.int32), zeros, "stop", 1.0))
    return build_tree(prompt, found, lambda tokens: [len(tokens)])


@functools.partial(jax.jit, static_argnums=0)
def _row_log_probs(graphdef, params, row: TokenBatch, temperature) -> jax.Array:
    return token_log_probs(nnx.merge(graphdef, params), row, temperature=temperature)[0]


def log_probs_of(graphdef, params, prompt, responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
    """log pi of every token of each response, float32. Order and arguments as of `trie`."""
    tree = trie(prompt, responses)
    layout = plan(tree, row_tokens=ROW_TOKENS)
    batch = fill(layout, tree)
    rows = [jax.tree.map(lambda x, b=b: x[b : b + 1], batch) for b in range(layout.rows[0])]
    values = [np.asarray(_row_log_probs(graphdef, params, row, temperature)) for row in rows]
    in_tree = unpack(np.concatenate(values), layout)[0]
    return [in_tree[tokens_of_response(tree, r)] for r in range(len(responses))]


class Exact:
    """p(a*|prefix) of one question.

    responses: every right response, as tokens. log_probs: log pi of each of their tokens.
    """

    def __init__(self, responses: Sequence[np.ndarray], log_probs: Sequence[np.ndarray]):
        self.responses, longest = list(responses), max(map(len, responses))
        self._tokens = np.full((len(responses), longest), -1, np.int64)
        left = np.zeros((len(responses), longest + 1))
        for row, (tokens, values) in enumerate(zip(responses, log_probs, strict=True)):
            self._tokens[row, : len(tokens)] = tokens
            left[row, : len(tokens)] = np.cumsum(np.asarray(values, np.float64)[::-1])[::-1]
        self._rest = np.exp(left)  # [r, n]: of the tokens of response r behind its first n

    def through(self, prefix: Sequence[int]) -> np.ndarray:
        """Which right responses begin with these tokens, bool."""
        size = len(prefix)
        if size > self._tokens.shape[1]:
            return np.zeros(len(self._tokens), bool)
        return (self._tokens[:, :size] == np.asarray(prefix, np.int64)).all(axis=1)

    def value(self, prefix: Sequence[int] = ()) -> float:
        """p(a*|prefix); of a right response with its end, 1."""
        return float(self._rest[self.through(prefix), min(len(prefix), self._tokens.shape[1])].sum())

    def path_probability(self, index: int) -> float:
        """The probability of this right response as a whole."""
        return float(self._rest[index, 0])

    def of_nodes(self, sampled: SampledTree) -> np.ndarray:
        """p(a*|node) of every node of a tree, [N]."""
        tree = sampled.tree
        last = np.asarray(last_token_of_node(tree))[0]
        depth = np.asarray(tree.positions)[0, last] + 1 - int(tree.prompt_length[0])
        oldest = np.asarray(on_path(tree))[0].argmax(axis=0)
        return np.array([self.value(sampled.responses[r].tokens[:d]) for r, d in zip(oldest, depth)])

    def step_prefixes(self, step_ends: StepEnds) -> list[tuple[int, ...]]:
        """The question, and every right response up to each of its steps but the last one's end."""
        found = {()}
        for tokens in self.responses:
            found |= {tuple(tokens[:end].tolist()) for end in step_ends(tokens) if end < len(tokens)}
        return sorted(found, key=lambda prefix: (len(prefix), prefix))


def right_responses(answer: str, encode: Callable[[str], list[int]], end: int) -> list[np.ndarray]:
    """The right responses to the navigation problem of a reference, as tokens, in the order of `trie`."""
    problem = read_problem(answer)
    texts = (response_of(problem.start, moves) for moves in problem.ways())
    return [np.array(tokens) for tokens in sorted([*encode(text), end] for text in texts)]


def exact(policy, prompt: Sequence[int], answer: str, temperature: float) -> Exact:
    """`Exact` of a policy (`ibtpo.policy.load_policy`) on a navigation problem, sampled at this temperature without
    truncation (top_k 0, top_p 1)."""
    tokenizer = policy.tokenizer
    responses = right_responses(answer, tokenizer.encode, tokenizer.eos_token_id)
    return Exact(responses, log_probs_of(policy.graphdef, policy.params, prompt, responses, temperature))


def forks_of(sampled: SampledTree, known: Exact, options: TreeOptions, codec) -> list[dict[str, float]]:
    """The choice of each round of a tree that grew one fork a round, against the best by J with the exact p(a*|s).

    Per round: candidates (nodes that may branch by the rules of "ib"), best (1.0 where the node taken has the highest
    exact J), taken and highest (exact J of the node taken and of the best one), estimated (the J by which "ib" ranks
    it).
    """
    rows = []
    for r in sampled.responses:
        if not r.round:
            continue
        before = [other for other in sampled.responses if other.round < r.round]
        tree = build_tree(sampled.question.tokens, before, codec.step_ends)
        limits = [codec.answer_start(o.tokens, sampled.question.find_answer) for o in before]
        nodes, _ = may_branch(tree, before, options, limits)
        J = scores(tree, options, known.of_nodes(SampledTree(sampled.question, tree, before)))
        everywhere, all_forks = may_branch(tree, before, _any_number(options), limits)
        taken = everywhere[all_forks.index(_fork_of(r, before))]
        highest = float(J[nodes].max())
        rows.append(dict(
            candidates=len(nodes),
            best=float(taken in nodes and J[taken] >= highest - TOLERANCE),
            taken=float(J[taken]),
            highest=highest,
            estimated=float(scores(tree, options)[taken]),
        ))  # fmt: skip
    return rows


def share_at_best(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over `forks_of`: forks at the best node, those that a draw among the candidates would put there, J."""
    return {
        "at the best node": statistics.fmean(row["best"] for row in rows),
        "best by chance": statistics.fmean(1 / row["candidates"] for row in rows),
        "exact J taken": statistics.fmean(row["taken"] for row in rows),
        "exact J best": statistics.fmean(row["highest"] for row in rows),
    }


def _any_number(options: TreeOptions) -> TreeOptions:
    return dataclasses.replace(options, rebranch=0)


def _fork_of(response: Response, before: Sequence[Response]) -> Fork:
    """Where a response forked, named by the oldest response that has this prefix in the tree."""
    if response.fork == 0:
        return Fork(0, 0)
    owner = fork_owner([*before, response], response)
    return Fork(owner, response.fork)
