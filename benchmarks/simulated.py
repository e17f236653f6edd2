"""A simulated policy: questions, responses and rewards from a stated process, without a model.

Everything is in units of UNIT_TOKENS tokens, each of which the tree code takes for one token.

Question: the probability p of a right response is drawn from Beta(0.46, 1.88). Response: steps, their number
log-normal with a mean of ten, each of a geometric number of units whose mean falls from STEP_UNITS by the factor
SHORTER from one to the next; then the answer is stated, and the response ends. Value: with the end of each step the
probability that the response ends right moves from v to a draw from Beta(k v, k (1 - v)), k = CONCENTRATION, whose mean
is v; the reward is 1 with the probability left at the end. Confidence: a step's surprise m is drawn from a Gamma
distribution, and is COUPLING times as large before a move down as before one up; its units' -log probabilities are
exponential with mean m.

The figures that the process is fitted to are of arXiv 2605.28109, table 3 (Qwen3-8B-Base on 1,024 questions): 12
independent responses have 12,035 tokens, random trees 0.630 times as many; of 8 responses 19.6 % are right, and 54.7 %
of groups have rewards that differ.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ibtpo.rewards import find_statement
from ibtpo.sampling import Codec, Question, SampledTree, TreeOptions
from ibtpo.sampling.growth import Draft, Growing, Growth

UNIT_TOKENS = 10
PRIOR = (0.46, 1.88)
STEP_UNITS, SHORTER = 13.0, 0.95
STEPS_MEDIAN, STEPS_SIGMA = 9.2, 0.35
CONCENTRATION = 6.0
SURPRISE_SHAPE, SURPRISE_MEAN = 1.2, 0.25
COUPLING = 1.25
LONGEST = 204  # units; 2,048 tokens
PIECES = [b"", b"x", b"\n\n", b"The answer is 5"]
END, TEXT, STEP, ANSWER = range(4)


@dataclasses.dataclass(frozen=True)
class State:
    """Before a unit: steps finished, the value since the last of them, and of the step under way its surprise (0: none
    is) and the value that it ends with."""

    steps: int
    value: float
    surprise: float = 0.0
    moved: float = 0.0


def _hazards() -> np.ndarray:
    """[n]: probability that a response has n steps before its answer, given that it has at least n."""

    def below(x):
        return 0.5 * math.erfc(-math.log(x / STEPS_MEDIAN) / (STEPS_SIGMA * math.sqrt(2)))

    cumulative = np.array([0.0] + [below(n + 0.5) for n in range(60)])
    return np.clip(np.diff(cumulative) / (1 - cumulative[:-1]), 0, 1)


HAZARDS = _hazards()


class Simulation:
    """Grows the trees of simulated questions with the rules of `ibtpo.sampling.growth`."""

    def __init__(self, tree: TreeOptions, seed: int = 0, segment_tokens: int = 256):
        self.codec = Codec(
            4, stop_ids=[END], token_bytes=PIECES, find_answer=find_statement("math"), cut_steps=_step_ends
        )
        self.tree = dataclasses.replace(
            tree, max_new_tokens=LONGEST, min_new_tokens=1, segment_tokens=round(segment_tokens / UNIT_TOKENS)
        )
        self.growth = Growth(self.tree, self.codec, [seed])
        self.seed = seed

    def grow(self, id: int) -> SampledTree:
        """The finished tree of question `id`; the question and its first responses are the same for all strategies."""
        rng = np.random.default_rng([self.seed, id])
        start = State(0, rng.beta(*PRIOR))
        q = Growing(order=0, question=Question(id, [1]))
        before: list[list[State]] = []  # of each response, its state before each of its units
        while drafts := self.growth.next_round(q):
            for draft in drafts:
                if draft.index == len(before):
                    shared = before[draft.parent][: draft.fork + 1] if draft.fork else [start]
                    # The rest of a step that is forked inside is drawn anew.
                    before.append([*shared[:-1], dataclasses.replace(shared[-1], surprise=0.0)])
                own = np.random.default_rng([self.seed, id, draft.index, len(draft.tokens)])
                _decode(draft, before[draft.index], own)
                if self.growth.stopped(draft):
                    draft.reward = float(draft.finish == "stop" and own.random() < before[draft.index][-1].value)
        return self.growth.result(q)


def _decode(draft: Draft, before: list[State], rng: np.random.Generator) -> None:
    """Adds units to the draft until it ends or reaches its limit; `before` gets the state after each."""
    while len(draft.tokens) < draft.limit:
        state, last = before[-1], draft.tokens[-1] if draft.tokens else STEP
        if last == ANSWER:
            token, log_prob, draft.finish = END, -1e-3, "stop"
        else:
            state = state if state.surprise else _open_step(state, rng)
            token, log_prob = _unit(state, last, rng), -float(rng.exponential(state.surprise))
            state = State(state.steps + 1, state.moved) if token == STEP else state
        draft.tokens.append(token)
        draft.log_probs.append(log_prob)
        before.append(state)
        if draft.finish:
            return


def _unit(state: State, last: int, rng: np.random.Generator) -> int:
    """The next unit: the answer, between two steps; a step's end; or more of the step."""
    if last == STEP and state.steps and rng.random() < HAZARDS[min(state.steps, len(HAZARDS) - 1)]:
        return ANSWER
    return STEP if rng.random() < 1 / max(1.0, STEP_UNITS * SHORTER**state.steps) else TEXT


def _open_step(state: State, rng: np.random.Generator) -> State:
    v = state.value
    moved = v
    if 1e-6 < v < 1 - 1e-6:
        moved = float(rng.beta(CONCENTRATION * v, CONCENTRATION * (1 - v)))
    surprise = rng.gamma(SURPRISE_SHAPE, SURPRISE_MEAN / SURPRISE_SHAPE)
    surprise *= COUPLING ** (0.5 if moved < v else -0.5)
    return State(state.steps, v, max(float(surprise), 1e-4), moved)


def _step_ends(tokens: np.ndarray) -> list[int]:
    ends = (np.flatnonzero(np.asarray(tokens) == STEP) + 1).tolist()
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]
