"""Trees of a stated process, grown with the real rules of `ibtpo.sampling.growth`; each unit counts as one token."""

from __future__ import annotations

import dataclasses

from ibtpo.sampling import Question, SampledTree, TreeOptions
from ibtpo.sampling.growth import Draft, Growing, Growth
from ibtpo.sampling.process import RIGHT, WRONG, Plan, Process

PROCESS = Process()
UNIT_TOKENS = PROCESS.unit_tokens


class Simulation:
    """Grows the trees of simulated questions."""

    def __init__(self, tree: TreeOptions, seed: int = 0, segment_tokens: int = 256):
        self.process = dataclasses.replace(PROCESS, seed=seed)
        self.codec = self.process.codec()
        self.tree = dataclasses.replace(
            tree,
            max_new_tokens=self.process.longest,
            min_new_tokens=1,
            segment_tokens=round(segment_tokens / UNIT_TOKENS),
        )
        self.growth = Growth(self.tree, self.codec, [seed])

    def grow(self, id: int) -> SampledTree:
        """The finished tree of question `id`; the question and its first responses are the same for all strategies."""
        q = Growing(order=0, question=Question(id, [1]))
        plans: list[Plan] = []
        while drafts := self.growth.next_round(q):
            for draft in drafts:
                if draft.index == len(plans):
                    shared = plans[draft.parent].prefix(draft.fork) if draft.fork else [self.process.begin(id)]
                    plans.append(self.process.respond(id, draft.index, shared))
                _decode(draft, plans[draft.index])
                if self.growth.stopped(draft):
                    draft.reward = float(draft.tokens[-1] == RIGHT)
                q.done(draft)
        return self.growth.result(q)


def _decode(draft: Draft, plan: Plan) -> None:
    """Adds the planned units to the draft until it ends or reaches its limit."""
    first, last = len(draft.tokens) - plan.first, draft.limit - plan.first
    draft.tokens.extend(plan.kinds[first:last].tolist())
    draft.log_probs.extend(plan.log_probs[first:last].tolist())
    if draft.tokens[-1] in (WRONG, RIGHT):
        draft.finish = "stop"
