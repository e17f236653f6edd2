"""Keeps many questions in flight in one decode batch and grows each one's tree.

The host side of the sampler. A question owns a block of page-table rows: one for its prompt, one for
each response. Its rounds are its own: as soon as the last response of a round is graded the strategy
chooses the next forks, which stand by on the device for a slot. Nothing waits for another question, and
since every random draw depends on (key, question id, response index, position) alone, nothing about a
question depends on the others either.

The device is always one chunk ahead: while it decodes, the host reads the chunk before, has its responses
graded, chooses forks and prefills new prompts. Questions are admitted by what they are expected to need. When
the pool runs out the youngest question gives its pages back and keeps its tokens; later their keys and
values are computed again, and its responses come out the same (but for the rounding of bfloat16).

Under a mesh a question lives on one shard of the logical axis "rows": its pages, rows and slots are there.
With several processes each of them runs this same plan: the device's answers reach all of them, and a
response is graded by one, which tells the others.
"""

import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
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
    make_queue,
    make_slots,
    prefill,
    recompute,
    release,
    start,
)
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.stops import StopTable
from ibtpo.sampling.strategies import STRATEGIES, Fork, TreeOptions, num_responses, segment_forks
from ibtpo.tree import Response, Tree, build_tree

AHEAD = 2  # decode chunks dispatched and not yet read: the one that runs and the one after it
STANDBY = 1  # sequences standing by for each slot
PREFILL_BATCH = 8  # prompts per prefill call, or one per shard: two programs for each length
RELEASE_BATCH = 8  # questions of each shard whose pages one call gives back
SMALLEST_PREFILL = 32  # prompt lengths are rounded up to this times a power of two


@dataclass(frozen=True)
class SamplerOptions:
    """Static shapes of the sampler, over all shards.

    slots: sequences decoded at once. pages: KV pages, 0 for as many as `questions_in_flight` questions
    can ever need. page_size: tokens per page. chunk: decode steps between two looks by the host.
    max_prompt_tokens: longest prompt. questions_in_flight: most at once, 0 for two per slot; as many on each shard, so
    rounded up to a multiple of the shards.
    """

    slots: int = 64
    pages: int = 0
    page_size: int = 16
    chunk: int = 32
    max_prompt_tokens: int = 512
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
    """A prompt to grow a tree from. id: what its random draws depend on, from 0 to 2^31 - 1; tokens: the prompt."""

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
    prompt_tokens: tokens of prompts prefilled. decode_steps: steps of the decode loop.
    slot_steps: decode_steps times the slots that took part; generated_tokens / slot_steps is the useful share.
    tail_slot_steps: those of them run after the last question had been admitted.
    peak_pages: most KV pages in use at once. tokens_at_peak: unique tokens cached at that time.
    pages_left: in use after the last question (0).
    preemptions: questions that gave their pages back unfinished. recomputed_tokens: tokens prefilled again for it.
    stall_seconds: time the device had nothing to do. seconds: of the whole call.
    """

    questions: int = 0
    responses: int = 0
    generated_tokens: int = 0
    response_tokens: int = 0
    prompt_tokens: int = 0
    decode_steps: int = 0
    slot_steps: int = 0
    tail_slot_steps: int = 0
    peak_pages: int = 0
    tokens_at_peak: int = 0
    pages_left: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    stall_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "SamplerStats") -> "SamplerStats":
        total = {name: value + getattr(other, name) for name, value in vars(self).items()}
        higher = max(self, other, key=lambda stats: stats.peak_pages)
        total |= {"peak_pages": higher.peak_pages, "tokens_at_peak": higher.tokens_at_peak}
        return SamplerStats(**total)


# Compiled once per shape, whichever sampler asks. Donated: the pool is updated in place, never copied.
_start = jax.jit(start, donate_argnums=0)
_release = jax.jit(release, donate_argnums=0)
_serving = jax.jit(parallel.serving, static_argnums=1)
_unstack = jax.jit(lambda graphdef, params: nnx.merge(graphdef, params).unstack(), static_argnums=0)
_pages_in_use = jax.jit(lambda pool: parallel.replicate(paging.pages_in_use(pool)))


class _Programs(NamedTuple):
    """What runs the model, compiled for one platform."""

    prefill: Callable
    decode_chunk: Callable
    recompute: Callable


@functools.cache
def _programs(platform: str, share_cores: bool) -> _Programs:
    compiler_options = {}
    if platform == "cpu":
        # XLA's own small batched products of decode attention take 1.8 times as long on a CPU as those of this library
        # of it, which is off by default (benchmarks/sampler.py).
        compiler_options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    if platform == "gpu":
        # Of few tokens, the vendor's library multiplies faster than what XLA writes itself (docs/results.md).
        compiler_options["xla_gpu_enable_triton_gemm"] = False
    if share_cores:
        # Loops over small arrays are not split between cores that all have a device to serve, and sums not into parts.
        compiler_options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner,tree_reduction_rewriter"
    options = dict(static_argnums=0, donate_argnums=2, compiler_options=compiler_options)
    return _Programs(
        prefill=jax.jit(prefill, **options),
        decode_chunk=jax.jit(decode_chunk, static_argnames=("chunk", "slots"), **options),
        recompute=jax.jit(recompute, **options),
    )


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
    limit: int = 0  # tokens at which it stops or pauses
    has_row: bool = False  # whether its own row holds its cached tokens, or will when its turn comes
    wanted: bool = False  # to be decoded further, now or after its question is back
    graded_here: bool = False  # by this process, and asked for
    grade: "Future | float | None" = None  # what the caller's function gave
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
class _Growing:
    """A question from its turn to its end. `waiting` counts its responses queued, decoding or being graded; at
    zero its round is over. It holds a block of rows of one shard while it is in flight (`shard` >= 0)."""

    order: int
    question: Question
    shard: int = -1
    prompt_row: int = -1  # within the shard, as every row
    entered: int = 0  # chunks dispatched when it was admitted
    drafts: list[_Draft] = field(default_factory=list)
    round: int = -1
    waiting: int = 0

    def row(self, draft: _Draft) -> int:
        return self.prompt_row + 1 + draft.index

    def cached_tokens(self) -> int:
        """Unique tokens of it in the cache; each response's last one is pending."""
        return len(self.question.tokens) + sum(max(0, len(d.tokens) - d.fork - 1) for d in self.drafts if d.has_row)


class TreeSampler:
    """Samples trees, or flat groups with `strategy="independent"`, from a decoder.

    >>> sampler = TreeSampler(graphdef, decoder.config, options, tree_options,
    ...                       stop_ids=[eos], step_ends=lambda tokens: step_ends(tokens, table, b"\\n\\n"))
    >>> trees, stats = sampler(params, questions, grade, key=jax.random.key(0), sampling=SamplingParams())

    stop_ids: tokens that end a response. stop_strings: texts that end it, over however many tokens; the token in which
    one is complete is the response's last. They need token_bytes: what each token spells. step_ends(tokens): exclusive
    ends of a response's steps.
    answer_start(tokens): index of the first token of the answer marker (default: none); strategy
    "entropy" never forks behind it. dtype: of the KV cache.

    The mesh that is current when it is made (`jax.set_mesh`) must be current when it is called.

    Raises ValueError if the pages cannot hold even one question, or slots or pages do not divide among the shards; when
    called, of a prompt or an id out of range, of a reward that is no finite number, and of parameters that give NaN.
    """

    def __init__(
        self,
        graphdef,
        model: ModelConfig,
        options: SamplerOptions,
        tree: TreeOptions,
        *,
        stop_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
        token_bytes: Sequence[bytes] = (),
        step_ends: StepEnds,
        answer_start: Callable[[np.ndarray], int] = len,
        dtype=jnp.float32,
    ):
        self.options, self.tree, self.step_ends = options, tree, step_ends
        self.answer_start = answer_start
        self.stops = StopTable(model.vocab_size, stop_ids, stop_strings, token_bytes)
        self.group_size = num_responses(tree)
        self.max_length = options.max_prompt_tokens + tree.max_new_tokens
        self._graphdef, self._model, self._dtype = graphdef, model, dtype
        self.programs = _programs(parallel.platform(), parallel.share_cores())

        shards = self.num_shards = parallel.num_row_shards()
        for name, count in (("slots", options.slots), ("pages", options.pages)):
            if count % shards:
                raise ValueError(
                    f"sampling.{name}={count} cannot be split over mesh.data x mesh.fsdp = {shards} shards: set it to "
                    f"a multiple of {shards}, e.g. {-(-count // shards) * shards}"
                )
        # What one shard has. Blocks: rows of one question.
        self.num_slots = options.slots // shards
        self.num_blocks = -(-(options.questions_in_flight or 2 * options.slots) // shards)
        self.queue_size = (1 + STANDBY) * self.num_slots
        worst = self._worst_case_pages()
        self.num_pages = options.pages // shards if options.pages else self.num_blocks * worst
        if self.num_pages < worst:
            raise ValueError(
                f"sampling.pages={options.pages} cannot hold one question{f' per shard ({shards})' * (shards > 1)}: "
                f"{self.group_size} responses of {tree.max_new_tokens} tokens after a prompt of "
                f"{options.max_prompt_tokens} need up to {worst} pages of {options.page_size} tokens. Raise "
                f"sampling.pages to at least {worst * shards}, or set it to 0 to have it computed."
            )

        self._initial_state = jax.jit(self._empty_state)
        # A chunk is run by the fewest of these slots that hold its sequences.
        self._widths = sorted({max(1, self.num_slots // n) * shards for n in (1, 2, 4, 8)})

    @property
    def total_pages(self) -> int:
        """KV pages of the pool, over all shards."""
        return self.num_pages * self.num_shards

    @property
    def least_pages(self) -> int:
        """The fewest pages, over all shards, with which any question can be sampled."""
        return self._worst_case_pages() * self.num_shards

    def _worst_case_pages(self) -> int:
        """Pages a question can need at most: its prompt's, and for each response all those beyond the
        whole pages of the prompt, as if it shared nothing else."""
        page_size, longest = self.options.page_size, self.options.max_prompt_tokens

        def pages(prompt_tokens: int) -> int:
            end = paging.pages_for(prompt_tokens + self.tree.max_new_tokens - 1, page_size)
            own = end - (prompt_tokens - 1) // page_size
            return paging.pages_for(prompt_tokens, page_size) + self.group_size * own

        # Of a prompt that fills its pages every response copies the last one, for its pending token.
        return max(pages(n) for n in (longest, longest - longest % page_size) if n)

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
            queue=make_queue(self.queue_size * shards),
        )
        return parallel.constrain_tree(state, STATE_AXES)

    def serve(self, params):
        """The parameters as the programs below read them: in the type of the computation and, under a mesh, in the
        serving layout (`parallel.SERVING_RULES`), made on the devices. A copy, unless both are so already."""
        leaves = jax.tree.leaves(params)
        if parallel.current_mesh() is None and all(x.dtype == self._dtype for x in leaves):
            return params
        return _serving(params, self._dtype)

    def _layers(self, params) -> list[nnx.State] | None:
        """The layers one by one, for a whole call: a scan on a CPU or GPU would copy each one's weights in every step.
        None on TPUs, whose scans do not."""
        return None if parallel.platform() == "tpu" else _unstack(self._graphdef, params)

    def lower(self, params) -> dict[str, jax.stages.Lowered]:
        """The sampler's programs for parameters in the training layout (abstract ones will do), for ahead-of-time
        compilation: serve, prefill (of the longest prompts), start, decode (all slots), release, recompute."""
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
        layers = jax.eval_shape(self._layers, params)
        return {
            "serve": serve,
            "prefill": self.programs.prefill.lower(self._graphdef, params, state.pool, *prompts),
            "start": _start.lower(state, self._empty_starts(), jax.eval_shape(lambda: jax.random.key(0))),
            "decode": self.programs.decode_chunk.lower(
                self._graphdef,
                params,
                state,
                SamplingParams().traced(),
                self.stops.table,
                np.int32(1),
                layers,
                chunk=self.options.chunk,
                slots=self.options.slots,
            ),
            "release": _release.lower(state, self._no_rows().reshape(-1)),
            "recompute": self.programs.recompute.lower(self._graphdef, params, state, *self._empty_recompute()),
        }

    def _empty_prefill(self, width: int, per_shard: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, lengths, rows) of a prefill of nothing; per_shard: prompts, default as many as there can be."""
        batch = self.num_shards * (per_shard or max(1, PREFILL_BATCH // self.num_shards))
        return (
            np.zeros((batch, width), np.int32),
            np.zeros(batch, np.int32),
            np.full(batch, paging.NO_ROW, np.int32),
        )

    def _empty_starts(self) -> Starts:
        """Starts of nothing."""
        size = self.queue_size * self.num_shards
        columns = {name: np.zeros(size, np.int32) for name in Starts.__dataclass_fields__}
        columns["valid"] = np.zeros(size, bool)
        columns["length"][:] = 1
        return Starts(**columns)

    def _empty_recompute(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sources, rows, tokens, starts, ends) of a recomputation of nothing; as many tokens per shard as slots."""
        shards = self.num_shards
        rows = np.full(shards, paging.NO_ROW, np.int32)
        zeros = np.zeros(shards, np.int32)
        return rows, rows.copy(), np.zeros((shards, self.num_slots), np.int32), zeros, zeros.copy()

    def _no_rows(self) -> np.ndarray:
        """Room for the rows of `RELEASE_BATCH` questions of each shard: [shards, RELEASE_BATCH, rows of one]."""
        return np.full((self.num_shards, RELEASE_BATCH, self.group_size + 1), paging.NO_ROW, np.int32)

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


def _known(q: "_Growing", draft: "_Draft") -> float:
    """The reward of a response, NaN while this process does not know it."""
    grade = draft.grade
    if draft.graded_here and isinstance(grade, Future):
        if not grade.done():
            return math.nan
        grade = grade.result()
    elif not draft.graded_here:
        return math.nan
    if grade is None or not math.isfinite(grade):
        raise ValueError(
            f"response {draft.index} of question {q.question.id} was graded {grade}: a reward must be a finite number "
            "(or a Future of one)"
        )
    return float(grade)


class _Run:
    """The mutable state of one call of a `TreeSampler`."""

    def __init__(self, sampler, params, questions, grade, key, sampling, on_finished):
        self.began = time.perf_counter()
        self.sampler, self.params, self.grade = sampler, sampler.serve(params), grade
        self.layers = sampler._layers(self.params)
        self.key, self.sampling, self.on_finished = key, sampling, on_finished
        self.seed = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]
        self.state = sampler._initial_state()
        self.pending = deque(_Growing(order, question) for order, question in enumerate(questions))
        self.results: list[SampledTree | None] = [None] * len(questions)
        # By shard.
        shards = range(sampler.num_shards)
        self.free_blocks = [list(range(sampler.num_blocks))[::-1] for _ in shards]
        self.in_flight: list[list[_Growing]] = [[] for _ in shards]  # oldest first
        self.queues: list[list[tuple[_Growing, _Draft]]] = [[] for _ in shards]  # waiting on the host
        self.on_device: list[dict[int, tuple[_Growing, _Draft]]] = [
            {} for _ in shards
        ]  # by row; in a slot or standing by
        self.leaving: list[list[range]] = [[] for _ in shards]  # rows of questions that have left
        # Pages in use as far as the host has read, and at most taken since: (chunk by which it is known, pages).
        self.pages_read = [0 for _ in shards]
        self.pages_taken: list[deque[tuple[int, int]]] = [deque() for _ in shards]
        # After a preemption so many questions at most, one more for each that finishes.
        self.most_in_flight = [sampler.num_blocks for _ in shards]
        self.starved = [False for _ in shards]
        self.generated, self.fruitless = 0, 0  # tokens when one starved last, and how often since with no more of them
        # Chunks: dispatched so far, and (futures of) those not yet read.
        self.dispatched = 0
        self.chunks: deque[tuple[int, bool, Future]] = deque()
        self.reader = ThreadPoolExecutor(1)
        self.idle_since: float | None = self.began  # since when the device has had nothing to compute; None: it has
        self.grading: list[tuple[_Growing, _Draft]] = []
        self.left: deque[tuple[int, int]] = deque()  # (chunks dispatched when it left, tokens it had cached)
        self.pages_of_finished = [0, 0]  # sum, count
        self.stats = SamplerStats(questions=len(questions))
        for question in questions:
            if not 0 <= question.id < 2**31:
                raise ValueError(f"question id {question.id} is out of range: ids go from 0 to 2^31 - 1")
            if not 0 < len(question.tokens) <= sampler.options.max_prompt_tokens:
                raise ValueError(
                    f"question {question.id} has a prompt of {len(question.tokens)} tokens; "
                    f"data.max_prompt_tokens allows 1 to {sampler.options.max_prompt_tokens}"
                )

    def run(self) -> tuple[list[SampledTree], SamplerStats]:
        with self.reader:
            while self.pending or any(self.in_flight):
                self._release()
                self._admit()
                self._start()
                if any(self.on_device):
                    self._dispatch()
                if len(self.chunks) == AHEAD or (self.chunks and not any(self.on_device)):
                    self._read()
                elif not self.chunks and not any(self.queues):
                    own = [draft.grade for _, draft in self.grading if isinstance(draft.grade, Future)]
                    wait(own, return_when=FIRST_COMPLETED) if own else None
                self._collect_grades()
                self._preempt()
            while self.chunks:
                self._read()
        self._release()
        self.stats.pages_left = int(_pages_in_use(self.state.pool))
        self.stats.seconds = time.perf_counter() - self.began
        return self.results, self.stats

    # Admission.

    def _admit(self) -> None:
        """Prefills the prompts of as many questions as keep the slots busy and rows and pages allow."""
        sampler, admitted = self.sampler, []
        planned = [len(device) + len(queue) for device, queue in zip(self.on_device, self.queues)]
        while self.pending:
            q = self.pending[0]
            need = self._pages_to_enter(q)
            room = [d for d in range(sampler.num_shards) if planned[d] < sampler.queue_size and self._has_room(d, need)]
            if not room:
                break
            shard = min(room, key=lambda d: (planned[d], len(self.in_flight[d]), d))
            self.pending.popleft()
            q.shard, q.entered = shard, self.dispatched
            q.prompt_row = self.free_blocks[shard].pop() * (sampler.group_size + 1)
            self.in_flight[shard].append(q)
            self._take_pages(shard, need)
            planned[shard] += sum(d.wanted for d in q.drafts) or sampler.tree.initial
            admitted.append(q)
        by_shard = [[q for q in admitted if q.shard == d] for d in range(sampler.num_shards)]
        while any(by_shard):
            self._prefill(by_shard)
        for q in admitted:
            if q.drafts:
                self._restore(q)
            if not q.waiting:
                self._advance(q)

    def _pages_to_enter(self, q: _Growing) -> int:
        """Pages that its prompt, and the responses it already has, take at once."""
        page_size, prompt = self.sampler.options.page_size, len(q.question.tokens)
        own = (
            paging.pages_for(end := prompt + len(d.tokens) - 1, page_size)
            - min(prompt + max(d.fork - 1, 0), end) // page_size
            for d in q.drafts
            if d.has_row
        )
        return paging.pages_for(prompt, page_size) + sum(own)

    def _has_room(self, shard: int, need: int) -> bool:
        if not self.in_flight[shard]:
            return not self.chunks or self._pages_bound(shard) + need <= self.sampler.num_pages
        if not self.free_blocks[shard] or len(self.in_flight[shard]) >= self.most_in_flight[shard]:
            return False
        total, count = self.pages_of_finished
        worst = self.sampler._worst_case_pages()
        expected = total / count if count else worst / 2
        within = (len(self.in_flight[shard]) + 1) * expected <= self.sampler.num_pages
        return within and self._pages_bound(shard) + need <= self.sampler.num_pages

    def _pages_bound(self, shard: int) -> int:
        return self.pages_read[shard] + sum(pages for _, pages in self.pages_taken[shard])

    def _take_pages(self, shard: int, pages: int) -> None:
        self.pages_taken[shard].append((self.dispatched, pages))

    def _prefill(self, by_shard: list[list[_Growing]]) -> None:
        """Takes what one prefill holds off each shard's list and prefills it."""
        per_shard = max(1, PREFILL_BATCH // len(by_shard)) if max(map(len, by_shard)) > 1 else 1
        batch = {}
        for d, questions in enumerate(by_shard):
            batch |= {d * per_shard + i: q for i, q in enumerate(questions[:per_shard])}
            del questions[:per_shard]
        width = _prefill_width(max(len(q.question.tokens) for q in batch.values()))
        tokens, lengths, rows = self.sampler._empty_prefill(width, per_shard)
        for i, q in batch.items():
            lengths[i], rows[i] = len(q.question.tokens), q.prompt_row
            tokens[i, : lengths[i]] = q.question.tokens
        self._busy()
        sampler = self.sampler
        pool = sampler.programs.prefill(sampler._graphdef, self.params, self.state.pool, tokens, lengths, rows)
        self.state = self.state.replace(pool=pool)
        self.stats.prompt_tokens += int(lengths.sum())

    def _restore(self, q: _Growing) -> None:
        """Computes the keys and values of a preempted question's responses again, each after the one it forked from."""
        prompt, block = q.question.tokens, self.sampler.num_slots
        for draft in q.drafts:
            if not draft.has_row:
                continue
            sequence = [*prompt, *draft.tokens]
            end = len(sequence) - 1
            start = min(len(prompt) + max(draft.fork - 1, 0), end)
            source = q.row(q.drafts[draft.parent]) if draft.fork else q.prompt_row
            while True:  # once at least: it makes the row
                sources, rows, tokens, starts, ends = self.sampler._empty_recompute()
                part = sequence[start : min(start + block, end)]
                sources[q.shard], rows[q.shard] = source, q.row(draft)
                starts[q.shard], ends[q.shard] = start, start + len(part)
                tokens[q.shard, : len(part)] = part
                self._busy()
                self.state = self.sampler.programs.recompute(
                    self.sampler._graphdef, self.params, self.state, sources, rows, tokens, starts, ends
                )
                self.stats.recomputed_tokens += len(part)
                source, start = q.row(draft), start + len(part)
                if start >= end:
                    break
        self.queues[q.shard].extend((q, draft) for draft in q.drafts if draft.wanted)

    def _preempt(self) -> None:
        """Where sequences starve, the youngest question gives its pages back, unless others just have."""
        if not any(self.starved):
            return
        while self.chunks:  # what they have decoded of it belongs to it
            self._read()
        for shard, starved in enumerate(self.starved):
            if starved and len(self.in_flight[shard]) > 1:
                q = self.in_flight[shard][-1]
                self._leave(q)
                self.pending.appendleft(q)
                self.queues[shard] = [pair for pair in self.queues[shard] if pair[0] is not q]
                device = self.on_device[shard]
                self.on_device[shard] = {row: pair for row, pair in device.items() if pair[0] is not q}
                self.most_in_flight[shard] = len(self.in_flight[shard])
                self.stats.preemptions += 1
                self.fruitless = 0
        # What a chunk says may be older than the last release; so often it is not.
        self.fruitless = self.fruitless + 1 if self.stats.generated_tokens == self.generated else 0
        self.generated = self.stats.generated_tokens
        if self.fruitless > 2 * AHEAD:
            raise RuntimeError(
                f"no page is free for the only question in flight, although {self.sampler.total_pages} should hold "
                "any: a fault of the sampler; a larger sampling.pages avoids it"
            )
        self.starved = [False] * len(self.starved)
        self._collect_grades()

    def _leave(self, q: _Growing) -> None:
        """Takes a question's rows back; the device learns of it before it gets more to do."""
        size = self.sampler.group_size + 1
        self.leaving[q.shard].append(range(q.prompt_row, q.prompt_row + size))
        self.left.append((self.dispatched, q.cached_tokens()))
        self.free_blocks[q.shard].append(q.prompt_row // size)
        self.in_flight[q.shard].remove(q)
        q.shard = -1

    def _release(self) -> None:
        """Lets the device have back the rows of the questions that have left."""
        while any(self.leaving):
            rows = self.sampler._no_rows()
            for of_shard, leaving in zip(rows, self.leaving):
                for i, of_question in enumerate(leaving[:RELEASE_BATCH]):
                    of_shard[i] = of_question
                del leaving[:RELEASE_BATCH]
            self.state = _release(self.state, rows.reshape(-1))

    # Decoding.

    def _start(self) -> None:
        """Moves sequences from the host's queues to the device's; the device forks them."""
        sampler, starts = self.sampler, self.sampler._empty_starts()
        for shard, (queue, device) in enumerate(zip(self.queues, self.on_device)):
            if len(queue) > (room := sampler.queue_size - len(device)):
                # The oldest question first, which frees its pages. When no new ones come, the one with the most rounds
                # to go, so that all end together.
                left = 0 if self.pending else 1
                queue.sort(key=lambda pair: (left * len(pair[0].drafts), pair[0].order, pair[1].index))
            for entry, (q, draft) in enumerate(queue[:room], shard * sampler.queue_size):
                prompt, row = q.question.tokens, q.row(draft)
                source = q.row(q.drafts[draft.parent]) if draft.fork else q.prompt_row
                starts.valid[entry] = True
                starts.source[entry] = row if draft.has_row else source
                starts.row[entry] = row
                starts.token[entry] = draft.tokens[-1] if draft.tokens else prompt[-1]
                starts.length[entry] = len(prompt) + len(draft.tokens)
                starts.limit[entry] = len(prompt) + draft.limit
                starts.stop_state[entry] = sampler.stops.after(draft.tokens)
                starts.question[entry] = q.question.id
                starts.response[entry] = draft.index
                draft.has_row = True
                device[row] = q, draft
            self._take_pages(shard, len(queue[:room]))
            del queue[:room]
        self.state = _start(self.state, starts, self.key)

    def _dispatch(self) -> None:
        """Lets the device decode the next chunk."""
        sampler, options = self.sampler, self.sampler.options
        most = max(len(device) for device in self.on_device)
        steps = options.chunk
        if most < sampler.num_slots and any(len(q.drafts) < sampler.group_size for qs in self.in_flight for q in qs):
            steps = max(1, options.chunk // 4)  # free slots wait for the host's choices: look sooner
        slots = min(most, sampler.num_slots) * sampler.num_shards
        for shard, device in enumerate(self.on_device):
            self._take_pages(shard, len(device) * (1 + paging.pages_for(steps, options.page_size)))
        self.dispatched += 1  # first, so that no chunk that is read meanwhile thinks itself the last
        self._busy()
        self.state, out = sampler.programs.decode_chunk(
            sampler._graphdef,
            self.params,
            self.state,
            self.sampling,
            sampler.stops.table,
            np.int32(steps),
            self.layers,
            chunk=options.chunk,
            slots=next(n for n in sampler._widths if n >= slots),
        )
        self.chunks.append((self.dispatched, not self.pending, self.reader.submit(self._fetch, out, self.dispatched)))

    def _busy(self) -> None:
        """To be called when the device is given work that takes time."""
        if self.idle_since is not None:
            self.stats.stall_seconds += time.perf_counter() - self.idle_since
            self.idle_since = None

    def _fetch(self, out: Chunk, number: int) -> Chunk:
        out = jax.device_get(out)
        if number == self.dispatched:
            self.idle_since = time.perf_counter()
        return out

    def _read(self) -> None:
        """Waits for the oldest chunk and hands its tokens to their responses."""
        number, tail, future = self.chunks.popleft()
        out: Chunk = future.result()
        steps, slots = int(out.steps), len(out.owner)
        self.stats.decode_steps += steps
        self.stats.slot_steps += steps * slots
        self.stats.tail_slot_steps += steps * slots * tail
        stopped = []
        for slot in range(slots):
            device = self.on_device[slot * self.sampler.num_shards // slots]
            owners = out.owner[slot, :steps]
            cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), steps]
            for first, last in itertools.pairwise(cuts):
                if first == last or owners[first] == paging.NO_ROW:
                    continue
                q, draft = device[row := int(owners[first])]
                draft.tokens.extend(out.tokens[slot, first:last].tolist())
                draft.log_probs.extend(out.log_probs[slot, first:last].tolist())
                self.stats.generated_tokens += last - first
                if out.stopped[slot, last - 1]:
                    draft.finish = "stop"
                if draft.finish or len(draft.tokens) == draft.limit:
                    del device[row]
                    stopped.append((q, draft))
        self.starved = out.starved.tolist()
        self.pages_read = out.pages_in_use.tolist()
        for taken in self.pages_taken:
            while taken and taken[0][0] < number:
                taken.popleft()
        while self.left and self.left[0][0] < number:
            self.left.popleft()
        if (pages := sum(self.pages_read)) > self.stats.peak_pages:
            alive = sum(q.cached_tokens() for qs in self.in_flight for q in qs if q.entered < number)
            self.stats.peak_pages = pages
            self.stats.tokens_at_peak = alive + sum(tokens for _, tokens in self.left)
        for q, draft in stopped:
            self._stopped(q, draft)

    def _stopped(self, q: _Growing, draft: _Draft) -> None:
        """A sequence left its slot: it ended, ran out of tokens, or paused at a segment's end."""
        draft.wanted = False
        if not draft.finish and len(draft.tokens) < self.sampler.tree.max_new_tokens:
            self._done_waiting(q)
            return
        draft.finish = draft.finish or "length"
        if any(map(math.isnan, draft.log_probs)):
            raise ValueError(
                f"response {draft.index} of question {q.question.id} has a log-probability of NaN: the parameters are "
                "not finite, or too large for the type of the computation"
            )
        self.stats.responses += 1
        self.stats.response_tokens += len(draft.tokens)
        tokens = np.asarray(draft.tokens, np.int32)
        draft.answer_start = self.sampler.answer_start(tokens)
        if (q.question.id + draft.index) % jax.process_count() == jax.process_index():
            draft.graded_here, draft.grade = True, self.grade(q.question, tokens)
        if jax.process_count() == 1 and not math.isnan(reward := _known(q, draft)):
            draft.reward, draft.grade = reward, None
            self._done_waiting(q)
        else:
            self.grading.append((q, draft))

    def _collect_grades(self) -> None:
        if not self.grading:
            return
        rewards = np.array([_known(q, draft) for q, draft in self.grading])
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

    # Rounds.

    def _done_waiting(self, q: _Growing) -> None:
        q.waiting -= 1
        if not q.waiting and q.shard >= 0:  # one that has been preempted goes on when it is back
            self._advance(q)

    def _advance(self, q: _Growing) -> None:
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
            self._enqueue(q, draft)
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
            self._enqueue(q, draft)

    def _enqueue(self, q: _Growing, draft: _Draft) -> None:
        options = self.sampler.tree
        draft.limit = options.max_new_tokens
        if options.strategy == "fixed_width":  # pauses at the next segment boundary
            segment = options.segment_tokens
            draft.limit = min(draft.limit, (len(draft.tokens) // segment + 1) * segment)
        draft.wanted = True
        q.waiting += 1
        self.queues[q.shard].append((q, draft))

    def _finish(self, q: _Growing) -> None:
        sampler = self.sampler
        self.pages_of_finished[0] += self._pages_to_enter(q)
        self.pages_of_finished[1] += 1
        self.most_in_flight[q.shard] += 1
        self._leave(q)
        responses = [d.finished() for d in q.drafts]
        tree = build_tree(q.question.tokens, responses, sampler.step_ends)
        result = self.results[q.order] = SampledTree(q.question, tree, responses)
        if self.on_finished:
            self.on_finished(result)
