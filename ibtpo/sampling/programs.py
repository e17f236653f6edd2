"""The compiled programs of the sampler, and the device state they work on: `Device` for a decoder in JAX."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ibtpo import parallel
from ibtpo.kernels.page_heads import page_heads
from ibtpo.models import lora
from ibtpo.models.config import ModelConfig
from ibtpo.precompiled import Precompiled, Program, abstract
from ibtpo.sampling import pages as paging
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.decode import decode_chunk, prefill, recompute, release, start
from ibtpo.sampling.device import (
    RELEASE_BATCH,
    Chunk,
    Prompt,
    Start,
    chunk_widths,
    prefill_batches,
    prefill_sizes,
)
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.slots import STATE_AXES, SamplerState, Starts, make_queue, make_slots

# Compiled once per shape, whichever sampler asks. Donated: the pool is updated in place, never copied.
_start = jax.jit(start, donate_argnums=0)
_release = jax.jit(release, donate_argnums=0)
_serving = jax.jit(lambda params, dtype: _served(params, dtype), static_argnames="dtype")
_unstack = jax.jit(
    lambda graphdef, params, dtype: parallel.serving(nnx.merge(graphdef, params).unstack(), dtype),
    static_argnums=0,
    static_argnames="dtype",
)
_pages_in_use = jax.jit(lambda pool: parallel.replicate(paging.pages_in_use(pool)))


class _Compiled(NamedTuple):
    """The programs that run the model, compiled for one platform."""

    prefill: jax.stages.Wrapped
    decode_chunk: jax.stages.Wrapped
    recompute: jax.stages.Wrapped


@functools.cache
def _compiled(platform: str, share_cores: bool) -> _Compiled:
    compiler_options: dict[str, Any] = {}
    if platform == "cpu":
        # XLA's own small batched products of decode attention take 1.8 times as long on a CPU as those of this library
        # of it, which is off by default (benchmarks/sampler.py).
        compiler_options["xla_cpu_experimental_ynn_fusion_type"] = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    if platform == "gpu":
        # Of few tokens, the vendor's library multiplies faster than XLA's own code (docs/results.md).
        compiler_options["xla_gpu_enable_triton_gemm"] = False
    if share_cores:
        # Loops over small arrays are not split between cores that all have a device to serve, and sums not into parts.
        compiler_options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner,tree_reduction_rewriter"
    options: dict[str, Any] = dict(static_argnums=0, donate_argnums=2, compiler_options=compiler_options)
    return _Compiled(
        prefill=jax.jit(prefill, **options),
        decode_chunk=jax.jit(decode_chunk, static_argnames=("chunk", "slots"), **options),
        recompute=jax.jit(recompute, **options),
    )


class Programs:
    """The programs for one decoder, capacity and stop table ([A, V], `StopTable.table`), under the current mesh.

    dtype: of the KV cache and of the parameters that are read.
    """

    def __init__(self, graphdef: nnx.GraphDef, model: ModelConfig, capacity: Capacity, stops: np.ndarray, dtype: Any):
        self.graphdef, self.model, self.capacity, self.stops, self.dtype = graphdef, model, capacity, stops, dtype
        self.compiled = _compiled(parallel.platform(), parallel.share_cores())
        # A chunk is run by the fewest of these slots that hold its sequences.
        shards = capacity.num_shards
        self.widths = [width * shards for width in chunk_widths(capacity.num_slots)]
        self.initial_state = Precompiled(jax.jit(self._empty_state))
        self.prefill = Precompiled(self.compiled.prefill, graphdef, key=lambda params, pool, tokens, *_: tokens.shape)
        self.decode_chunk = Precompiled(self.compiled.decode_chunk, graphdef, key=lambda *_, chunk, slots: slots)
        self.recompute = Precompiled(self.compiled.recompute, graphdef)
        self.start, self.release, self.pages_in_use = map(Precompiled, (_start, _release, _pages_in_use))
        self._serve, self._unstack = Precompiled(_serving), Precompiled(_unstack, graphdef)

    def _empty_state(self) -> SamplerState:
        model, capacity, shards = self.model, self.capacity, self.capacity.num_shards
        heads, lanes = page_heads(model.num_kv_heads, model.head_dim, self.dtype, parallel.mesh_axis_size("tensor"))
        state = SamplerState(
            pool=paging.make_pool(
                num_layers=model.num_layers,
                num_pages=capacity.num_pages * shards,
                page_size=capacity.page_size,
                num_kv_heads=heads,
                head_dim=lanes,
                num_rows=capacity.num_blocks * capacity.block_rows * shards,
                pages_per_row=capacity.pages_per_row,
                dtype=self.dtype,
            ),
            slots=make_slots(capacity.num_slots * shards),
            queue=make_queue(capacity.queue_size * shards),
        )
        return parallel.constrain_tree(state, STATE_AXES)

    def serve(self, params: Any) -> Any:
        """The parameters as the programs below read them: in the type of the computation and, under a mesh, in the
        serving layout (`parallel.SERVING_RULES`), made on the devices. A copy, unless both are so already."""
        return self._serve(params, dtype=self.dtype) if self._copies(params) else params

    def _copies(self, params: Any) -> bool:
        if isinstance(params, lora.Adapted) or parallel.current_mesh() is not None:
            return True
        return any(x.dtype != self.dtype for x in jax.tree.leaves(params))

    def layers(self, params: Any) -> list[nnx.State] | None:
        """The layers one by one, for a whole call: a scan on a CPU or GPU would copy each one's weights in every step.
        None on TPUs, whose scans do not."""
        return None if parallel.platform() == "tpu" else self._unstack(params, dtype=self.dtype)

    def ahead(self, params: Any, prompt_tokens: Collection[int] = ()) -> list[Program]:
        """Every program that a call can run, the longest to compile first, and none that no call can.

        params: as the calls get them; abstract ones will do. prompt_tokens: lengths of the prompts there will be;
        none: of any up to the longest.
        """
        capacity, calls = self.capacity, _Calls(self, params)
        # No more sequences than this are ever on the device, so no chunk is wider.
        most = min(capacity.num_slots, capacity.num_blocks * capacity.group_size) * capacity.num_shards
        widest = next(width for width in self.widths if width >= most)
        programs = [calls.decode(width) for width in self.widths[::-1] if width <= widest]
        if capacity.can_preempt:
            programs.append(calls.recompute())
        lengths = prompt_tokens or range(1, capacity.max_prompt_tokens + 1)
        sizes = prefill_sizes(lengths, capacity.num_shards, at_once=capacity.num_blocks)
        programs += [calls.prefill(*size) for size in sizes[::-1]]
        programs += [calls.start(), calls.release(), self.initial_state.program(), calls.pages_in_use()]
        if self._copies(params):
            programs.append(calls.serve())
        return programs + ([] if calls.layers is None else [calls.unstack()])

    def lower(self, params: Any) -> dict[str, jax.stages.Lowered]:
        """The programs for parameters in the training layout (abstract ones will do), for ahead-of-time
        compilation: serve, prefill (of the longest prompts), start, decode (all slots), release, recompute."""
        calls, capacity = _Calls(self, params), self.capacity
        longest = prefill_sizes([capacity.max_prompt_tokens], capacity.num_shards, at_once=2)[-1]
        programs = {
            "serve": calls.serve(),
            "prefill": calls.prefill(*longest),
            "start": calls.start(),
            "decode": calls.decode(self.widths[-1]),
            "release": calls.release(),
            "recompute": calls.recompute(),
        }
        return {name: program.lower() for name, program in programs.items()}

    # Arguments of nothing, to be filled in.

    def empty_prefill(self, width: int, per_shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, lengths, rows) of a prefill of nothing. per_shard: prompts."""
        batch = self.capacity.num_shards * per_shard
        return (
            np.zeros((batch, width), np.int32),
            np.zeros(batch, np.int32),
            np.full(batch, paging.NO_ROW, np.int32),
        )

    def empty_starts(self) -> Starts:
        """Starts of nothing."""
        size = self.capacity.queue_size * self.capacity.num_shards
        columns: dict[str, Any] = {name: np.zeros(size, np.int32) for name in Starts.__dataclass_fields__}
        columns["valid"] = np.zeros(size, bool)
        columns["length"][:] = 1
        return Starts(**columns)

    def empty_recompute(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sources, rows, tokens, starts, ends) of a recomputation of nothing; as many tokens per shard as slots."""
        shards = self.capacity.num_shards
        rows = np.full(shards, paging.NO_ROW, np.int32)
        zeros = np.zeros(shards, np.int32)
        return rows, rows.copy(), np.zeros((shards, self.capacity.num_slots), np.int32), zeros, zeros.copy()

    def no_rows(self) -> np.ndarray:
        """Room for the rows of `RELEASE_BATCH` questions of each shard: [shards, RELEASE_BATCH, rows of one]."""
        return np.full((self.capacity.num_shards, RELEASE_BATCH, self.capacity.block_rows), paging.NO_ROW, np.int32)


class _Calls:
    """The calls of the programs, with abstract arrays where real ones are on the devices, in the very places.

    params: in the training layout.
    """

    def __init__(self, programs: Programs, params: Any):
        self._of, self._given = programs, params
        served = jax.eval_shape(functools.partial(_served, dtype=programs.dtype), params)
        self._state = _placed(jax.eval_shape(programs._empty_state), STATE_AXES)
        self._key = _placed(jax.eval_shape(lambda: jax.random.key(0)), ())
        self._params = _as_served(served)
        self.layers = None
        if parallel.platform() != "tpu":
            layers = jax.eval_shape(lambda params: nnx.merge(programs.graphdef, params).unstack(), served)
            self.layers = _as_served(layers)

    def serve(self) -> Program:
        return self._of._serve.program(self._given, dtype=self._of.dtype)

    def unstack(self) -> Program:
        return self._of._unstack.program(self._params, dtype=self._of.dtype)

    def prefill(self, width: int, per_shard: int) -> Program:
        return self._of.prefill.program(self._params, self._state.pool, *self._of.empty_prefill(width, per_shard))

    def start(self) -> Program:
        return self._of.start.program(self._state, self._of.empty_starts(), self._key)

    def decode(self, width: int) -> Program:
        sampling, steps = SamplingParams().traced(), np.int32(1)
        arguments = (self._params, self._state, sampling, self._of.stops, steps, self.layers)
        return self._of.decode_chunk.program(*arguments, chunk=self._of.capacity.chunk, slots=width)

    def release(self) -> Program:
        return self._of.release.program(self._state, self._of.no_rows().reshape(-1))

    def recompute(self) -> Program:
        return self._of.recompute.program(self._params, self._state, *self._of.empty_recompute())

    def pages_in_use(self) -> Program:
        return self._of.pages_in_use.program(self._state.pool)


def _served(params: Any, dtype: Any) -> Any:
    """The parameters, adapters merged into them, in `dtype` and the serving layout; inside jit."""
    return parallel.serving(lora.merged(params, dtype), dtype)


def _placed(tree: Any, names: Any) -> Any:
    """Abstract arrays in the places that `parallel.constrain_tree` gives them."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree

    def place(x, n):
        return jax.NamedSharding(mesh, parallel.partition_spec(n, x.shape, mesh))

    return abstract(tree, jax.tree.map(place, tree, names))


def _as_served(params: Any) -> Any:
    """Abstract parameters in the serving layout."""
    mesh = jax.sharding.get_mesh()
    return params if mesh.empty else abstract(params, parallel.shardings(params, mesh, parallel.SERVING_RULES))


class DecoderDevice:
    """`Device` on the current mesh, for one call of the sampler: parameters, and an empty cache that goes with it.

    key: typed PRNG key of the call.
    """

    def __init__(self, programs: Programs, params: Any, key: jax.Array, sampling: SamplingParams):
        self._programs, self._capacity = programs, programs.capacity
        self._params = programs.serve(params)
        self._layers = programs.layers(self._params)
        self._key, self._sampling = key, sampling.traced()
        self._state = programs.initial_state()

    def prefill(self, prompts: Sequence[Sequence[Prompt]]) -> None:
        programs = self._programs
        for per_shard, width, batch in prefill_batches(prompts):
            tokens, lengths, rows = programs.empty_prefill(width, per_shard)
            for i, prompt in batch.items():
                lengths[i], rows[i] = len(prompt.tokens), prompt.row
                tokens[i, : lengths[i]] = prompt.tokens
            pool = programs.prefill(self._params, self._state.pool, tokens, lengths, rows)
            self._state = dataclasses.replace(self._state, pool=pool)

    def start(self, sequences: Sequence[Sequence[Start]]) -> None:
        starts = self._programs.empty_starts()
        for shard, of_shard in enumerate(sequences):
            first = shard * self._capacity.queue_size
            entries = slice(first, first + len(of_shard))
            starts.valid[entries] = True
            for name, column in zip(Start._fields, zip(*of_shard)):
                getattr(starts, name)[entries] = column
        self._state = self._programs.start(self._state, starts, self._key)

    def decode(self, steps: int, sequences: int) -> Callable[[], Chunk]:
        programs, capacity = self._programs, self._capacity
        slots = min(sequences, capacity.num_slots) * capacity.num_shards
        self._state, out = programs.decode_chunk(
            self._params,
            self._state,
            self._sampling,
            programs.stops,
            np.int32(steps),
            self._layers,
            chunk=capacity.chunk,
            slots=next(n for n in programs.widths if n >= slots),
        )
        return functools.partial(jax.device_get, out)

    def recompute(self, shard: int, source: int, row: int, tokens: Sequence[int], start: int) -> None:
        programs, block, end = self._programs, self._capacity.num_slots, len(tokens) - 1
        while True:  # once at least: it makes the row
            sources, rows, part_tokens, starts, ends = programs.empty_recompute()
            part = tokens[start : min(start + block, end)]
            sources[shard], rows[shard] = source, row
            starts[shard], ends[shard] = start, start + len(part)
            part_tokens[shard, : len(part)] = part
            self._state = programs.recompute(self._params, self._state, sources, rows, part_tokens, starts, ends)
            source, start = row, start + len(part)
            if start >= end:
                break

    def release(self, blocks: Sequence[Sequence[range]]) -> None:
        for first in range(0, max(map(len, blocks)), RELEASE_BATCH):
            rows = self._programs.no_rows()
            for of_shard, leaving in zip(rows, blocks):
                for i, of_question in enumerate(leaving[first : first + RELEASE_BATCH]):
                    of_shard[i] = of_question
            self._state = self._programs.release(self._state, rows.reshape(-1))

    def pages_in_use(self) -> int:
        return int(self._programs.pages_in_use(self._state.pool))
