"""Compiles a run's programs for a TPU topology that is not there, and says whether they fit and what they cost.

    python -m ibtpo.compile_check --config=configs/qwen7b.py --topology=v5e:4x4

The real update and the real programs of the sampler go through the real TPU compiler (pip install -r
requirements-tpu.txt; any x86 Linux machine). No weights are read: config.model.path needs its config.json at most.
Everything is per chip. FLOPs and bytes are counted in the compiled programs (ibtpo/hlo.py), times are what the chip's
published peaks allow at best, and memory is the compiler's own. Goals are at the end; with --json the last line holds
everything.
"""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ibtpo import config as config_lib
from ibtpo import hlo, parallel
from ibtpo.kernels import tree_attention_tpu
from ibtpo.kernels.paged_attention import BLOCK_TOKENS, paged_attention_cost
from ibtpo.losses import LossOptions
from ibtpo.models import hf
from ibtpo.models.config import ModelConfig
from ibtpo.optimizer import make_optimizer
from ibtpo.packing import TokenBatch, pack, row_length
from ibtpo.sampling.engine import SamplerOptions, TreeSampler
from ibtpo.sampling.pages import POOL_AXES
from ibtpo.sampling.strategies import TreeOptions, num_responses
from ibtpo.state import create_state, make_log_probs, make_update
from ibtpo.tree import Response, Tree, build_tree, stack_trees

_TOPOLOGY = flags.DEFINE_string("topology", None, "chips to compile for, by JAX's name, e.g. v5e:4x4 or v5p:2x2x2")
_PROGRAMS = flags.DEFINE_list("programs", [], "compile only these of the programs, e.g. decode,update")
_JSON = flags.DEFINE_bool("json", False, "print one JSON object with everything as the last line, and no table")

EXAMPLES = "v5e:2x4, v5e:4x4, v6e:4x4, v5p:2x2x2, v4:2x2x2"
STEP_TOKENS = 64  # of a reasoning step of the representative tree
UPDATE_GOAL, DECODE_GOAL = 1.35, 1.2
SAMPLER_PROGRAMS = ("serve", "prefill", "start", "decode", "release", "recompute")
_GIB = 2**30


# --- chips ----------------------------------------------------------------------------------------------------------


def get_devices(topology: str) -> list[jax.Device]:
    """Described (not real) devices of a topology such as "v5e:4x4", one per chip.

    Raises:
      ConfigError: libtpu is not installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise config_lib.ConfigError("the TPU compiler (libtpu) is not installed: pip install -r requirements-tpu.txt")
    from jax.experimental import topologies

    # The compiler alone is wanted: no chips are looked for, and several may compile at a time.
    quiet = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # as TPU VMs run it: both cores of a chip are one device
    if re.fullmatch(r"v\w+:1(x1)*", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise config_lib.ConfigError(f"--topology={topology}: {reason}; e.g. {EXAMPLES}") from None
    kind = devices[0].device_kind
    if kind not in hlo.CHIPS:
        raise config_lib.ConfigError(
            f"--topology={topology}: no published peaks of {kind!r} are known here; e.g. {EXAMPLES}"
        )
    return list(devices)


def usable_hbm(device: jax.Device) -> float:
    """Bytes of HBM that the compiler lets a program use: asked by a program that is too large."""
    too_large = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(device))
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        limit = _exceeded(str(error))
        if limit:
            return limit[1]
    return hlo.CHIPS[device.device_kind].hbm_bytes


def _exceeded(message: str) -> tuple[float, float] | None:
    """(bytes needed, bytes there are) of the compiler's complaint about memory."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (
        r"\(([\d.]+)([KMGT]?)\) exceeds available \w+ \(([\d.]+)([KMGT]?)\)",
        r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    ):
        if match := re.search(pattern, message):
            used, used_unit, limit, limit_unit = match.groups()
            return float(used) * units[used_unit], float(limit) * units[limit_unit]
    return None


# --- the model and its work -----------------------------------------------------------------------------------------


def load_model_config(config) -> ModelConfig:
    """Sizes of the model: of the config.json in model.path, or of model.preset.

    Raises:
      ConfigError: neither is there.
    """
    path = pathlib.Path(config.model.path) / "config.json"
    if path.is_file():
        return ModelConfig.from_hf(json.loads(path.read_text(encoding="utf-8")))
    if preset := config.model.get("preset"):
        from ibtpo.models.presets import PRESETS

        return PRESETS[preset]
    raise config_lib.ConfigError(
        f"model.path={config.model.path}: no config.json there; give the folder of a model, or a known size by "
        "--config.model.preset"
    )


def matmul_params(model: ModelConfig) -> int:
    """Parameters that every token is multiplied with: the projections of all layers and the output head."""
    D, H, K, Dh = model.embed_dim, model.num_heads, model.num_kv_heads, model.head_dim
    layer = D * H * Dh * 2 + D * K * Dh * 2 + 3 * D * model.mlp_dim
    return model.num_layers * layer + model.vocab_size * D


def own_flops(model: ModelConfig, tokens: float, pairs: float) -> float:
    """FLOPs of one update on so many unique tokens, without recomputation.

        6 * matmul_params * tokens + 6 * 2 * Dh * H * L * pairs

    A multiply-add is two, the backward pass twice the forward pass; pairs: (query, key) that see each other; each costs
    Dh multiply-adds for its score and Dh for its value in every head and layer.
    """
    return 6.0 * matmul_params(model) * tokens + 12.0 * model.head_dim * model.num_heads * model.num_layers * pairs


def representative_tree(options: TreeOptions, prompt_tokens: int, seed: int = 0) -> Tree:
    """A tree as sampling with `options` grows it where every response is as long as it may be.

    Steps have `STEP_TOKENS` tokens; each response after the first round forks at a random step of a random earlier one
    (where a step ends and `min_new_tokens` remain).
    """
    rng = np.random.default_rng(seed)
    length = options.max_new_tokens
    ends = range(STEP_TOKENS, length - options.min_new_tokens + 1, STEP_TOKENS)
    tokens, nothing = np.zeros(length, np.int32), np.zeros(length, np.float32)
    responses = []
    for index in range(num_responses(options)):
        parent, fork, round = -1, 0, 0
        if index >= options.initial:
            round = 1 + (index - options.initial) // (options.top_k * options.branch)
            if ends:
                parent, fork = (
                    int(rng.integers(options.initial + (round - 1) * options.top_k * options.branch)),
                    int(rng.choice(ends)),
                )
        responses.append(Response(index, parent, fork, round, tokens, nothing, "length", 0.0))
    return build_tree(np.zeros(prompt_tokens, np.int32), responses, lambda _: range(STEP_TOKENS, length, STEP_TOKENS))


def visible_pairs(subtree_end: np.ndarray) -> int:
    """Number of (i, j) with j <= i < subtree_end[j], of one row."""
    return int((subtree_end - np.arange(len(subtree_end))).sum())


def visible_blocks(subtree_end: np.ndarray, blocks: tree_attention_tpu.Blocks) -> tuple[int, int]:
    """(pairs of a query and a key block that the TPU kernel visits, those under a plain causal mask), of one row."""
    padded = np.zeros((1, blocks.num_tokens), np.int32)
    padded[0, : len(subtree_end)] = subtree_end
    visited = np.asarray(tree_attention_tpu.visible_blocks(jnp.asarray(padded), blocks))
    return int(visited.sum()), tree_attention_tpu.max_items(1, blocks)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one update trains on: rows of row_tokens tokens, with representative trees or pieces of them.

    unique_tokens: of one row. pairs: visible (query, key) pairs of one row. Of pieces, both count what is real only,
      not the tokens repeated for them. subtree_end: [row_tokens].
    mean_length: tokens of a sequence in the cache at a decode step, mean over a tree's steps. mean_read: the same in
      whole blocks, as the TPU kernel reads them. blocks: of the training attention; visible, causal: `visible_blocks`.
    """

    rows: int
    row_tokens: int
    unique_tokens: int
    pairs: int
    subtree_end: np.ndarray
    tree_tokens: int
    mean_length: float
    mean_read: float
    blocks: tree_attention_tpu.Blocks
    visible: int
    causal: int


def make_work(config, model: ModelConfig) -> Work:
    """The rows of an update of `config` where all trees are like `representative_tree`."""
    options = TreeOptions.from_config(config)
    tree = representative_tree(options, config.data.max_prompt_tokens)
    own = tree.subtree_end[0]
    size = len(own)
    largest = config.data.max_prompt_tokens + num_responses(options) * config.sampling.max_new_tokens
    row_tokens = config.train.row_tokens or row_length(largest)
    num_questions = -(-config.train.questions_per_step // config.train.minibatches)
    multiple = config.train.rows_per_step
    if per_row := row_tokens // size:
        subtree_end = np.arange(1, row_tokens + 1)
        for index in range(per_row):
            subtree_end[index * size : (index + 1) * size] = own + index * size
        rows = -(-num_questions // per_row)
        used, pairs = per_row * size, visible_pairs(subtree_end[: per_row * size])
    else:  # trees in pieces: rows differ; the one that attends most stands for them, and what is real is their mean
        few = min(num_questions, 8)
        nothing = np.zeros((few, tree.node_parent.shape[1]), np.float32)
        batch, _ = pack(stack_trees([tree] * few), nothing, nothing, nothing, row_tokens=row_tokens)
        subtree_end = max(batch.subtree_end, key=visible_pairs)
        rows = -(-len(batch.tokens) * num_questions // few)
        used, pairs = num_questions * size // rows, num_questions * visible_pairs(own) // rows
    rows = -(-rows // multiple) * multiple
    blocks = tree_attention_tpu.blocks_of(row_tokens, model.num_heads // model.num_kv_heads)
    visible, causal = visible_blocks(subtree_end, blocks)
    read = max(BLOCK_TOKENS // config.sampling.page_size, 1) * config.sampling.page_size
    cached = tree.positions[0][config.data.max_prompt_tokens :]  # before a token was drawn, that many were there
    return Work(
        rows=rows,
        row_tokens=row_tokens,
        unique_tokens=used,
        pairs=pairs,
        subtree_end=subtree_end,
        tree_tokens=size,
        mean_length=float(cached.mean()),
        mean_read=float((-(-cached // read) * read).mean()),
        blocks=blocks,
        visible=visible,
        causal=causal,
    )


# --- programs -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """One program on one chip; bytes. `resident`: what else must be in HBM while it runs.

    temporaries: what is needed beside arguments and new outputs at the fullest moment. exceeded: None, or how
    many bytes more than the chip has its own memory needs (it did not compile then, and everything else but `seconds`
    is 0 or empty).
    """

    name: str
    seconds: float
    arguments: float = 0
    temporaries: float = 0
    outputs: float = 0
    resident: float = 0
    exceeded: float | None = None
    flops: float = 0
    hbm_bytes: float = 0
    roofline: float = 0
    bound: str = ""
    program: hlo.Program | None = None
    kernels: dict[str, hlo.Kernel] = dataclasses.field(default_factory=dict)

    @property
    def own(self) -> float:
        """Peak of the program itself, by the compiler's own account (what it checks against the chip's limit)."""
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


def abstract(tree: Any, shardings: Any) -> Any:
    """The arrays of a tree as shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


class Check:
    """The programs of one configuration on one mesh of described devices."""

    def __init__(self, config, mesh: jax.sharding.Mesh, limit: float):
        self.config, self.mesh, self.limit = config, mesh, limit
        self.chip = hlo.CHIPS[mesh.devices.flat[0].device_kind]
        self.model = load_model_config(config)
        longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
        if longest > self.model.max_positions:
            raise config_lib.ConfigError(
                f"data.max_prompt_tokens + sampling.max_new_tokens = {longest} but the model has "
                f"{self.model.max_positions} positions: lower one of the two"
            )
        self.dtype = jnp.dtype(config.model.dtype)
        self.graphdef, params = hf.abstract(
            self.model, dtype=self.dtype, param_dtype=jnp.dtype(config.model.param_dtype)
        )
        self.params = abstract(params, parallel.shardings(params, mesh))
        self.optimizer, _ = make_optimizer(config.optimizer, config.train.steps)
        loss = config.loss
        self.needs_reference = loss.kl > 0 or loss.ib_confidence == "reference"
        state = jax.eval_shape(
            lambda p: create_state(
                p,
                self.optimizer,
                jax.random.key(0),
                keep_reference=self.needs_reference,
                reference_dtype=config.model.dtype,
            ),
            self.params,
        )
        self.state = abstract(state, parallel.shardings(state, mesh))
        self.work = make_work(config, self.model)
        with jax.set_mesh(mesh):
            self.sampler = TreeSampler(
                self.graphdef,
                self.model,
                SamplerOptions.from_config(config),
                TreeOptions.from_config(config),
                stop_ids=[0],
                step_ends=lambda tokens: [],
                dtype=self.dtype,
            )
        self.reports: dict[str, Report] = {}

    # What goes in.

    def _rows(self, dtype: Any, *names: str | None) -> jax.ShapeDtypeStruct:
        shape = (self.work.rows, self.work.row_tokens)
        spec = parallel.partition_spec(names, shape, self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(self.mesh, spec))

    def batch(self) -> TokenBatch:
        """The rows of one update."""
        integers, floats = self._rows(jnp.int32, "rows", None), self._rows(jnp.float32, "rows", None)
        kinds = dict.fromkeys(("tokens", "positions", "subtree_end", "parent_token"), integers)
        return TokenBatch(**kinds, **dict.fromkeys(("log_probs", "positive", "negative", "weight"), floats))

    def lowered(self) -> dict[str, Any]:
        """{name: function that lowers the program}, in the order in which a step runs them."""
        config, loss = self.config, self.config.loss
        forward = dict(
            temperature=config.sampling.temperature,
            rows_per_step=config.train.rows_per_step,
            token_block=config.train.token_block,
        )
        sampler = functools.cache(lambda: self.sampler.lower(self.params))
        programs = {
            name: functools.partial(lambda name: sampler()[name], name)
            for name in ("serve", "prefill", "start", "decode", "release", "recompute")
        }
        if self.needs_reference:
            score = make_log_probs(self.graphdef, **forward)
            programs["reference"] = lambda: score.lower(self.state.ref_params, self.batch())
        update = make_update(
            self.graphdef,
            self.optimizer,
            LossOptions.from_config(loss),
            remat=config.model.remat,
            **forward,
        )
        log_probs = self._rows(jnp.float32, "rows", None)
        reference = log_probs if self.needs_reference else None
        several = config.train.epochs * config.train.minibatches > 1
        old = dict(old_log_probs=log_probs) if loss.importance_cap > 0 and several else {}
        programs["update"] = lambda: update.lower(self.state, self.batch(), reference, **old)
        return programs

    # What comes out.

    def _resident(self, name: str) -> float:
        """Bytes in HBM beside the program's own."""
        state = chip_bytes(self.state)
        if name == "update":
            return 0.0
        if name == "reference":
            return state - chip_bytes(self.state.ref_params)
        if name == "serve":
            return state - chip_bytes(self.params)
        if name in ("start", "release"):
            return state + self.serving_bytes()
        return state

    def serving_bytes(self, only: str | None = None) -> float:
        """Bytes per chip of the weights (or of the one parameter `only`) as the sampler reads them."""
        params = jax.eval_shape(functools.partial(parallel.serving, dtype=self.dtype), self.params)
        params = abstract(params, parallel.shardings(params, self.mesh, parallel.SERVING_RULES))
        return chip_bytes(params if only is None else params[only])

    def compile(self, name: str, lower: Any) -> Report:
        """Compiles one program and counts what it costs; the report is kept."""
        started = time.monotonic()
        try:
            with jax.set_mesh(self.mesh):
                compiled = lower().compile()
        except jax.errors.JaxRuntimeError as error:
            exceeded = _exceeded(str(error))
            if exceeded is None:
                raise
            report = Report(
                name, time.monotonic() - started, exceeded=exceeded[0] - exceeded[1], resident=self._resident(name)
            )
            self.reports[name] = report
            return report
        seconds = time.monotonic() - started
        memory = compiled.memory_analysis()
        arguments = memory.argument_size_in_bytes
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        program = hlo.analyse(compiled.as_text(), unknown_trips=self.config.sampling.chunk)
        kernels = {kernel: self.work_of_kernel(name, kernel, cost) for kernel, cost in program.total.kernels.items()}
        flops = program.total.flops + sum(k.flops for k in kernels.values())
        hbm_bytes = program.total.bytes + sum(k.bytes for k in kernels.values())
        roofline, bound = hlo.roofline(flops, hbm_bytes, program.total.sent, self.chip)
        self.reports[name] = Report(
            name=name,
            seconds=seconds,
            arguments=arguments,
            # Not temp_size_in_bytes: its parts are not all alive at once, and the compiler allows a larger sum.
            temporaries=max(memory.peak_memory_in_bytes - arguments - outputs, 0),
            outputs=outputs,
            resident=self._resident(name),
            flops=flops,
            hbm_bytes=hbm_bytes,
            roofline=roofline,
            bound=bound,
            program=program,
            kernels=kernels,
        )
        return self.reports[name]

    def work_of_kernel(self, program: str, name: str, kernel: hlo.Kernel) -> hlo.Kernel:
        """A kernel's cost with what it skips left out.

        Tree attention estimates for a plain causal mask, and skips the blocks that no query sees. Paged attention has
        no estimate, as it knows no lengths: it is counted at their mean, in the whole blocks that it reads.
        """
        if "paged" in name:
            slots = self.config.sampling.slots // self.sampler.num_shards
            kv_heads = self.pool_shape()[0]
            flops, num_bytes = paged_attention_cost(
                np.full(slots, self.work.mean_read),
                num_heads=kv_heads * (self.model.num_heads // self.model.num_kv_heads),
                num_kv_heads=kv_heads,
                head_dim=self.model.head_dim,
                itemsize=self.dtype.itemsize,
            )
            return dataclasses.replace(kernel, flops=kernel.calls * flops, bytes=kernel.calls * num_bytes)
        if program in ("update", "reference"):
            share = self.work.visible / self.work.causal
            return dataclasses.replace(kernel, flops=kernel.flops * share, bytes=kernel.bytes * share)
        return kernel

    def pool_shape(self) -> tuple[int, ...]:
        """Of the keys (or the values) on one chip."""
        model, sampler = self.model, self.sampler
        pages = sampler.num_pages * sampler.num_shards
        shape = (model.num_kv_heads, model.num_layers, pages, self.config.sampling.page_size, model.head_dim)
        spec = parallel.partition_spec(POOL_AXES.keys, shape, self.mesh)
        return jax.NamedSharding(self.mesh, spec).shard_shape(shape)

    # Conclusions.

    def update_flops(self) -> dict[str, float] | None:
        """Compiled FLOPs of the update over the model's own, both per chip and per token: padding counts in neither."""
        report = self.reports.get("update")
        if report is None or report.exceeded is not None:
            return None
        work = self.work
        share = work.unique_tokens / work.row_tokens
        kernels = sum(k.flops for k in report.kernels.values())
        compiled = (report.flops - kernels) * share + kernels
        own = work.rows * own_flops(self.model, work.unique_tokens, work.pairs) / self.mesh.size
        return {
            "compiled": compiled,
            "own": own,
            "ratio": compiled / own,
            "in_kernels": kernels,
            "padded": report.flops,
        }

    def decode_step(self) -> dict[str, float] | None:
        """Bytes of one decode step over what it cannot avoid reading: weights and the live part of the cache."""
        report = self.reports.get("decode")
        if report is None or report.exceeded is not None:
            return None
        loop = next(loop for loop in report.program.loops if loop.trips is None and loop.depth == 0)
        kernels = {n: self.work_of_kernel("decode", n, k) for n, k in loop.body.kernels.items()}
        measured = loop.body.bytes + sum(k.bytes for k in kernels.values())
        flops = loop.body.flops + sum(k.flops for k in kernels.values())
        weights = self.serving_bytes()
        if not self.model.tie_embeddings:
            # Of the table that is only looked up a step reads a row per slot.
            weights -= self.serving_bytes(only="embedding")
        pool = self.pool_shape()
        slots = self.config.sampling.slots // self.sampler.num_shards
        cache = 2.0 * slots * self.work.mean_length * pool[0] * pool[1] * self.model.head_dim * self.dtype.itemsize
        seconds, bound = hlo.roofline(flops, measured, loop.body.sent, self.chip)
        return {
            "bytes": measured,
            "weights": weights,
            "live_cache": cache,
            "ratio": measured / (weights + cache),
            "flops": flops,
            "sent": loop.body.sent,
            "roofline": seconds,
            "bound": bound,
        }

    def capacity(self) -> dict[str, float] | None:
        """Most pages that fit beside everything else, and most slots with their pages in proportion; over all chips.

        From the measured bytes: the pool grows with the pages, the temporaries of a decode step with the slots.
        """
        needs = [self.need(r) for r in self.reports.values() if r.name in SAMPLER_PROGRAMS]
        if not needs or "decode" not in self.reports:
            return None
        sampler, decode = self.sampler, self.reports["decode"]
        pool = 2.0 * math.prod(self.pool_shape()) * self.dtype.itemsize
        shards, page = sampler.num_shards, pool / self.pool_shape()[2]
        pages = shards * math.floor((self.limit - (max(needs) - pool)) / page)
        growing = pool + decode.temporaries
        slots = shards * math.floor((self.limit - (max(needs) - growing)) / (growing / sampler.num_slots))
        return {"page_bytes": page, "pool_bytes": pool, "pages": max(pages, 0), "slots": max(slots, 0)}

    def need(self, report: Report) -> float:
        """Bytes in HBM while a program runs."""
        return report.total if report.exceeded is None else self.limit + report.exceeded + report.resident

    def advice(self) -> list[str]:
        """For each program that does not fit by how much, and which knob to turn."""
        return [self._advice(r) for r in self.reports.values() if self.need(r) > self.limit]

    def _advice(self, report: Report) -> str:
        config, shards = self.config, self.sampler.num_shards
        need = self.need(report)
        over = f"{report.name} needs {_gib(need)} GiB per chip, {_gib(need - self.limit)} too many"
        state = chip_bytes(self.state)
        knobs = []
        if self.needs_reference and config.loss.ib_confidence != "reference":
            freed = _gib(chip_bytes(self.state.ref_params))
            knobs.append(f"loss.kl=0 (no reference is kept: {freed} GiB less)")
        split = f"raise mesh.fsdp={self.mesh.shape['fsdp']} (it splits the training state, {_gib(state)} GiB)"
        if report.name in ("update", "reference", "serve"):
            activations = need - state
            if report.name != "serve" and activations > self.limit - state > 0:
                if config.model.remat != "full" and report.name == "update":
                    knobs.insert(0, f"model.remat=full (now {config.model.remat})")
                if config.train.rows_per_step > shards:
                    knobs.insert(0, f"train.rows_per_step={shards} (now {config.train.rows_per_step})")
                knobs.append(f"train.token_block below {config.train.token_block}")
                knobs.append(f"shorter rows (train.row_tokens, now {self.work.row_tokens}, by sampling.max_new_tokens)")
                knobs.append(f"raise mesh.tensor={self.mesh.shape['tensor']} (it splits what the layers keep)")
            knobs.append(split)
        else:
            room = self.capacity()
            least = self.sampler.group_size * shards
            if room and room["pages"] > least:
                knobs.insert(0, f"sampling.pages={room['pages']} or fewer (now {self.sampler.num_pages * shards})")
                knobs.insert(1, f"sampling.slots below {config.sampling.slots}")
            serving = _gib(self.serving_bytes())
            knobs += [
                split,
                f"raise mesh.tensor={self.mesh.shape['tensor']} (it splits the serving weights, {serving} GiB)",
            ]
        return f"{over}: {'; or '.join(knobs)}"

    def goals(self) -> list[dict[str, Any]]:
        """[{name, value, goal, met}]; a value is at most its goal."""
        result = []

        def at_most(name: str, value: float, goal: float) -> None:
            result.append({"name": name, "value": value, "goal": goal, "met": bool(value <= goal)})

        fullest = max((self.need(r) for r in self.reports.values()), default=0.0)
        at_most("HBM needed over HBM there is, fullest program", fullest / self.limit, 1.0)
        if update := self.update_flops():
            at_most("compiled FLOPs of the update over the model's own", update["ratio"], UPDATE_GOAL)
        if step := self.decode_step():
            at_most("bytes of a decode step over weights and live KV", step["ratio"], DECODE_GOAL)
        missing = [
            name
            for name in ("prefill", "decode", "reference", "update")
            if name in self.reports and self.reports[name].exceeded is None and not self.reports[name].kernels
        ]
        at_most("programs with attention that lack a Pallas kernel", len(missing), 0)
        return result

    def pool_copies(self) -> list[tuple[str, str, float, float]]:
        """(program, shape, bytes, times) of arrays as large as the pool's keys on this chip that are copied whole; the
        pool should be updated in place."""
        size = math.prod(self.pool_shape()) * self.dtype.itemsize
        found: dict[tuple[str, str, float], float] = {}
        for report in self.reports.values():
            if report.name in ("prefill", "start", "decode", "release", "recompute") and report.program:
                for copy in report.program.total.copies:
                    if copy.bytes >= size:
                        key = report.name, copy.shape, copy.bytes
                        found[key] = found.get(key, 0) + copy.calls
        return [(*key, calls) for key, calls in found.items()]


# --- printing -------------------------------------------------------------------------------------------------------


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = list(zip(header, *rows))
    widths = [max(map(len, column)) for column in columns]
    lines = [
        [h.rjust(w) if i else h.ljust(w) for i, (h, w) in enumerate(zip(line, widths))] for line in (header, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def show(check: Check) -> str:
    """The whole report as text of at most 100 columns."""
    config, chip, mesh, work, model = check.config, check.chip, check.mesh, check.work, check.model
    tree, state = config.tree, "parameters, moments" + ", reference" * check.needs_reference
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    reports = list(check.reports.values())
    out = [
        f"\n{mesh.size} x TPU {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_bandwidth / 1e9:.0f} GB/s, "
        f"{_gib(check.limit)} GiB of HBM usable; mesh {shape}",
        f"{config.model.preset or config.model.path}: {model.num_layers} layers, "
        f"{matmul_params(model) / 1e9:.2f} B parameters in matrix products",
        f"Training state ({state}): {_gib(chip_bytes(check.state))} GiB",
        f"One update: {work.rows} rows of {work.row_tokens:,} tokens, {config.train.rows_per_step} at a time; "
        f"{work.unique_tokens:,} of a row's tokens are real",
        f"where a tree ({tree.initial},{tree.rounds},{tree.top_k},{tree.branch}) of "
        f"{config.sampling.max_new_tokens:,}-token responses has {work.tree_tokens:,}.",
        f"Visible blocks of attention ({work.blocks.query} queries x {work.blocks.key} keys): {work.visible:,} of "
        f"{work.causal:,} causal ones, {100 * work.visible / work.causal:.1f} %",
        "Everything below is per chip.\n",
    ]
    rows = []
    for r in reports:
        need = check.need(r)
        sizes = [r.arguments, r.temporaries, r.outputs, r.own, r.resident]
        cells = (
            [_gib(x) for x in sizes]
            if r.exceeded is None
            else ["-", "-", "-", f"+{_gib(r.exceeded)}", _gib(r.resident)]
        )
        rows.append([r.name, f"{r.seconds:.0f} s", *cells, _gib(need), f"{100 * need / check.limit:.0f} %"])
    header = ["memory, GiB", "compile", "arguments", "temporary", "outputs", "peak", "resident", "total", "of HBM"]
    out += [_table(header, rows), ""]
    rows = []
    for r in reports:
        if r.exceeded is None:
            sent = r.program.total.sent
            times = [r.flops / chip.flops, r.hbm_bytes / chip.hbm_bandwidth, sent / chip.ici_bandwidth]
            amounts = [f"{r.flops / 1e12:.3f}", _gib(r.hbm_bytes), _gib(sent)]
            rows.append([r.name, *amounts, *(f"{1e3 * t:.2f}" for t in times), f"{1e3 * r.roofline:.2f}", r.bound])
    header = ["work", "TFLOP", "HBM GiB", "sent GiB", "ms: compute", "memory", "links", "at best", "bound"]
    out += [_table(header, rows), f"decode: a chunk of {config.sampling.chunk} steps; links: all of them at once\n"]
    rows = []
    for r in reports:
        for (kind, group), c in sorted(r.program.total.collectives.items()) if r.program else ():
            rows.append([r.name, kind, str(group), f"{c.calls:,.0f}", _gib(c.bytes), _gib(c.sent)])
    if rows:
        out += [_table(["collectives", "kind", "among", "calls", "GiB", "sent GiB"], rows), ""]
    rows = []
    for r in reports:
        for name, k in sorted(r.kernels.items()):
            source = "own estimate" if k.estimated else ("mean length" if "paged" in name else "no estimate")
            rows.append([r.name, name[:40], f"{k.calls:,.0f}", f"{k.flops / 1e12:.3f}", _gib(k.bytes), source])
    out += [_table(["kernels", "name", "calls", "TFLOP", "GiB", "counted by"], rows) if rows else "kernels: none", ""]
    if update := check.update_flops():
        out.append(
            f"Update, without padding: {update['compiled'] / 1e12:,.1f} TFLOP over the model's own "
            f"{update['own'] / 1e12:,.1f}: {update['ratio']:.3f}"
        )
    if step := check.decode_step():
        out.append(
            f"Decode step: {_gib(step['bytes'])} GiB over weights {_gib(step['weights'])} + live KV "
            f"{_gib(step['live_cache'])} ({work.mean_length:,.0f} tokens a slot): {step['ratio']:.3f}"
        )
        slots = config.sampling.slots
        out.append(
            f"  at best {1e3 * step['roofline']:.2f} ms ({step['bound']}), {slots / step['roofline']:,.0f} tokens/s "
            f"with {slots} slots on {mesh.size} chips"
        )
    if room := check.capacity():
        pages = check.sampler.num_pages * check.sampler.num_shards
        out.append(
            f"Room, from these bytes: {room['pages']:,} pages (now {pages:,}) at {config.sampling.slots} slots, or "
            f"{room['slots']:,} slots with pages in proportion"
        )
    for name, shape, num_bytes, calls in check.pool_copies():
        out.append(f"Note: {name} copies {shape}, of the size of the pool ({_gib(num_bytes)} GiB), {calls:.0f} times")
    advice = [f"Does not fit: {line}" for line in check.advice()]
    for line in advice or ["Everything fits."]:
        out.append(textwrap.fill(line, 100))
    out.append("")
    goals = check.goals()
    rows = [[g["name"], f"{g['value']:.3f}", f"{g['goal']:g}", "yes" if g["met"] else "no"] for g in goals]
    out.append(_table(["goal (at most)", "value", "goal", "met"], rows))
    return "\n".join(out)


def as_json(check: Check) -> dict[str, Any]:
    """The whole report as plain numbers: bytes, FLOPs, seconds."""
    work = dataclasses.asdict(check.work)
    del work["subtree_end"]
    programs = {}
    for r in check.reports.values():
        fields = ("seconds", "arguments", "temporaries", "outputs", "resident", "exceeded", "flops", "hbm_bytes")
        programs[r.name] = {name: getattr(r, name) for name in fields} | {
            "total": check.need(r),
            "fits": check.need(r) <= check.limit,
            "roofline_seconds": r.roofline,
            "bound": r.bound,
            "collectives": [
                {"kind": kind, "group": group, **dataclasses.asdict(c)}
                for (kind, group), c in (r.program.total.collectives.items() if r.program else ())
            ],
            "kernels": [{"name": name, **dataclasses.asdict(k)} for name, k in r.kernels.items()],
        }
    return {
        "chip": dataclasses.asdict(check.chip),
        "chips": check.mesh.size,
        "mesh": dict(check.mesh.shape),
        "hbm_usable": check.limit,
        "state_bytes": chip_bytes(check.state),
        "serving_bytes": check.serving_bytes(),
        "matmul_params": matmul_params(check.model),
        "work": work,
        "programs": programs,
        "update": check.update_flops(),
        "decode_step": check.decode_step(),
        "capacity": check.capacity(),
        "pool_copies": [dict(zip(("program", "shape", "bytes", "calls"), c)) for c in check.pool_copies()],
        "advice": check.advice(),
        "goals": check.goals(),
    }


def main(config, workdir: str | None = None) -> int:
    """Exit code 0 if everything fits, 1 if not."""
    if not _TOPOLOGY.value:
        raise config_lib.ConfigError(f"--topology is missing: name the chips, e.g. {EXAMPLES}")
    with config_lib.user_errors():
        # The program itself runs on the CPU: nothing here may look for an accelerator.
        jax.config.update("jax_platforms", "cpu")
        devices = get_devices(_TOPOLOGY.value)
        check = Check(config, parallel.make_mesh(config.mesh, devices), usable_hbm(devices[0]))
        programs = check.lowered()
        for name in _PROGRAMS.value:
            if name not in programs:
                raise config_lib.ConfigError(f"--programs={name}: it is none of {', '.join(programs)}")
        programs = {name: lower for name, lower in programs.items() if name in (_PROGRAMS.value or programs)}
    for number, (name, lower) in enumerate(programs.items(), 1):
        print(f"[{number}/{len(programs)}] compiling {name} ...", end=" ", file=sys.stderr, flush=True)
        report = check.compile(name, lower)
        print(
            f"{report.seconds:.0f} s{'' if report.exceeded is None else ', out of memory'}", file=sys.stderr, flush=True
        )
    print(json.dumps(as_json(check)) if _JSON.value else show(check))
    return 1 if check.advice() else 0


if __name__ == "__main__":
    config_lib.run(main, needs_workdir=False)
