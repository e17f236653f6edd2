"""Keeps many questions in flight in one decode batch and grows each one's tree.

The host side of the sampler. A question owns a block of page-table rows: one for its prompt, one for
each response. Its rounds are its own: as soon as the last response of a round is graded the strategy
chooses the next forks, which take the slots that fall free. Nothing waits for another question, and
since every random draw depends on (key, question id, response index, position) alone, nothing about a
question depends on the others either.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import jax
import numpy as np
from jax import numpy as jnp

from ibtpo.models.config import ModelConfig
from ibtpo.sampling import pages as paging
from ibtpo.sampling.decode import Chunk, SamplerState, Starts, decode_chunk, make_slots, prefill, start
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.strategies import STRATEGIES, Fork, TreeOptions, num_responses, segment_forks
from ibtpo.tree import Response, Tree, build_tree

PREFILL_BATCH = 8  # prompts per prefill call; a fixed shape, so that it compiles once per length
SMALLEST_PREFILL = 32  # prompt lengths are rounded up to this times a power of two


@dataclass(frozen=True)
class SamplerOptions:
    """Static shapes of the sampler.

    slots: sequences decoded at once. pages: KV pages, 0 for as many as `questions_in_flight` questions
    can ever need. page_size: tokens per page. chunk: tokens decoded between two looks by the host.
    max_prompt_tokens: longest prompt. questions_in_flight: 0 for one per slot.
    """

    slots: int
    pages: int
    page_size: int
    chunk: int
    max_prompt_tokens: int
    questions_in_flight: int = 0

    @classmethod
    def from_config(cls, config) -> "SamplerOptions":
        """Reads the `sampling` section of a config, and `data.max_prompt_tokens`."""
        sampling = config.sampling
        return cls(
            slots=sampling.slots,
            pages=sampling.pages,
            page_size=sampling.page_size,
            chunk=sampling.chunk,
            max_prompt_tokens=config.data.max_prompt_tokens,
            questions_in_flight=sampling.questions_in_flight,
        )


@dataclass(frozen=True)
class Question:
    """A prompt to grow a tree from. id: what its random draws depend on; tokens: the prompt."""

    id: int
    tokens: Sequence[int]


@dataclass
class SampledTree:
    """One finished question: its tree (Q = 1, exact sizes) and the responses it was built from."""

    question: Question
    tree: Tree
    responses: list[Response]


@dataclass
class SamplerStats:
    """What one call cost. Add two with `+`.

    generated_tokens: tokens decoded, each once however many responses share it.
    response_tokens: tokens of all responses, shared ones counted in each.
    prompt_tokens: tokens prefilled. decode_steps: steps of the decode loop.
    slot_steps: decode_steps times slots; generated_tokens / slot_steps is the useful share.
    peak_pages: most KV pages in use at once. pages_left: in use after the last question (0).
    """

    questions: int = 0
    responses: int = 0
    generated_tokens: int = 0
    response_tokens: int = 0
    prompt_tokens: int = 0
    decode_steps: int = 0
    slot_steps: int = 0
    peak_pages: int = 0
    pages_left: int = 0

    def __add__(self, other: "SamplerStats") -> "SamplerStats":
        total = {name: value + getattr(other, name) for name, value in vars(self).items()}
        total["peak_pages"] = max(self.peak_pages, other.peak_pages)
        return SamplerStats(**total)


# Compiled once per shape, whichever sampler asks. Donated: the pool is updated in place, never copied.
_prefill = jax.jit(prefill, static_argnums=0, donate_argnums=2)
_start = jax.jit(start, donate_argnums=0)
_release = jax.jit(paging.release, donate_argnums=0)
_decode_chunk = jax.jit(decode_chunk, static_argnums=0, donate_argnums=2, static_argnames=("chunk", "pages_per_slot"))

Grade = Callable[[Question, np.ndarray], "float | Future"]
StepEnds = Callable[[np.ndarray], list[int]]


@dataclass
class _Draft:
    """A response being decoded: what `Response` will hold, growing."""

    index: int
    parent: int
    fork: int
    round: int
    tokens: list[int]
    log_probs: list[float]
    grade: Future | None = None
    finish: str = ""  # "" while it is unfinished, which includes paused at a segment's end
    reward: float = 0.0
    answer_start: int = 0  # known once it is finished

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
class _InFlight:
    """A question that holds a block of rows. `waiting` counts its responses queued, decoding or
    being graded; at zero its round is over."""

    order: int
    question: Question
    prompt_row: int
    drafts: list[_Draft] = field(default_factory=list)
    round: int = -1
    waiting: int = 0

    def row(self, draft: _Draft) -> int:
        return self.prompt_row + 1 + draft.index


class TreeSampler:
    """Samples trees, or flat groups with `strategy="independent"`, from a decoder.

    >>> sampler = TreeSampler(graphdef, decoder.config, options, tree_options,
    ...                       stop_ids=[eos], step_ends=lambda tokens: step_ends(tokens, table, b"\\n\\n"))
    >>> trees, stats = sampler(params, questions, grade, key=jax.random.key(0), sampling=SamplingParams())

    stop_ids: tokens that end a response. step_ends(tokens): exclusive ends of a response's steps.
    answer_start(tokens): index of the first token of the answer marker (default: none); strategy
    "entropy" never forks behind it. dtype: of the KV cache.

    Raises ValueError if the pages cannot hold even one question.
    """

    def __init__(
        self,
        graphdef,
        model: ModelConfig,
        options: SamplerOptions,
        tree: TreeOptions,
        *,
        stop_ids: Sequence[int],
        step_ends: StepEnds,
        answer_start: Callable[[np.ndarray], int] = len,
        dtype=jnp.float32,
    ):
        self.options, self.tree, self.step_ends = options, tree, step_ends
        self.answer_start = answer_start
        self.stop_ids = frozenset(int(i) for i in stop_ids)
        self.group_size = num_responses(tree)
        self.max_length = options.max_prompt_tokens + tree.max_new_tokens
        self._model, self._dtype = model, dtype

        in_flight = options.questions_in_flight or options.slots
        worst = self._worst_case_pages(options.max_prompt_tokens)
        self.num_pages = options.pages or in_flight * worst
        if self.num_pages < worst:
            raise ValueError(
                f"sampling.pages={self.num_pages} cannot hold one question: {self.group_size} responses "
                f"of {tree.max_new_tokens} tokens after a prompt of {options.max_prompt_tokens} need up "
                f"to {worst} pages of {options.page_size} tokens. Raise sampling.pages to at least "
                f"{worst}, or set it to 0 to have it computed."
            )
        self.num_blocks = in_flight
        self._stop_array = jnp.asarray(sorted(self.stop_ids), jnp.int32)

        self._initial_state = jax.jit(self._empty_state)
        self._prefill = functools.partial(_prefill, graphdef)
        self._decode = functools.partial(_decode_chunk, graphdef, chunk=options.chunk)
        # Attention reads as many pages as the longest live sequence needs, rounded up to one of these.
        full = paging.pages_for(self.max_length, options.page_size)
        self._page_buckets = sorted({max(1, full // 4), max(1, full // 2), full})

    def _worst_case_pages(self, prompt_tokens: int) -> int:
        """Pages a question can need at most: its prompt's, and for each response all those beyond the
        whole pages of the prompt, as if it shared nothing else."""
        page_size = self.options.page_size
        longest = paging.pages_for(prompt_tokens + self.tree.max_new_tokens - 1, page_size)
        own = longest - (prompt_tokens - 1) // page_size
        return paging.pages_for(prompt_tokens, page_size) + self.group_size * own

    def _empty_state(self) -> SamplerState:
        model, options = self._model, self.options
        return SamplerState(
            pool=paging.make_pool(
                num_layers=model.num_layers,
                num_pages=self.num_pages,
                page_size=options.page_size,
                num_kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                num_rows=self.num_blocks * (self.group_size + 1),
                pages_per_row=paging.pages_for(self.max_length, options.page_size),
                dtype=self._dtype,
            ),
            slots=make_slots(options.slots),
        )

    def __call__(
        self,
        params,
        questions: Sequence[Question],
        grade: Grade,
        *,
        key: jax.Array,
        sampling: SamplingParams,
        on_finished: Callable[[SampledTree], None] | None = None,
    ) -> tuple[list[SampledTree], SamplerStats]:
        """Grows a tree for every question.

        params: the decoder's parameters. grade(question, generated tokens) returns a reward or a Future
        of one; it is called once per response. key: typed PRNG key of this batch. on_finished is called
        with each tree as it is done. Returns the trees in the order of the questions, and what it cost.
        The KV cache lives only as long as the call, so no older policy's keys can be read.
        """
        return _Run(self, params, questions, grade, key, sampling.traced(), on_finished).run()


class _Run:
    """The mutable state of one call of a `TreeSampler`."""

    def __init__(self, sampler, params, questions, grade, key, sampling, on_finished):
        self.sampler, self.params, self.grade = sampler, params, grade
        self.key, self.sampling, self.on_finished = key, sampling, on_finished
        self.seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.state = sampler._initial_state()
        self.pending = deque(enumerate(questions))
        self.results: list[SampledTree | None] = [None] * len(questions)
        self.free_blocks = list(range(sampler.num_blocks))[::-1]
        self.free_pages = sampler.num_pages
        self.free_slots = list(range(sampler.options.slots))[::-1]
        self.decoding: dict[int, tuple[_InFlight, _Draft]] = {}  # by slot
        self.queue: deque[tuple[_InFlight, _Draft, int]] = deque()  # with the row it starts from
        self.grading: list[tuple[_InFlight, _Draft]] = []
        self.in_flight = 0
        self.stats = SamplerStats(questions=len(questions))
        for question in questions:
            if not 0 < len(question.tokens) <= sampler.options.max_prompt_tokens:
                raise ValueError(
                    f"question {question.id} has a prompt of {len(question.tokens)} tokens; "
                    f"data.max_prompt_tokens allows 1 to {sampler.options.max_prompt_tokens}"
                )

    def run(self) -> tuple[list[SampledTree], SamplerStats]:
        while self.pending or self.in_flight:
            self._admit()
            self._fill_slots()
            if self.decoding:
                self._decode()
            elif self.grading:
                wait([draft.grade for _, draft in self.grading], return_when=FIRST_COMPLETED)
            self._collect_grades()
        self.stats.pages_left = int(paging.pages_in_use(self.state.pool))
        return self.results, self.stats

    def _admit(self) -> None:
        """Prefills the prompts of as many questions as rows and pages allow, and starts their trees."""
        sampler, admitted = self.sampler, []
        while self.pending and self.free_blocks:
            pages = sampler._worst_case_pages(len(self.pending[0][1].tokens))
            if pages > self.free_pages:
                break
            order, question = self.pending.popleft()
            self.free_pages -= pages
            row = self.free_blocks.pop() * (sampler.group_size + 1)
            admitted.append(_InFlight(order, question, row))
        for i in range(0, len(admitted), PREFILL_BATCH):
            self._prefill(admitted[i : i + PREFILL_BATCH])
        for question in admitted:
            self.in_flight += 1
            self._advance(question)

    def _prefill(self, batch: list[_InFlight]) -> None:
        longest = max(len(q.question.tokens) for q in batch)
        width = SMALLEST_PREFILL
        while width < longest:
            width *= 2
        tokens = np.zeros((PREFILL_BATCH, width), np.int32)
        lengths = np.zeros(PREFILL_BATCH, np.int32)
        rows = np.full(PREFILL_BATCH, self.state.pool.page_table.shape[0], np.int32)
        for i, q in enumerate(batch):
            lengths[i], rows[i] = len(q.question.tokens), q.prompt_row
            tokens[i, : lengths[i]] = q.question.tokens
        pool = self.sampler._prefill(self.params, self.state.pool, tokens, lengths, rows)
        self.state = self.state.replace(pool=pool)
        self.stats.prompt_tokens += int(lengths.sum())

    def _advance(self, q: _InFlight) -> None:
        """Opens the question's next round, or finishes it."""
        sampler, options = self.sampler, self.sampler.tree
        finished = [d for d in q.drafts if d.finish]
        paused = [d for d in q.drafts if not d.finish]
        q.round += 1
        if not q.drafts:
            forks = [Fork(response=-1, position=0)] * options.initial
        elif paused:
            forks = segment_forks([(d.index, len(d.tokens)) for d in paused], len(finished), options)
        elif len(q.drafts) < sampler.group_size:
            responses = [d.finished() for d in q.drafts]
            tree = build_tree(q.question.tokens, responses, sampler.step_ends)
            rng = np.random.default_rng([*self.seed, q.question.id, q.round])
            limits = [d.answer_start for d in q.drafts]
            forks = STRATEGIES[options.strategy](tree, responses, options, rng, limits)
        else:
            self._finish(q)
            return
        for draft in paused:
            self._enqueue(q, draft, q.row(draft))
        for fork in forks:
            parent = q.drafts[fork.response] if fork.position else None
            draft = _Draft(
                index=len(q.drafts),
                parent=parent.index if parent else -1,
                fork=fork.position,
                round=q.round,
                tokens=parent.tokens[: fork.position] if parent else [],
                log_probs=parent.log_probs[: fork.position] if parent else [],
            )
            q.drafts.append(draft)
            self._enqueue(q, draft, q.row(parent) if parent else q.prompt_row)

    def _enqueue(self, q: _InFlight, draft: _Draft, source: int) -> None:
        q.waiting += 1
        self.queue.append((q, draft, source))

    def _fill_slots(self) -> None:
        count = min(len(self.free_slots), len(self.queue))
        if not count:
            return
        options = self.sampler.tree
        num_slots = self.sampler.options.slots
        columns = {name: np.zeros(num_slots, np.int32) for name in Starts.__dataclass_fields__}
        columns["slot"][:] = num_slots
        columns["length"][:] = 1
        for i in range(count):
            q, draft, source = self.queue.popleft()
            slot = self.free_slots.pop()
            self.decoding[slot] = q, draft
            prompt = q.question.tokens
            budget = options.max_new_tokens
            if options.strategy == "fixed_width":  # pauses at the next segment boundary
                segment = options.segment_tokens
                budget = min(budget, (len(draft.tokens) // segment + 1) * segment)
            entry = dict(
                slot=slot,
                source=source,
                row=q.row(draft),
                token=draft.tokens[-1] if draft.tokens else prompt[-1],
                length=len(prompt) + len(draft.tokens),
                limit=len(prompt) + budget,
                question=q.question.id,
                response=draft.index,
            )
            for name, value in entry.items():
                columns[name][i] = value
        self.state = _start(self.state, Starts(**columns), self.key)

    def _decode(self) -> None:
        sampler = self.sampler
        longest = max(len(q.question.tokens) + len(d.tokens) for q, d in self.decoding.values())
        needed = paging.pages_for(min(longest + sampler.options.chunk, sampler.max_length), sampler.options.page_size)
        self.state, out = sampler._decode(
            self.params,
            self.state,
            self.sampling,
            sampler._stop_array,
            pages_per_slot=next(n for n in sampler._page_buckets if n >= needed),
        )
        out: Chunk = jax.device_get(out)
        steps = int(out.count.max())
        self.stats.decode_steps += steps
        self.stats.slot_steps += steps * len(out.count)
        self.stats.generated_tokens += int(out.count.sum())
        self.stats.peak_pages = max(self.stats.peak_pages, int(out.pages_in_use))
        for slot, (q, draft) in list(self.decoding.items()):
            count = out.count[slot]
            draft.tokens.extend(out.tokens[slot, :count].tolist())
            draft.log_probs.extend(out.log_probs[slot, :count].tolist())
            if not out.active[slot]:
                del self.decoding[slot]
                self.free_slots.append(slot)
                self._stopped(q, draft)

    def _stopped(self, q: _InFlight, draft: _Draft) -> None:
        """A sequence left its slot: it ended, ran out of tokens, or paused at a segment's end."""
        if draft.tokens[-1] in self.sampler.stop_ids:
            draft.finish = "stop"
        elif len(draft.tokens) == self.sampler.tree.max_new_tokens:
            draft.finish = "length"
        else:
            self._done_waiting(q)
            return
        self.stats.responses += 1
        self.stats.response_tokens += len(draft.tokens)
        tokens = np.asarray(draft.tokens, np.int32)
        draft.answer_start = self.sampler.answer_start(tokens)
        reward = self.grade(q.question, tokens)
        if isinstance(reward, Future) and not reward.done():
            draft.grade = reward
            self.grading.append((q, draft))
        else:
            draft.reward = float(reward.result() if isinstance(reward, Future) else reward)
            self._done_waiting(q)

    def _collect_grades(self) -> None:
        still = []
        for q, draft in self.grading:
            if draft.grade.done():
                draft.reward, draft.grade = float(draft.grade.result()), None
                self._done_waiting(q)
            else:
                still.append((q, draft))
        self.grading = still

    def _done_waiting(self, q: _InFlight) -> None:
        q.waiting -= 1
        if not q.waiting:
            self._advance(q)

    def _finish(self, q: _InFlight) -> None:
        sampler = self.sampler
        rows = np.arange(q.prompt_row, q.prompt_row + sampler.group_size + 1, dtype=np.int32)
        self.state = self.state.replace(pool=_release(self.state.pool, rows))
        self.free_blocks.append(q.prompt_row // (sampler.group_size + 1))
        self.free_pages += sampler._worst_case_pages(len(q.question.tokens))
        self.in_flight -= 1
        responses = [d.finished() for d in q.drafts]
        tree = build_tree(q.question.tokens, responses, sampler.step_ends)
        result = self.results[q.order] = SampledTree(q.question, tree, responses)
        if self.on_finished:
            self.on_finished(result)
