"""One model on one GPU: the measurements of gpu.py."""

import statistics
import time
import zlib
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from benchmarks.gpu_sizes import PAGE_SIZE, TREES, decode_bytes, pool_tokens, prefill_flops, tree_pool_tokens
from benchmarks.lengths import timed_decoder
from configs import base
from ibtpo.compiler.model import own_flops
from ibtpo.compiler.work import representative_tree, visible_pairs
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.losses import LossOptions
from ibtpo.models import lora
from ibtpo.models.decoder import Decoder
from ibtpo.optimizer import make_optimizer
from ibtpo.packing import TokenBatch, fill, plan, row_length
from ibtpo.sampling import Codec, Question, SamplerOptions, SamplingParams, TreeOptions, TreeSampler
from ibtpo.state import create_state, make_update
from ibtpo.token_weights import TokenWeights
from ibtpo.tree import stack_trees

CHUNK = 32
UPDATE_REMATS = ("elementwise", "attention")
TREES_OF_ROW = 4  # at most, in an update


class UpdateJob(NamedTuple):
    """The update that is timed: rows of trees, rows of a microbatch, unique tokens, the FLOPs that the model itself
    needs for them, and the share of the rows' cells that they fill."""

    batch: TokenBatch
    rows: int
    tokens: int
    flops: float
    useful_share: float


def update_job(model, sizes: dict[str, int]) -> UpdateJob:
    """Trees (4,9,1,1) of made-up tokens in rows that hold several."""
    options = TreeOptions(**TREES["ib (4,9,1,1)"], max_new_tokens=sizes["tree_new"])
    trees = [representative_tree(options, sizes["prompt"], seed) for seed in range(sizes["trees"])]
    tree, rng = stack_trees(trees), np.random.default_rng(0)
    tree = tree.replace(tokens=rng.integers(0, model.vocab_size, tree.tokens.shape).astype(np.int32))
    weights = np.where(tree.node_parent >= 0, 1e-4, 0).astype(np.float32)
    lengths = [each.tokens.shape[1] for each in trees]
    # The length of rows that leaves least of them empty.
    layouts = [plan(tree, row_tokens=n) for n in range(row_length(max(lengths)), TREES_OF_ROW * max(lengths) + 1, 128)]
    layout = max(layouts, key=lambda layout: layout.useful_share)
    batch = fill(layout, tree, TokenWeights(weights, weights, weights))
    flops = sum(own_flops(model, n, visible_pairs(t.subtree_end[0])) for n, t in zip(lengths, trees))
    return UpdateJob(batch, 1, sum(lengths), flops, layout.useful_share)


def update_program(graphdef, job: UpdateJob, *, remat: str, moments: str = "float32", lora_rank: int = 0):
    """(params -> state, the jitted update), of all parameters or of float32 adapters of all matrices."""
    settings = base.get_config().optimizer
    settings.first_moment_dtype = moments
    optimizer, _ = make_optimizer(settings, 100)
    forward = dict(temperature=1.0, rows_per_step=job.rows, token_block=2048, remat=remat)
    update = make_update(graphdef, optimizer, LossOptions(kl=0.0), **forward)

    def make_state(params):
        key, adapters = jax.random.key(0), None
        if lora_rank:
            adapters = lora.create(params, lora.LoraOptions(lora_rank, 2.0 * lora_rank), key, "float32")
        return create_state(params, optimizer, key, keep_reference=False, adapters=adapters)

    return make_state, update


def attention_times(model, subtree_end: np.ndarray, repeats: int) -> dict[str, float]:
    """Milliseconds of tree attention and its gradient by the GPU's kernels and by XLA's loop, on rows of trees, and of
    the kernels and cuDNN on chains as long as the rows."""
    B, T = subtree_end.shape
    shapes = [(B, T, heads, model.head_dim) for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)]
    q, k, v = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes))
    chains = np.full((B, T), T, np.int32)
    calls = {"XLA's loop, trees": (subtree_end, lambda *x: tree_attention(*x, backend="xla"))}
    if jax.default_backend() == "gpu":
        calls["kernels, trees"] = (subtree_end, lambda *x: tree_attention(*x, backend="gpu"))
        calls["kernels, chains"] = (chains, lambda *x: tree_attention(*x, backend="gpu"))
        calls["cuDNN, chains"] = (
            chains,
            lambda q, k, v, _: jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn"),
        )
    found = {}
    for name, (ends, attend) in calls.items():

        @jax.jit
        def gradient(q, k, v, ends, attend=attend):
            out, vjp = jax.vjp(lambda *x: attend(*x, ends), q, k, v)
            return out, vjp(out)

        seconds = []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            jax.block_until_ready(gradient(q, k, v, ends))
            seconds.append(time.perf_counter() - start)
        found[name] = 1e3 * statistics.median(seconds[1:])
    return found


class Bench:
    """One model on the device."""

    def __init__(self, model, sizes: dict[str, int], repeats: int, limit: int | None = None):
        self.model, self.sizes, self.repeats, self.limit = model, sizes, repeats, limit
        self.stops = range(0, model.vocab_size, 256)
        lengths = dict(prompt_tokens=sizes["prompt"], median=sizes["median"], longest=sizes["tree_new"])
        types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        # The same parameters; for trees the logits are bent so that responses end.
        self.timed, self.params = timed_decoder(model, stops=self.stops, **lengths, **types)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0), **types)), nnx.Param)

    def sampler(self, *, slots, prompt, new, tree, pool_tokens, questions_in_flight=0, stops=False):
        vocab = self.model.vocab_size
        separator = np.arange(vocab) % 16 == 1

        def step_ends(tokens):
            ends = (separator[tokens].nonzero()[0] + 1).tolist()
            return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]

        return TreeSampler(
            self.timed if stops else self.graphdef,
            self.model,
            SamplerOptions(
                slots=slots,
                pages=-(-pool_tokens // PAGE_SIZE),
                page_size=PAGE_SIZE,
                chunk=CHUNK,
                max_prompt_tokens=prompt,
                questions_in_flight=questions_in_flight,
            ),
            TreeOptions(**dict(top_k=1, branch=1, max_new_tokens=new) | tree),
            Codec(vocab, stop_ids=self.stops if stops else [], cut_steps=step_ends),
            dtype=jnp.bfloat16,
        )

    def questions(self, number: int, length: int) -> list:
        tokens = np.random.default_rng(0).integers(1, self.model.vocab_size, (number, length)).tolist()
        return [Question(i, prompt) for i, prompt in enumerate(tokens)]

    def seconds(self, sampler, questions) -> tuple[float, object]:
        """(median seconds, statistics of the last run) of a call, after an untimed one."""

        def grade(question, tokens):
            return float(zlib.crc32(tokens.tobytes(), question.id) % 10 < 3)

        seconds = []
        for _ in range(1 + self.repeats):
            start = time.perf_counter()
            _, stats = sampler(self.params, questions, grade, key=jax.random.key(0), sampling=SamplingParams())
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:]), stats

    def decode(self) -> dict:
        slots, prompt, new = (self.sizes[name] for name in ("slots", "prompt", "new"))
        # The same pool in both calls, so that what it costs to make it cancels.
        options = dict(
            slots=slots,
            prompt=prompt,
            tree=dict(strategy="independent", initial=1, rounds=1),
            pool_tokens=self.pool_tokens(),
            questions_in_flight=slots,
        )
        questions = self.questions(slots, prompt)
        whole, stats = self.seconds(self.sampler(new=new, **options), questions)
        first, _ = self.seconds(self.sampler(new=1, **options), questions)
        tokens, seconds = slots * (new - 1), whole - first
        if seconds <= 0:  # a tiny model, where the difference drowns
            return dict(tokens_per_second=None, bytes_per_second=None, stall_share=None)
        return dict(
            tokens_per_second=tokens / seconds,
            bytes_per_second=decode_bytes(self.model, slots, prompt, new) / seconds,
            stall_share=stats.stall_seconds / whole,
        )

    def prefill(self) -> dict:
        prompts, long, short = self.sizes["prompts"], self.sizes["long"], min(32, self.sizes["long"] // 2)
        sampler = self.sampler(
            slots=prompts,
            prompt=long,
            new=1,
            tree=dict(strategy="independent", initial=1, rounds=1),
            pool_tokens=prompts * (long + 2 * PAGE_SIZE),
            questions_in_flight=prompts,
        )
        whole, _ = self.seconds(sampler, self.questions(prompts, long))
        rest, _ = self.seconds(sampler, self.questions(prompts, short))
        flops = prompts * (prefill_flops(self.model, long) - prefill_flops(self.model, short))
        if whole <= rest:
            return dict(tokens_per_second=None, flops_per_second=None)
        seconds = whole - rest
        return dict(tokens_per_second=prompts * (long - short) / seconds, flops_per_second=flops / seconds)

    def trees(self) -> dict[str, dict]:
        sizes, found = self.sizes, {}
        questions = self.questions(sizes["questions"], sizes["prompt"])
        for name, tree in TREES.items():
            sampler = self.sampler(
                slots=sizes["slots"],
                prompt=sizes["prompt"],
                new=sizes["tree_new"],
                tree=tree,
                pool_tokens=tree_pool_tokens(self.model, sizes, self.limit),
                stops=True,
            )
            seconds, stats = self.seconds(sampler, questions)
            found[name] = dict(
                tokens_per_second=stats.generated_tokens / seconds,
                responses_per_second=stats.responses / seconds,
                mean_length=stats.response_tokens / stats.responses,
                useful_share=stats.generated_tokens / stats.slot_steps,
                stall_share=stats.stall_seconds / seconds,
                pool_tokens=sampler.total_pages * PAGE_SIZE,
                preemptions=stats.preemptions,
            )
        return found

    def update(self) -> dict:
        """By what the backward pass recomputes; the first kind is the fastest that an 80 GB card holds (1.7B)."""
        job, found = update_job(self.model, self.sizes), {}
        self.params = None  # training needs the memory
        for remat in UPDATE_REMATS:
            found[remat] = self._update(job, remat)
        return found[UPDATE_REMATS[0]] | dict(by_remat=found, useful_share=job.useful_share)

    def _update(self, job: "UpdateJob", remat: str) -> dict:
        graphdef, params = nnx.split(
            nnx.jit(lambda: Decoder(self.model, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))(), nnx.Param
        )
        make_state, update = update_program(graphdef, job, remat=remat)
        state = make_state(params)
        del params
        batch, seconds = jax.device_put(job.batch), []
        for _ in range(1 + self.repeats):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(update(state, batch))
            seconds.append(time.perf_counter() - start)
        seconds = statistics.median(seconds[1:])
        return dict(tokens_per_second=job.tokens / seconds, flops_per_second=job.flops / seconds)

    def attention(self) -> dict[str, float]:
        """Milliseconds of one layer's attention, forwards and backwards, by what computes it."""
        job = update_job(self.model, self.sizes)
        return attention_times(self.model, np.asarray(job.batch.subtree_end[: job.rows]), self.repeats)

    def pool_tokens(self) -> int:
        return pool_tokens(self.sizes)
