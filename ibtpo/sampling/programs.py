"""The compiled programs of the sampler, and the device state they work on: `Device` for a decoder in JAX."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ibtpo import parallel
from ibtpo.kernels.page_heads import page_heads
from ibtpo.models.config import ModelConfig
from ibtpo.sampling import pages as paging
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.decode import decode_chunk, prefill, recompute, release, start
from ibtpo.sampling.device import (
    PREFILL_BATCH,
    RELEASE_BATCH,
    Chunk,
    Prompt,
    Start,
    chunk_widths,
    prefill_batches,
    prefill_width,
)
from ibtpo.sampling.logits import SamplingParams
from ibtpo.sampling.slots import STATE_AXES, SamplerState, Starts, make_queue, make_slots

# Compiled once per shape, whichever sampler asks. Donated: the pool is updated in place, never copied.
_start = jax.jit(start, donate_argnums=0)
_release = jax.jit(release, donate_argnums=0)
_serving = jax.jit(parallel.serving, static_argnums=1)
_unstack = jax.jit(lambda graphdef, params: nnx.merge(graphdef, params).unstack(), static_argnums=0)
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
        self.initial_state = jax.jit(self._empty_state)
        # A chunk is run by the fewest of these slots that hold its sequences.
        shards = capacity.num_shards
        self.widths = [width * shards for width in chunk_widths(capacity.num_slots)]

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
        leaves = jax.tree.leaves(params)
        if parallel.current_mesh() is None and all(x.dtype == self.dtype for x in leaves):
            return params
        return _serving(params, self.dtype)

    def layers(self, params: Any) -> list[nnx.State] | None:
        """The layers one by one, for a whole call: a scan on a CPU or GPU would copy each one's weights in every step.
        None on TPUs, whose scans do not."""
        return None if parallel.platform() == "tpu" else _unstack(self.graphdef, params)

    def lower(self, params: Any) -> dict[str, jax.stages.Lowered]:
        """The programs for parameters in the training layout (abstract ones will do), for ahead-of-time
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
        serve = _serving.lower(params, self.dtype)
        params = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(functools.partial(parallel.serving, dtype=self.dtype), params),
            parallel.shardings(params, mesh, parallel.SERVING_RULES),
        )
        prompts = self.empty_prefill(prefill_width(self.capacity.max_prompt_tokens))
        layers = jax.eval_shape(self.layers, params)
        return {
            "serve": serve,
            "prefill": self.compiled.prefill.lower(self.graphdef, params, state.pool, *prompts),
            "start": _start.lower(state, self.empty_starts(), jax.eval_shape(lambda: jax.random.key(0))),
            "decode": self.compiled.decode_chunk.lower(
                self.graphdef,
                params,
                state,
                SamplingParams().traced(),
                self.stops,
                np.int32(1),
                layers,
                chunk=self.capacity.chunk,
                slots=self.widths[-1],
            ),
            "release": _release.lower(state, self.no_rows().reshape(-1)),
            "recompute": self.compiled.recompute.lower(self.graphdef, params, state, *self.empty_recompute()),
        }

    # Arguments of nothing, to be filled in.

    def empty_prefill(self, width: int, per_shard: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, lengths, rows) of a prefill of nothing; per_shard: prompts, default as many as there can be."""
        shards = self.capacity.num_shards
        batch = shards * (per_shard or max(1, PREFILL_BATCH // shards))
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
            pool = programs.compiled.prefill(programs.graphdef, self._params, self._state.pool, tokens, lengths, rows)
            self._state = dataclasses.replace(self._state, pool=pool)

    def start(self, sequences: Sequence[Sequence[Start]]) -> None:
        starts = self._programs.empty_starts()
        for shard, of_shard in enumerate(sequences):
            first = shard * self._capacity.queue_size
            entries = slice(first, first + len(of_shard))
            starts.valid[entries] = True
            for name, column in zip(Start._fields, zip(*of_shard)):
                getattr(starts, name)[entries] = column
        self._state = _start(self._state, starts, self._key)

    def decode(self, steps: int, sequences: int) -> Callable[[], Chunk]:
        programs, capacity = self._programs, self._capacity
        slots = min(sequences, capacity.num_slots) * capacity.num_shards
        self._state, out = programs.compiled.decode_chunk(
            programs.graphdef,
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
            self._state = programs.compiled.recompute(
                programs.graphdef, self._params, self._state, sources, rows, part_tokens, starts, ends
            )
            source, start = row, start + len(part)
            if start >= end:
                break

    def release(self, blocks: Sequence[Sequence[range]]) -> None:
        for first in range(0, max(map(len, blocks)), RELEASE_BATCH):
            rows = self._programs.no_rows()
            for of_shard, leaving in zip(rows, blocks):
                for i, of_question in enumerate(leaving[first : first + RELEASE_BATCH]):
                    of_shard[i] = of_question
            self._state = _release(self._state, rows.reshape(-1))

    def pages_in_use(self) -> int:
        return int(_pages_in_use(self._state.pool))
