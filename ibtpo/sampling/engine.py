"""Keeps many questions in flight in one decode batch and grows each one's tree.

The host side of the sampler. A question owns a block of page-table rows: one for its prompt, one for
each response. Its rounds are its own: as soon as the last response of a round is graded the strategy
chooses the next forks, which take the slots that fall free. Nothing waits for another question, and
since every random draw depends on (key, question id, response index, position) alone, nothing about a
question depends on the others either.

Under a mesh a question lives on one shard of the logical axis "rows": its pages, rows and slots are there.
With several processes each of them runs this same plan: the device's answers reach all of them, and a
response is graded by one, which tells the others.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental import multihost_utils

from ibtpo import parallel
from ibtpo.models.config import ModelConfig
from ibtpo.sampling import pages as paging
from ibtpo.sampling.decode import (
    STATE_AXES,
    Chunk,
    SamplerState,
    Starts,
    decode_chunk,
    make_slots,
    prefill,
    release,
    start,
)
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.strategies import STRATEGIES, Fork, TreeOptions, num_responses, segment_forks
from ibtpo.tree import Response, Tree, build_tree

PREFILL_BATCH = 8  # prompts per prefill call, at least one per shard; fixed, so that it compiles once per length
SMALLEST_PREFILL = 32  # prompt lengths are rounded up to this times a power of two


@dataclass(frozen=True)
class SamplerOptions:
    """Static shapes of the sampler, over all shards.

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
_release = jax.jit(release, donate_argnums=0)
_serving = jax.jit(parallel.serving, static_argnums=1)
_pages_in_use = jax.jit(lambda pool: parallel.replicate(paging.pages_in_use(pool)))
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
    grade: "Future | float | None" = None  # None: not graded yet, or graded by another process
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
    shard: int
    prompt_row: int  # within the shard, as every row
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

    The mesh that is current when it is made (`jax.set_mesh`) must be current when it is called.

    Raises ValueError if the pages cannot hold even one question, or do not divide among the shards.
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
        self._graphdef, self._model, self._dtype = graphdef, model, dtype

        shards = self.num_shards = parallel.num_row_shards()
        if options.slots % shards:
            raise ValueError(
                f"sampling.slots={options.slots} cannot be split over mesh.data x mesh.fsdp = {shards} shards: set it "
                f"to a multiple of {shards}, e.g. {-(-options.slots // shards) * shards}"
            )
        # What one shard has. Blocks: rows of one question.
        self.num_slots = options.slots // shards
        self.num_blocks = -(-(options.questions_in_flight or options.slots) // shards)
        worst = self._worst_case_pages(options.max_prompt_tokens)
        self.num_pages = options.pages // shards if options.pages else self.num_blocks * worst
        if self.num_pages < worst:
            raise ValueError(
                f"sampling.pages={options.pages} cannot hold one question{f' per shard ({shards})' * (shards > 1)}: "
                f"{self.group_size} responses of {tree.max_new_tokens} tokens after a prompt of "
                f"{options.max_prompt_tokens} need up to {worst} pages of {options.page_size} tokens. Raise "
                f"sampling.pages to at least {worst * shards}, or set it to 0 to have it computed."
            )
        self._stop_array = np.array(sorted(self.stop_ids), np.int32)

        self._initial_state = jax.jit(self._empty_state)
        # Attention reads as many pages as the longest live sequence needs, rounded up to one of these.
        full = paging.pages_for(self.max_length, options.page_size)
        self._page_buckets = sorted({max(1, full // 4), max(1, full // 2), full})

    @property
    def total_pages(self) -> int:
        """KV pages of the pool, over all shards."""
        return self.num_pages * self.num_shards

    @property
    def least_pages(self) -> int:
        """The fewest pages, over all shards, with which any question can be sampled."""
        return self._worst_case_pages(self.options.max_prompt_tokens) * self.num_shards

    def _worst_case_pages(self, prompt_tokens: int) -> int:
        """Pages a question can need at most: its prompt's, and for each response all those beyond the
        whole pages of the prompt, as if it shared nothing else."""
        page_size = self.options.page_size
        longest = paging.pages_for(prompt_tokens + self.tree.max_new_tokens - 1, page_size)
        own = longest - (prompt_tokens - 1) // page_size
        return paging.pages_for(prompt_tokens, page_size) + self.group_size * own

    def _empty_state(self) -> SamplerState:
        model, options, shards = self._model, self.options, self.num_shards
        state = SamplerState(
            pool=paging.make_pool(
                num_layers=model.num_layers,
                num_pages=self.num_pages * shards,
                page_size=options.page_size,
                num_kv_heads=model.num_kv_heads,
                head_dim=model.head_dim,
                num_rows=self.num_blocks * (self.group_size + 1) * shards,
                pages_per_row=paging.pages_for(self.max_length, options.page_size),
                dtype=self._dtype,
            ),
            slots=make_slots(options.slots),
        )
        return parallel.constrain_tree(state, STATE_AXES)

    def serve(self, params):
        """The parameters as the programs below read them: in the type of the computation and, under a mesh, in the
        serving layout (`parallel.SERVING_RULES`), made on the devices. A copy, unless both are so already."""
        leaves = jax.tree.leaves(params)
        if parallel.current_mesh() is None and all(x.dtype == self._dtype for x in leaves):
            return params
        return _serving(params, self._dtype)

    def lower(self, params) -> dict[str, jax.stages.Lowered]:
        """The sampler's programs for parameters in the training layout (abstract ones will do), for ahead-of-time
        compilation: serve, prefill (of the longest prompts), start, decode (of the longest responses), release."""
        mesh = jax.sharding.get_mesh()

        def place(tree, names):
            return jax.tree.map(
                lambda x, n: jax.ShapeDtypeStruct(
                    x.shape,
                    x.dtype,
                    sharding=jax.NamedSharding(mesh, parallel.partition_spec(n, x.shape, mesh)),
                ),
                tree,
                names,
            )

        state = place(jax.eval_shape(self._empty_state), STATE_AXES)
        serve = _serving.lower(params, self._dtype)
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(functools.partial(parallel.serving, dtype=self._dtype), params),
            parallel.shardings(params, mesh, parallel.SERVING_RULES),
        )
        prompts = self._empty_prefill(_prefill_width(self.options.max_prompt_tokens))
        return {
            "serve": serve,
            "prefill": _prefill.lower(self._graphdef, params, state.pool, *prompts),
            "start": _start.lower(state, self._empty_starts(), jax.eval_shape(lambda: jax.random.key(0))),
            "decode": _decode_chunk.lower(
                self._graphdef,
                params,
                state,
                SamplingParams().traced(),
                self._stop_array,
                chunk=self.options.chunk,
                pages_per_slot=self._page_buckets[-1],
            ),
            "release": _release.lower(state.pool, self._no_rows()),
        }

    def _empty_prefill(self, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, lengths, rows) of a prefill of nothing."""
        batch = self.num_shards * max(1, PREFILL_BATCH // self.num_shards)
        return (
            np.zeros((batch, width), np.int32),
            np.zeros(batch, np.int32),
            np.full(batch, paging.NO_ROW, np.int32),
        )

    def _empty_starts(self) -> Starts:
        """Starts of nothing."""
        columns = {name: np.zeros(self.options.slots, np.int32) for name in Starts.__dataclass_fields__}
        columns["valid"] = np.zeros(self.options.slots, bool)
        columns["length"][:] = 1
        return Starts(**columns)

    def _no_rows(self) -> np.ndarray:
        """Room for the rows of one question, on any shard."""
        return np.full(self.num_shards * (self.group_size + 1), paging.NO_ROW, np.int32)

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


def _prefill_width(num_tokens: int) -> int:
    width = SMALLEST_PREFILL
    while width < num_tokens:
        width *= 2
    return width


def _known(grade: "Future | float | None") -> float:
    """The reward, NaN while this process does not know it."""
    if isinstance(grade, Future):
        grade = grade.result() if grade.done() else None
    if grade is None:
        return math.nan
    if math.isnan(grade):
        raise ValueError("a response was graded NaN; a reward must be a finite number")
    return float(grade)


class _Run:
    """The mutable state of one call of a `TreeSampler`."""

    def __init__(self, sampler, params, questions, grade, key, sampling, on_finished):
        self.sampler, self.params, self.grade = sampler, sampler.serve(params), grade
        self.key, self.sampling, self.on_finished = key, sampling, on_finished
        self.seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.state = sampler._initial_state()
        self.pending = deque(enumerate(questions))
        self.results: list[SampledTree | None] = [None] * len(questions)
        # By shard; slots count over all shards, as the arrays of `Slots` do.
        shards = range(sampler.num_shards)
        self.free_blocks = [list(range(sampler.num_blocks))[::-1] for _ in shards]
        self.free_pages = [sampler.num_pages for _ in shards]
        slots = np.arange(sampler.options.slots).reshape(-1, sampler.num_slots)
        self.free_slots = [row.tolist()[::-1] for row in slots]
        self.queues: list[deque[tuple[_InFlight, _Draft, int]]] = [
            deque() for _ in shards
        ]  # with the row to start from
        self.decoding: dict[int, tuple[_InFlight, _Draft]] = {}  # by slot
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
            elif own := [draft.grade for _, draft in self.grading if isinstance(draft.grade, Future)]:
                wait(own, return_when=FIRST_COMPLETED)
            self._collect_grades()
        self.stats.pages_left = int(_pages_in_use(self.state.pool))
        return self.results, self.stats

    def _admit(self) -> None:
        """Prefills the prompts of as many questions as rows and pages allow, and starts their trees."""
        sampler, admitted = self.sampler, []
        while self.pending:
            pages = sampler._worst_case_pages(len(self.pending[0][1].tokens))
            room = [d for d, free in enumerate(self.free_pages) if free >= pages and self.free_blocks[d]]
            if not room:
                break
            shard = max(room, key=lambda d: (self.free_pages[d], -d))
            order, question = self.pending.popleft()
            self.free_pages[shard] -= pages
            row = self.free_blocks[shard].pop() * (sampler.group_size + 1)
            admitted.append(_InFlight(order, question, shard, row))
        by_shard = [[q for q in admitted if q.shard == d] for d in range(sampler.num_shards)]
        while any(by_shard):
            self._prefill(by_shard)
        for question in admitted:
            self.in_flight += 1
            self._advance(question)

    def _prefill(self, by_shard: list[list[_InFlight]]) -> None:
        """Takes what one prefill holds off each shard's list and prefills it."""
        per_shard = max(1, PREFILL_BATCH // len(by_shard))
        batch = {}
        for d, questions in enumerate(by_shard):
            batch |= {d * per_shard + i: q for i, q in enumerate(questions[:per_shard])}
            del questions[:per_shard]
        width = _prefill_width(max(len(q.question.tokens) for q in batch.values()))
        tokens, lengths, rows = self.sampler._empty_prefill(width)
        for i, q in batch.items():
            lengths[i], rows[i] = len(q.question.tokens), q.prompt_row
            tokens[i, : lengths[i]] = q.question.tokens
        pool = _prefill(self.sampler._graphdef, self.params, self.state.pool, tokens, lengths, rows)
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
        self.queues[q.shard].append((q, draft, source))

    def _fill_slots(self) -> None:
        options, starts = self.sampler.tree, self.sampler._empty_starts()
        for queue, free_slots in zip(self.queues, self.free_slots):
            while queue and free_slots:
                q, draft, source = queue.popleft()
                slot = free_slots.pop()
                self.decoding[slot] = q, draft
                prompt = q.question.tokens
                budget = options.max_new_tokens
                if options.strategy == "fixed_width":  # pauses at the next segment boundary
                    segment = options.segment_tokens
                    budget = min(budget, (len(draft.tokens) // segment + 1) * segment)
                starts.valid[slot] = True
                starts.source[slot] = source
                starts.row[slot] = q.row(draft)
                starts.token[slot] = draft.tokens[-1] if draft.tokens else prompt[-1]
                starts.length[slot] = len(prompt) + len(draft.tokens)
                starts.limit[slot] = len(prompt) + budget
                starts.question[slot] = q.question.id
                starts.response[slot] = draft.index
        if starts.valid.any():
            self.state = _start(self.state, starts, self.key)

    def _decode(self) -> None:
        sampler = self.sampler
        longest = max(len(q.question.tokens) + len(d.tokens) for q, d in self.decoding.values())
        needed = paging.pages_for(min(longest + sampler.options.chunk, sampler.max_length), sampler.options.page_size)
        self.state, out = _decode_chunk(
            sampler._graphdef,
            self.params,
            self.state,
            self.sampling,
            sampler._stop_array,
            chunk=sampler.options.chunk,
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
                self.free_slots[q.shard].append(slot)
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
        if (q.question.id + draft.index) % jax.process_count() == jax.process_index():
            draft.grade = self.grade(q.question, tokens)
        if jax.process_count() == 1 and not math.isnan(reward := _known(draft.grade)):
            draft.reward, draft.grade = reward, None
            self._done_waiting(q)
        else:
            self.grading.append((q, draft))

    def _collect_grades(self) -> None:
        if not self.grading:
            return
        rewards = np.array([_known(draft.grade) for _, draft in self.grading])
        if jax.process_count() > 1:  # as 32-bit words, which pass unrounded
            words = multihost_utils.process_allgather(rewards.view(np.int32))
            rewards = np.fmax.reduce(np.ascontiguousarray(words).view(np.float64))
        pairs, self.grading = zip(self.grading, rewards), []
        for (q, draft), reward in pairs:
            if math.isnan(reward):
                self.grading.append((q, draft))
            else:
                draft.reward, draft.grade = float(reward), None
                self._done_waiting(q)

    def _done_waiting(self, q: _InFlight) -> None:
        q.waiting -= 1
        if not q.waiting:
            self._advance(q)

    def _finish(self, q: _InFlight) -> None:
        sampler = self.sampler
        size, rows = sampler.group_size + 1, sampler._no_rows()
        rows[q.shard * size : (q.shard + 1) * size] = range(q.prompt_row, q.prompt_row + size)
        self.state = self.state.replace(pool=_release(self.state.pool, rows))
        self.free_blocks[q.shard].append(q.prompt_row // size)
        self.free_pages[q.shard] += sampler._worst_case_pages(len(q.question.tokens))
        self.in_flight -= 1
        responses = [d.finished() for d in q.drafts]
        tree = build_tree(q.question.tokens, responses, sampler.step_ends)
        result = self.results[q.order] = SampledTree(q.question, tree, responses)
        if self.on_finished:
            self.on_finished(result)
