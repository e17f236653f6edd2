"""The programs of one configuration on one mesh of described devices, and the needs and costs of each there."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ibtpo import parallel
from ibtpo.compiler.chips import CHIPS, roofline
from ibtpo.compiler.costs import Program, analyse
from ibtpo.compiler.kernel_calls import Kernel
from ibtpo.compiler.model import load_model_config
from ibtpo.compiler.topology import get_devices, memory_exceeded, usable_hbm
from ibtpo.compiler.work import make_work
from ibtpo.config import ConfigError
from ibtpo.kernels.page_heads import page_heads
from ibtpo.kernels.paged_attention import paged_attention_cost
from ibtpo.models import hf
from ibtpo.models.lora import stored_dtype
from ibtpo.packing import TokenBatch
from ibtpo.precompiled import abstract
from ibtpo.run_plan import RunPlan, initial_state, make_programs, run_optimizer
from ibtpo.sampling import Codec, TreeOptions, TreeSampler
from ibtpo.sampling.pages import POOL_AXES
from ibtpo.sizing import size_sampler


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A program to compile.

    lower: called with the mesh set. unknown_trips: iterations of its own loop, where a traced number or the data ends
    it, else None (`costs.analyse`). resident: bytes per chip in HBM while it runs that are not arguments of it.
    on_rows: whether it goes over the rows of an update, and not over the sampler's slots.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    unknown_trips: int | None = None
    resident: float = 0
    on_rows: bool = False


@dataclasses.dataclass
class Report:
    """One program on one chip; bytes. `resident` and `on_rows` are those of its `Lowering`.

    temporaries: needed beside arguments and new outputs at the fullest moment. exceeded: None, or how
    many bytes more than the chip has its own memory needs (it did not compile then, and everything else but `seconds`
    is 0 or empty).
    """

    name: str
    seconds: float
    arguments: float = 0
    temporaries: float = 0
    outputs: float = 0
    resident: float = 0
    on_rows: bool = False
    exceeded: float | None = None
    flops: float = 0
    hbm_bytes: float = 0
    roofline: float = 0
    bound: str = ""
    program: Program | None = None
    kernels: dict[str, Kernel] = dataclasses.field(default_factory=dict)

    @property
    def own(self) -> float:
        """Peak of the program itself, by the compiler's own account (the number it checks against the chip's limit)."""
        return self.arguments + self.temporaries + self.outputs

    @property
    def total(self) -> float:
        return self.own + self.resident


def chip_bytes(tree: Any) -> float:
    """Bytes per device of a tree of abstract arrays with shardings."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x.dtype) for x in jax.tree.leaves(tree)))


def _itemsize(dtype: Any) -> int:
    # A typed key is 8 bytes of words; its dtype says 1.
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


class Check:
    """The programs of one configuration on one mesh of described devices."""

    def __init__(self, config, mesh: jax.sharding.Mesh, limit: float):
        self.config, self.mesh, self.limit = config, mesh, limit
        self.chip = CHIPS[mesh.devices.flat[0].device_kind]
        self.model = load_model_config(config)
        longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
        if longest > self.model.max_positions:
            raise ConfigError(
                f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} but the model has "
                f"{self.model.max_positions} positions: lower one of the two"
            )
        self.dtype = jnp.dtype(config.model.dtype)
        self.graphdef, params = hf.abstract(
            self.model, dtype=self.dtype, param_dtype=jnp.dtype(stored_dtype(config.model))
        )
        self.params = abstract(params, parallel.shardings(params, mesh))
        self.plan = RunPlan.from_config(config)
        if self.plan.adapters is not None:
            self.plan.adapters.check(self.model)
        optimizer, _ = run_optimizer(config, self.plan)
        state = jax.eval_shape(
            lambda p: initial_state(config, self.plan, optimizer, p, jax.random.key(0)), self.params
        )
        shardings = parallel.shardings(state, mesh)
        self.state = abstract(state, shardings)
        self.programs: Any = make_programs(config, self.plan, self.graphdef, optimizer, shardings)
        self.work = make_work(config, self.model, self.plan)
        tree = TreeOptions.from_config(config)
        with jax.set_mesh(mesh):
            questions = config.train.questions_per_step
            self.options = size_sampler(config, self.model, tree, questions=questions, training=True, limit=limit)
            self.sampler = TreeSampler(
                self.graphdef,
                self.model,
                self.options,
                tree,
                Codec(self.model.vocab_size, stop_ids=[0]),
                dtype=self.dtype,
            )
        self.reports: dict[str, Report] = {}

    def batch(self, filled: bool = False) -> TokenBatch:
        """The rows of one update, see `RunPlan.abstract_batch`."""
        return self.plan.abstract_batch(self.work.row_tokens, self.mesh, filled=filled)

    def lowered(self) -> dict[str, Lowering]:
        """The programs by name, in the order in which a step runs them."""
        programs = [*self._of_sampler(), *self._of_rows()]
        return {program.name: program for program in programs}

    def _of_sampler(self) -> list[Lowering]:
        lowered = functools.cache(lambda: self.sampler.lower(self.state.policy))
        state, serving = chip_bytes(self.state), self.serving_bytes()
        served = chip_bytes(self.state.policy)
        resident = {"serve": state - served, "start": state + serving, "release": state + serving}
        return [
            Lowering(
                name,
                functools.partial(lambda name: lowered()[name], name),
                unknown_trips=self.config.sampling.chunk if name == "decode" else None,
                resident=resident.get(name, state),
            )
            for name in ("serve", "prefill", "start", "decode", "release", "recompute")
        ]

    def _of_rows(self) -> list[Lowering]:
        """Each of the programs over rows, on as many as a step's trees need (`Work`)."""
        microbatches, state = self.work.rows // self.plan.rows_per_step, chip_bytes(self.state)
        whose = {"reference": self.state.ref_params, "policy": self.state.policy}
        programs = [
            Lowering(
                name,
                functools.partial(lambda params: self.programs.log_probs.lower(params, self.batch()), whose[name]),
                unknown_trips=microbatches,
                resident=state - chip_bytes(whose[name]),
                on_rows=True,
            )
            for name in self.plan.log_probs_of
        ]
        update = Lowering(
            "update",
            lambda: self.programs.update.lower(self.state, self.batch(filled=True)),
            unknown_trips=microbatches,
            on_rows=True,
        )
        return [*programs, update]

    # Outputs.

    def serving_bytes(self, only: str | None = None) -> float:
        """Bytes per chip of the weights (or of the one parameter `only`) as the sampler reads them."""
        params = jax.eval_shape(functools.partial(parallel.serving, dtype=self.dtype), self.params)
        params = abstract(params, parallel.shardings(params, self.mesh, parallel.SERVING_RULES))
        return chip_bytes(params if only is None else params[only])

    def compile(self, program: Lowering) -> Report:
        """Compiles one program and counts its costs; the report is kept."""
        started = time.monotonic()
        try:
            with jax.set_mesh(self.mesh):
                compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            exceeded = memory_exceeded(str(error))
            if exceeded is None:
                raise
            report = Report(
                program.name,
                time.monotonic() - started,
                resident=program.resident,
                on_rows=program.on_rows,
                exceeded=exceeded[0] - exceeded[1],
            )
            self.reports[program.name] = report
            return report
        seconds = time.monotonic() - started
        memory: Any = compiled.memory_analysis()
        arguments = memory.argument_size_in_bytes
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        counted = analyse(compiled.as_text() or "", unknown_trips=program.unknown_trips)
        total = counted.total
        kernels = {name: self.work_of_kernel(program.on_rows, name, k) for name, k in total.kernels.items()}
        flops = total.flops + sum(k.flops for k in kernels.values())
        hbm_bytes = total.bytes + sum(k.bytes for k in kernels.values())
        at_best, bound = roofline(flops, hbm_bytes, total.sent, self.chip)
        self.reports[program.name] = Report(
            name=program.name,
            seconds=seconds,
            arguments=arguments,
            # Not temp_size_in_bytes: its parts are not all alive at once, and the compiler allows a larger sum.
            temporaries=max(memory.peak_memory_in_bytes - arguments - outputs, 0),
            outputs=outputs,
            resident=program.resident,
            on_rows=program.on_rows,
            flops=flops,
            hbm_bytes=hbm_bytes,
            roofline=at_best,
            bound=bound,
            program=counted,
            kernels=kernels,
        )
        return self.reports[program.name]

    def work_of_kernel(self, on_rows: bool, name: str, kernel: Kernel) -> Kernel:
        """A kernel's cost without the blocks it skips.

        Tree attention estimates for a plain causal mask, and skips the blocks that no query sees. Paged attention has
        no estimate, as it knows no lengths: it is counted at their mean, in the whole blocks that it reads.
        """
        if "paged" in name:
            slots = self.config.sampling.slots // self.sampler.capacity.num_shards
            kv_heads, *_, lanes = self.pool_shape()
            lengths: Any = np.full(slots, self.work.mean_read)
            flops, num_bytes = paged_attention_cost(
                lengths,
                num_heads=max(kv_heads, self.kv_heads_per_chip) * (self.model.num_heads // self.model.num_kv_heads),
                num_kv_heads=kv_heads,
                head_dim=lanes,
                itemsize=self.dtype.itemsize,
            )
            return dataclasses.replace(kernel, flops=kernel.calls * flops, bytes=kernel.calls * num_bytes)
        if on_rows:
            share = self.work.visible / self.work.causal
            return dataclasses.replace(kernel, flops=kernel.flops * share, bytes=kernel.bytes * share)
        return kernel

    @property
    def kv_heads_per_chip(self) -> int:
        """The model's own that a chip keeps."""
        tensor, heads = self.mesh.shape["tensor"], self.model.num_kv_heads
        return heads if heads % tensor else heads // tensor

    def pool_shape(self) -> tuple[int, ...]:
        """Of the keys (or the values) on one chip, as its pages hold them."""
        model, sampler = self.model, self.sampler
        pages = sampler.total_pages
        with jax.set_mesh(self.mesh):
            tensor = self.mesh.shape["tensor"]
            heads, lanes = page_heads(model.num_kv_heads, model.head_dim, self.dtype, tensor)
        shape = (heads, model.num_layers, pages, self.config.sampling.page_size, lanes)
        axes: Any = POOL_AXES.keys
        spec = parallel.partition_spec(axes, shape, self.mesh)
        return jax.NamedSharding(self.mesh, spec).shard_shape(shape)

    def need(self, report: Report) -> float:
        """Bytes in HBM while a program runs."""
        return report.total if report.exceeded is None else self.limit + report.exceeded + report.resident


def check_config(
    config, topology: str, programs: Sequence[str] = (), log: Callable[[str], None] = lambda text: None
) -> Check:
    """Compiles the programs of a resolved configuration for a topology.

    Args:
      topology: by JAX's name, e.g. "v5e:4x4".
      programs: names of those to compile; none: all.
      log: told of each program, before and after, a piece of a line at a time.

    Raises:
      ConfigError: no compiler, no such topology or program, or a configuration that cannot run there.
    """
    devices = get_devices(topology)
    check = Check(config, parallel.make_mesh(config.mesh, devices), usable_hbm(devices[0]))
    lowered = check.lowered()
    for name in programs:
        if name not in lowered:
            raise ConfigError(f"--programs={name}: it is none of {', '.join(lowered)}")
    chosen = [program for program in lowered.values() if not programs or program.name in programs]
    for number, program in enumerate(chosen, 1):
        log(f"[{number}/{len(chosen)}] compiling {program.name} ... ")
        report = check.compile(program)
        log(f"{report.seconds:.0f} s{'' if report.exceeded is None else ', out of memory'}\n")
    return check
