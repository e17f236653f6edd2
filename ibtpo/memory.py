"""The least memory that a run can do with, from its configuration and its model's sizes, before any of it is taken.

What is counted is there for certain: weights, optimizer state, key-value pages, logits, rows. What the compiler adds is
not, so a run that passes may still not fit (`ibtpo.compile_check` compiles it and says so exactly), but one that is
refused could never run.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import numpy as jnp

from ibtpo import parallel
from ibtpo.errors import RunFailure, UserError
from ibtpo.kernels.page_heads import page_heads
from ibtpo.models.config import ModelConfig
from ibtpo.models.lora import LoraOptions, stored_dtype
from ibtpo.run_plan import RunPlan
from ibtpo.sampling.capacity import STANDBY, Capacity
from ibtpo.sampling.interface import SamplerOptions
from ibtpo.sampling.strategies import TreeOptions, flat_group, most_responses

# Values that runs are known to work with: the key that is furthest above its own is the one to lower.
_USUAL = {
    "sampling.slots": 512,
    "sampling.pages": 100_000,
    "sampling.page_size": 256,
    "sampling.chunk": 256,
    "sampling.questions_in_flight": 1024,
    "sampling.max_new_tokens": 32_768,
    "data.max_prompt_tokens": 8192,
    "tree.initial": 64,
    "tree.rounds": 64,
    "tree.top_k": 64,
    "tree.branch": 64,
    "tree.extra_rounds": 64,
    "train.questions_per_step": 1024,
    "train.rows_per_step": 256,
    "train.row_tokens": 262_144,
    "train.token_block": 16_384,
    "model.lora_rank": 256,
    "eval.samples": 256,
}
# Those that decide how much memory sampling and an update take beside the weights, the handiest first.
SAMPLING = ("sampling.questions_in_flight", "sampling.slots", "sampling.memory_share")
UPDATE = ("train.rows_per_step", "train.row_tokens", "train.token_block")
_ROW_ARRAYS = 8  # of `TokenBatch`, 4 bytes a token each


@dataclass(frozen=True)
class Part:
    """num_bytes: on each device, or on the host. keys: those that the size follows from."""

    name: str
    num_bytes: float
    keys: tuple[str, ...]


def check_training(config: Any, model: ModelConfig) -> None:
    """Refuses a training run that this machine's memory could not hold.

    Raises:
      UserError: one line with the need, its largest part, what there is, and the key to lower.
    """
    weights = _weights(config, model)
    tree = TreeOptions.from_config(config)
    plan = RunPlan.from_config(config)
    served = [*weights, *_serving(config, model)]
    sampling = [*served, *_sampler(config, model, tree, config.train.questions_per_step)]
    if config.eval.every:
        evaluation = TreeOptions.from_config(config, **flat_group(config.eval.samples))
        # Its pool is no larger than that of training unless one question needs it (`evaluation.run`).
        sampling = max(sampling, [*served, *_sampler(config, model, evaluation, 1, samples=True)], key=_total)
    _check(config, sampling, [*weights, *_update(config, model, plan)], _trees(config, plan))


def check_evaluation(config: Any, model: ModelConfig) -> None:
    """The same of an evaluation.

    Raises:
      UserError: as `check_training`.
    """
    tree = TreeOptions.from_config(config, **flat_group(config.eval.samples))
    weights = Part("the weights", state_bytes(config, model, training=False), ("model.path",))
    _check(config, [weights, *_sampler(config, model, tree, 1, samples=True)], [], [])


@contextlib.contextmanager
def enough(config: Any, doing: str, keys: Sequence[str]) -> Iterator[None]:
    """Says which keys to lower where a device has no memory for what is done inside, or the compiler finds none.

    Raises:
      RunFailure: in place of the device's or the compiler's own complaint.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        knobs = ", ".join(f"{key}={config[key.split('.')[0]][key.split('.')[1]]}" for key in keys)
        kind = jax.local_devices()[0].device_kind
        notes = [f", {note}" for note in getattr(error, "__notes__", ()) if note.startswith("while ")]
        raise RunFailure(
            f"{doing}: the memory of the {kind} is full ({_amount(str(error))}{''.join(notes)}): lower one of {knobs}"
        ) from error


def _amount(message: str) -> str:
    """What a complaint about memory says of amounts, e.g. "trying to allocate 3.2GiB"."""
    words = " ".join(message.split()).removeprefix("RESOURCE_EXHAUSTED: ")
    return words[:150] + "..." * (len(words) > 150)


def page_bytes(config: Any, model: ModelConfig) -> float:
    """Of one page of keys and values, all layers, on each device."""
    tensor = parallel.mesh_axis_size("tensor")
    heads, lanes = page_heads(model.num_kv_heads, model.head_dim, jnp.dtype(config.model.dtype), tensor)
    token = 2 * model.num_layers * heads * lanes * bytes_of(config.model.dtype)
    return config.sampling.page_size * token / (tensor if heads % tensor == 0 else 1)


def state_bytes(config: Any, model: ModelConfig, *, training: bool) -> float:
    """Of the weights on each device, in training with the optimizer's state and the reference."""
    if training:
        return _total(_weights(config, model))
    return _num_params(config, model) * bytes_of(stored_dtype(config.model))


def describe_adapters(config: Any, model: ModelConfig) -> str:
    """One line that says what a run with adapters trains, and what its state takes; "" of a run without."""
    adapters = LoraOptions.from_config(config.model)
    if adapters is None:
        return ""
    return (
        f"training adapters of rank {adapters.rank}, {adapters.num_params(model):,} numbers, beside "
        f"{model.num_params:,} that are frozen in {config.model.dtype}: with the optimizer's state "
        f"{gib(state_bytes(config, model, training=True))} on each device"
    )


def _check(config: Any, sampling: list[Part], update: list[Part], host: list[Part]) -> None:
    parts = max(sampling, update, key=_total)
    on_cpu = parallel.platform() == "cpu"
    devices, of_host = jax.local_device_count(), host_bytes()
    if on_cpu:  # the devices are the host
        parts = [Part(part.name, part.num_bytes * devices, part.keys) for part in parts] + host
    limit = of_host if on_cpu else device_bytes()
    where = "this machine" if on_cpu else f"each {jax.devices()[0].device_kind}"
    _refuse(config, parts, limit, where)
    _refuse(config, host, of_host, "this machine")


def _total(parts: Iterable[Part]) -> float:
    return sum(part.num_bytes for part in parts)


def _refuse(config: Any, parts: list[Part], limit: float | None, where: str) -> None:
    if limit is None or not parts or _total(parts) <= limit:
        return
    most = max(parts, key=lambda part: part.num_bytes)
    key = max(most.keys, key=lambda key: _value(config, key) / _USUAL.get(key, 1))
    value = f"{key}={_value(config, key)}" if key in _USUAL else key
    way_out = "lower it"
    if key not in _USUAL:
        adapters = "" if config.model.lora_rank else " or train adapters (model.lora_rank),"
        way_out = f"take a smaller model,{adapters} or split it over more devices (mesh.fsdp)"
    raise UserError(
        f"{value}: the run needs at least {gib(_total(parts))} of memory, {gib(most.num_bytes)} of it for "
        f"{most.name}, and {where} has {gib(limit)}: {way_out}"
    )


def _value(config: Any, key: str) -> float:
    section, name = key.split(".")
    return config[section][name] if key in _USUAL else 1


def gib(num_bytes: float) -> str:
    """In GiB, as text."""
    return f"{num_bytes / 2**30:,.1f} GiB"


def bytes_of(dtype: str) -> int:
    """Of one number of a type that a config may name."""
    return {"float32": 4, "bfloat16": 2}[dtype]


def _split(*axes: str) -> int:
    return math.prod(map(parallel.mesh_axis_size, axes))


def _num_params(config: Any, model: ModelConfig) -> float:
    """Of each device."""
    return model.num_params / _split("fsdp", "tensor")


def _weights(config: Any, model: ModelConfig) -> list[Part]:
    number, own = _num_params(config, model), bytes_of(config.model.param_dtype)
    reference = bytes_of(config.model.dtype) * RunPlan.from_config(config).keep_reference
    moments = bytes_of(config.optimizer.first_moment_dtype) + own
    if config.model.lora_rank:
        state = _num_trained(config, model) * (own + moments)
        return [
            Part("the frozen weights", number * bytes_of(config.model.dtype), ("model.path",)),
            Part("adapters and optimizer state", state, ("model.lora_rank",)),
        ]
    return [Part("weights, optimizer state and reference", number * (own + moments + reference), ("model.path",))]


def _num_trained(config: Any, model: ModelConfig) -> float:
    """Of each device, the parameters that have a gradient."""
    adapters = LoraOptions.from_config(config.model)
    if adapters is None:
        return _num_params(config, model)
    return adapters.num_params(model) / _split("fsdp", "tensor")


def _serving(config: Any, model: ModelConfig) -> list[Part]:
    """The copy of the weights that the sampler reads, where there is one for certain: adapters are merged in it."""
    if not config.model.lora_rank:
        return []
    num_bytes = model.num_params * bytes_of(config.model.dtype) / _split("tensor")
    return [Part("the merged weights that are sampled from", num_bytes, ("model.path",))]


def _sampler(
    config: Any, model: ModelConfig, tree: TreeOptions, questions: int, *, samples: bool = False
) -> list[Part]:
    """questions: the fewest of a call. samples: whether eval.samples is the number of responses."""
    options = dataclasses.replace(SamplerOptions.from_config(config), questions=questions)
    capacity = Capacity.of(options, tree, parallel.num_row_shards())
    longest = ("sampling.max_new_tokens", "data.max_prompt_tokens")
    in_flight = "sampling.questions_in_flight" if config.sampling.questions_in_flight else "sampling.slots"
    group = ("eval.samples",) if samples else ("tree.initial", "tree.rounds", "tree.top_k", "tree.branch")
    group = group if samples or not tree.extra_rounds else (*group, "tree.extra_rounds")
    if not samples:
        group = (*group, "train.questions_per_step")
    pages = ("sampling.pages",) if config.sampling.pages else (in_flight, *group, *longest)
    # Where the number of pages is not given, there are as many as there is room for (`ibtpo.sizing`).
    num_pages = capacity.num_pages if config.sampling.pages else capacity.least
    slots = capacity.num_slots
    table = capacity.num_blocks * capacity.block_rows * capacity.pages_per_row * 4
    return [
        Part(
            "pages of keys and values",
            num_pages * page_bytes(config, model),
            (*pages, "sampling.page_size"),
        ),
        Part("the page table", table, (in_flight, *group, *longest)),
        Part("logits", slots * model.vocab_size * 4 / _split("tensor"), ("sampling.slots",)),
        Part("tokens of a chunk", slots * capacity.chunk * 13, ("sampling.slots", "sampling.chunk")),
        Part("responses standing by", STANDBY * slots * 32, ("sampling.slots",)),
    ]


def _update(config: Any, model: ModelConfig, plan: RunPlan) -> list[Part]:
    shards = parallel.num_row_shards()
    tokens, rows = plan.row_lengths[-1], plan.rows_per_step / shards
    of_row = ("train.row_tokens",) if config.train.row_tokens else _tree_keys(config)
    block = min(config.train.token_block, tokens)
    # Added up over the microbatches in float32 at least (`state.make_update`).
    gradients = _num_trained(config, model) * max(bytes_of(config.model.param_dtype), 4)
    hidden = rows * tokens * model.embed_dim * bytes_of(config.model.dtype) * model.num_layers / _split("tensor")
    return [
        Part("gradients", gradients, ("model.lora_rank",) if config.model.lora_rank else ("model.path",)),
        Part(
            "logits of a microbatch",
            rows * block * model.vocab_size * 4 / _split("tensor"),
            ("train.token_block", "train.rows_per_step"),
        ),
        Part("activations of a microbatch", hidden, ("train.rows_per_step", *of_row)),
        Part("rows of a step", _rows(plan) / shards, ("train.questions_per_step", "train.rows_per_step", *of_row)),
    ]


def _rows(plan: RunPlan) -> float:
    return plan.num_rows * plan.row_lengths[-1] * _ROW_ARRAYS * 4


def _tree_keys(config: Any) -> tuple[str, ...]:
    keys = ("tree.initial", "tree.rounds", "tree.top_k", "tree.branch", "sampling.max_new_tokens")
    return (*keys, "tree.extra_rounds") if config.tree.extra_rounds else keys


def _trees(config: Any, plan: RunPlan) -> list[Part]:
    """A step's trees on the host, each of the fewest nodes: the question, and one for each response."""
    group = most_responses(TreeOptions.from_config(config))
    paths = plan.num_trees * group * (group + 1)
    shape = [key for key in _tree_keys(config) if key.startswith("tree.")]
    return [
        Part("rows of a step", _rows(plan), ("train.questions_per_step", "train.rows_per_step", *_tree_keys(config))),
        Part("paths of a step's trees", paths, ("train.questions_per_step", *shape)),
    ]


def device_bytes() -> float | None:
    """Memory of one device; None where the platform does not say."""
    found = jax.local_devices()[0].memory_stats() or {}
    return found.get("bytes_limit")


def host_bytes() -> float | None:
    """Of this machine, or what its container may use; None where the system does not say."""
    try:
        limits = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return None
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(float(pathlib.Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)
