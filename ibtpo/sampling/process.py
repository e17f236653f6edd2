"""A stated process in place of a model: the responses of questions, how sure a policy is of them, and their rewards.

Everything is drawn in units of `unit_tokens` tokens.

Question: the probability p of a right response is drawn from Beta(prior). Response: steps, their number log-normal
(steps_median, steps_sigma), each of a geometric number of units whose mean falls from step_units by the factor shorter
from one to the next; then the answer is stated, and the response ends. With length_median the number of tokens before
the answer is log-normal instead, and steps go on until there. Value: with the end of each step the probability that the
response ends right moves from v to a draw from Beta(k v, k (1 - v)), k = concentration, whose mean is v; the reward is
1 with the probability left at the end. Confidence: a step's surprise m is drawn from a Gamma distribution
(surprise_shape, mean surprise_mean), and is coupling times as large before a move down as before one up; its units'
-log probabilities are exponential with mean m.

The defaults are fitted to arXiv 2605.28109, table 3 (Qwen3-8B-Base on 1,024 questions): 12 independent responses have
12,035 tokens, random trees 0.630 times as many; of 8 responses 19.6 % are right, and 54.7 % of groups have rewards that
differ.

Every draw is a function of seed, question, response and the place where it forked: a response that is forked shares its
prefix's values and steps, and no schedule changes it.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ibtpo.sampling.codec import Codec
from ibtpo.sampling.interface import Question
from ibtpo.tree import Response

WRONG, TEXT, STEP, ANSWER, RIGHT = range(5)  # tokens; the first and the last end a response
PIECES = [b"", b"x", b"\n\n", b"The answer is 5", b""]


@dataclasses.dataclass(frozen=True)
class Process:
    """The process, and the tokens that it draws. longest: units after which a response is cut off."""

    seed: int = 0
    unit_tokens: int = 10
    longest: int = 204
    prior: tuple[float, float] = (0.46, 1.88)
    step_units: float = 13.0
    shorter: float = 0.95
    steps_median: float = 9.2
    steps_sigma: float = 0.35
    length_median: float | None = None
    length_sigma: float = 0.5
    concentration: float = 6.0
    surprise_shape: float = 1.2
    surprise_mean: float = 0.25
    coupling: float = 1.25

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """[n]: probability that the answer comes after n steps (after n units, with length_median), given that it has
        not come before."""
        if self.length_median is None:
            return hazards(self.steps_median, self.steps_sigma, 60)
        return hazards(self.length_median / self.unit_tokens, self.length_sigma, self.longest + 1)

    def codec(self) -> Codec:
        """How its tokens are read."""
        return Codec(
            len(PIECES), stop_ids=[WRONG, RIGHT], token_bytes=PIECES, find_answer=_find_answer, cut_steps=step_ends
        )

    def begin(self, question: int) -> "State":
        """The state of a question before any response."""
        return State(0, np.random.default_rng([self.seed, question]).beta(*self.prior))

    def respond(self, question: int, response: int, prefix: Sequence["State"]) -> "Plan":
        """A response as it will be if it is drawn to its end.

        prefix: states before each unit that it shares with its parent, and after the last of them; of one that shares
        nothing that of `begin`.
        """
        rng = np.random.default_rng([self.seed, question, response, len(prefix) - 1])
        kinds: list[int] = []
        log_probs: list[float] = []
        # The rest of a step that is forked inside is drawn anew.
        states = [*prefix[:-1], dataclasses.replace(prefix[-1], surprise=0.0)]
        last = prefix[-1].last
        while len(states) - 1 < self.longest and last not in (WRONG, RIGHT):
            state = states[-1]
            if last == ANSWER:
                last = RIGHT if rng.random() < state.value else WRONG
                log_probs.append(-1e-3)
            else:
                state = state if state.surprise else self.open_step(state, rng)
                last = self._unit(state, len(states) - 1, rng)
                log_probs.append(-float(rng.exponential(state.surprise)))
            if last == STEP:
                state = State(state.steps + 1, state.moved)
            elif last != state.last:
                state = dataclasses.replace(state, last=last)
            kinds.append(last)
            states.append(state)
        return Plan(np.array(kinds, np.int8), np.array(log_probs, np.float32), states, len(prefix) - 1)

    def draw(self, plan: "Plan") -> tuple[np.ndarray, np.ndarray]:
        """The tokens and log-probabilities of a response's own units; what a unit is, its last token says."""
        tokens = np.full(len(plan.kinds) * self.unit_tokens, TEXT, np.int32)
        tokens[self.unit_tokens - 1 :: self.unit_tokens] = plan.kinds
        return tokens, np.repeat(plan.log_probs, self.unit_tokens)

    def length(self, plan: "Plan") -> int:
        """Tokens of a response that ends by itself; of another one more than it may have."""
        ends = plan.states[-1].last in (WRONG, RIGHT)
        return self.unit_tokens * (len(plan.states) - 1 if ends else self.longest + 1)

    def _unit(self, state: "State", units: int, rng: np.random.Generator) -> int:
        """The next unit: the answer; a step's end; or more of the step."""
        if self.length_median is not None:
            if rng.random() < self.ends[min(units, len(self.ends) - 1)]:
                return ANSWER
        elif state.last == STEP and state.steps and rng.random() < self.ends[min(state.steps, len(self.ends) - 1)]:
            return ANSWER
        return STEP if rng.random() < 1 / max(1.0, self.step_units * self.shorter**state.steps) else TEXT

    def open_step(self, state: "State", rng: np.random.Generator) -> "State":
        """The state within the step that begins: where its value will have moved, and its surprise."""
        v = state.value
        moved = v
        if 1e-6 < v < 1 - 1e-6:
            moved = float(rng.beta(self.concentration * v, self.concentration * (1 - v)))
        surprise = rng.gamma(self.surprise_shape, self.surprise_mean / self.surprise_shape)
        surprise *= self.coupling ** (0.5 if moved < v else -0.5)
        return dataclasses.replace(state, surprise=max(float(surprise), 1e-4), moved=moved)


@dataclasses.dataclass(frozen=True)
class State:
    """Before a unit: steps finished, the value since the last of them, and of the step under way its surprise (0: none
    is) and the value that it ends with. last: the unit before it."""

    steps: int
    value: float
    surprise: float = 0.0
    moved: float = 0.0
    last: int = STEP


@dataclasses.dataclass(frozen=True)
class Plan:
    """A response's own units from `first` on, and the states before each of all its units and after the last.

    kinds, log_probs: [units] of its own.
    """

    kinds: np.ndarray
    log_probs: np.ndarray
    states: list[State]
    first: int

    def prefix(self, units: int) -> list[State]:
        """The states that a fork behind the first `units` units shares."""
        return self.states[: units + 1]


@dataclasses.dataclass(frozen=True)
class Replay(Process):
    """Draws what a sampler has drawn, token by token. recorded: its responses by question and index; stop_ids: the
    tokens that ended them."""

    unit_tokens: int = 1
    recorded: Mapping[tuple[int, int], Response] = dataclasses.field(default_factory=dict)
    stop_ids: Collection[int] = ()

    def begin(self, question: int) -> "State":
        return State(0, 0.0)

    def respond(self, question: int, response: int, prefix: Sequence["State"]) -> "Plan":
        r = self.recorded[question, response]
        return Plan(r.tokens[r.fork :], r.log_probs[r.fork :], [State(0, 0.0)] * (len(r.tokens) + 1), r.fork)

    def draw(self, plan: "Plan") -> tuple[np.ndarray, np.ndarray]:
        return plan.kinds, plan.log_probs

    def length(self, plan: "Plan") -> int:
        ended = int(plan.kinds[-1]) in self.stop_ids
        return plan.first + len(plan.kinds) if ended else 2**30


def grade(question: Question, tokens: np.ndarray) -> float:
    """The reward of a response, which its last token says."""
    return float(len(tokens) > 0 and tokens[-1] == RIGHT)


def hazards(median: float, sigma: float, longest: int) -> np.ndarray:
    """[longest]: the probability that a log-normal number (rounded) is n, given that it is at least n."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-math.log(x / median) / (sigma * math.sqrt(2)))

    cumulative = np.array([0.0] + [below(n + 0.5) for n in range(longest)])
    return np.clip(np.diff(cumulative) / np.maximum(1 - cumulative[:-1], 1e-300), 0, 1)


def step_ends(tokens: np.ndarray) -> list[int]:
    """Exclusive ends of the steps of a response."""
    ends = (np.flatnonzero(np.asarray(tokens) == STEP) + 1).tolist()
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]


def _find_answer(text: str) -> int:
    at = text.find("The")
    return len(text) if at < 0 else at
