"""How one question grows: its responses as they are decoded, and the branches of each round. Host only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ibtpo.sampling.choosing import choose
from ibtpo.sampling.codec import Codec
from ibtpo.sampling.interface import Question, SampledTree
from ibtpo.sampling.pages import pages_for
from ibtpo.sampling.strategies import Fork, TreeOptions, most_responses, num_responses, segment_forks
from ibtpo.tree import Response, build_tree


@dataclass
class Draft:
    """A response being decoded: the fields of `Response`, growing."""

    index: int
    parent: int
    fork: int
    round: int
    tokens: list[int]
    log_probs: list[float]
    limit: int = 0  # tokens at which it stops or pauses
    has_row: bool = False  # whether its own row holds its cached tokens, or will when its turn comes
    wanted: bool = False  # to be decoded further, now or after its question is back
    finish: str = ""  # "" while it is unfinished, which includes paused at a segment's end
    reward: float = 0.0
    graded: bool = False  # whether it is finished, and `reward` its reward
    answer_start: int | None = None  # of a finished one, once a fork is to be chosen

    def place(self) -> Response:
        """Where it forked, without its tokens."""
        nothing = np.zeros(0)
        return Response(self.index, self.parent, self.fork, self.round, nothing, nothing, "", 0.0)

    def finished(self) -> Response:
        return Response(
            index=self.index,
            parent=self.parent,
            fork=self.fork,
            round=self.round,
            tokens=np.asarray(self.tokens, np.int32),
            log_probs=np.asarray(self.log_probs, np.float32),
            finish=self.finish,
            reward=self.reward,
        )


@dataclass
class Growing:
    """A question from its turn to its end. `waiting` counts its responses queued, decoding or being graded. It holds a
    block of rows of one shard while it is in flight (`shard` >= 0)."""

    order: int
    question: Question
    shard: int = -1
    prompt_row: int = -1  # within the shard, as every row
    entered: int = 0  # chunks dispatched when it was admitted
    drafts: list[Draft] = field(default_factory=list)
    round: int = -1
    waiting: int = 0

    def done(self, draft: Draft) -> None:
        """To be called when a draft paused or, where it is finished, is graded."""
        self.waiting -= 1
        draft.graded = bool(draft.finish)

    def row(self, draft: Draft) -> int:
        """The draft's own row."""
        return self.prompt_row + 1 + draft.index

    def source_row(self, draft: Draft) -> int:
        """The row that has the draft's prefix: that of the response it forked from, or the prompt's."""
        return self.row(self.drafts[draft.parent]) if draft.fork else self.prompt_row

    def sequence(self, draft: Draft) -> list[int]:
        """Prompt and response."""
        return [*self.question.tokens, *draft.tokens]

    def cached_from_source(self, draft: Draft) -> int:
        """How many cached tokens of `source_row` the draft's row begins with: of a prefix of n, n - 1 are."""
        prompt = len(self.question.tokens)
        return min(prompt + max(draft.fork - 1, 0), prompt + len(draft.tokens) - 1)

    def cached_tokens(self) -> int:
        """Unique tokens of it in the cache; each response's last one is pending."""
        return len(self.question.tokens) + sum(max(0, len(d.tokens) - d.fork - 1) for d in self.drafts if d.has_row)

    def pages_to_enter(self, page_size: int) -> int:
        """Pages that its prompt, and the responses it already has, take at once."""
        prompt = len(self.question.tokens)
        own = (
            pages_for(prompt + len(d.tokens) - 1, page_size) - self.cached_from_source(d) // page_size
            for d in self.drafts
            if d.has_row
        )
        return pages_for(prompt, page_size) + sum(own)


class Growth:
    """Grows questions by the rules of `tree`, with steps and answers cut by `codec`.

    seed: words of the call's PRNG key. The choices for a question depend on them, its id, its round and its
    responses alone.
    """

    def __init__(self, tree: TreeOptions, codec: Codec, seed: Sequence[int]):
        self.tree, self.codec, self.seed = tree, codec, list(seed)
        self.lag = 0 if tree.strategy == "fixed_width" else tree.lag  # whose rounds end where its paths pause

    def stopped(self, draft: Draft) -> bool:
        """To be called when a draft is decoded no further for now: whether it is finished (it ended or ran out of
        tokens), or else paused at a segment's end."""
        draft.wanted = False
        if not draft.finish and len(draft.tokens) < self.tree.max_new_tokens:
            return False
        draft.finish = draft.finish or "length"
        return True

    def next_round(self, q: Growing) -> list[Draft]:
        """Opens the question's next round, if it may: the drafts to decode, old ones that paused and new ones. None of
        them where others are waited for, or the question is finished (`Growing.waiting` tells the two apart)."""
        paused: list[Draft] = []
        if not q.drafts:
            forks = [Fork(response=-1, position=0)] * self.tree.initial
        elif paused := self._paused(q):
            active = [(d.index, len(d.tokens)) for d in paused]
            stated = [d.index for d in paused if self._answer_start(q, d) < len(d.tokens)]
            forks = segment_forks(active, len(q.drafts) - len(paused), self.tree, stated)
        elif known := self._known(q):
            forks = self._choose(q, known)
        else:
            return []
        q.round += 1
        drafts = paused + [self._fork(q, fork) for fork in forks]
        for draft in drafts:
            draft.limit = self._limit(draft)
            draft.wanted = True
        q.waiting += len(drafts)
        return drafts

    def _paused(self, q: Growing) -> list[Draft]:
        """The drafts that wait at a segment's end for the others; none while those are under way."""
        return [] if q.waiting else [d for d in q.drafts if not d.finish]

    def _known(self, q: Growing) -> list[Draft]:
        """The responses that the next round is chosen from: those of the rounds up to the last but `lag`, and of the
        first. None where one of them is not graded yet, or no round is to come."""
        if len(q.drafts) < num_responses(self.tree):
            known = [d for d in q.drafts if d.round <= max(0, q.round - self.lag)]
        elif len(q.drafts) < most_responses(self.tree) and len({d.reward for d in q.drafts}) == 1:
            known = q.drafts  # rewards that are all equal earn an extra round
        else:
            return []
        return known if all(d.graded for d in known) else []

    def result(self, q: Growing, drafts: Sequence[Draft] | None = None) -> SampledTree:
        """The tree of a finished question, or of its first `drafts` so far."""
        responses = [d.finished() for d in (q.drafts if drafts is None else drafts)]
        return SampledTree(q.question, build_tree(q.question.tokens, responses, self.codec.step_ends), responses)

    def _answer_start(self, q: Growing, draft: Draft) -> int:
        """Where the draft first states its answer; looked for once in a finished one, and never where nothing forks."""
        if draft.answer_start is not None:
            return draft.answer_start
        start = self.codec.answer_start(draft.tokens, q.question.find_answer)
        draft.answer_start = start if draft.finish else None
        return start

    def _choose(self, q: Growing, known: Sequence[Draft]) -> list[Fork]:
        """The strategy's choice for the next round, from the first, finished responses."""
        sampled = self.result(q, known)
        rng = np.random.default_rng([*self.seed, q.question.id, q.round + 1])
        limits = [self._answer_start(q, d) for d in known]
        pending = [d.place() for d in q.drafts[len(known) :]]
        return choose(sampled.tree, sampled.responses, self.tree, rng, limits, pending)

    def _fork(self, q: Growing, fork: Fork) -> Draft:
        """A new draft of the question."""
        parent = q.drafts[fork.response] if fork.position else None
        draft = Draft(
            index=len(q.drafts),
            parent=parent.index if parent else -1,
            fork=fork.position,
            round=q.round,
            tokens=parent.tokens[: fork.position] if parent else [],
            log_probs=parent.log_probs[: fork.position] if parent else [],
        )
        q.drafts.append(draft)
        return draft

    def _limit(self, draft: Draft) -> int:
        """Tokens at which a draft stops or, with "fixed_width", pauses: at the next segment boundary."""
        limit = self.tree.max_new_tokens
        if self.tree.strategy == "fixed_width":
            segment = self.tree.segment_tokens
            limit = min(limit, (len(draft.tokens) // segment + 1) * segment)
        return limit
