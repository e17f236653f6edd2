"""The sampler's sizes that follow from the memory there is: the pages of the key-value cache (sampling.pages=0)."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ibtpo import memory, parallel
from ibtpo.errors import UserError
from ibtpo.models.config import ModelConfig
from ibtpo.sampling.capacity import Capacity
from ibtpo.sampling.interface import SamplerOptions
from ibtpo.sampling.strategies import TreeOptions

_HOST_SHARE = 0.5  # of a host's memory that its devices have together, where they are its CPU
_LOGITS = 4  # float32 arrays [slots, vocabulary] that a decode step has at once; compiled programs had up to 3


def size_sampler(
    config: Any,
    model: ModelConfig,
    tree: TreeOptions,
    *,
    questions: int = 0,
    training: bool = False,
    limit: float | None = None,
) -> SamplerOptions:
    """The sampler's options with the number of its pages chosen, where sampling.pages is 0.

    As many as the questions in flight can ever need; or as sampling.memory_share of each device holds, less what else
    is there while responses are sampled: the weights and their serving copy, on a GPU also layer by layer, in training
    the optimizer's state and the reference, the page table, and the logits of a decode step.

    Args:
      questions: the most of a call; 0: any number.
      training: whether the optimizer's state is there too.
      limit: bytes of each device; None: what it says it has, or, of a CPU, half of the host's together. Where nothing
        is known the questions in flight decide alone.

    Raises:
      UserError: the room is too small for one question; names the keys to change.
    """
    options = dataclasses.replace(SamplerOptions.from_config(config), questions=questions)
    if options.pages:
        return options
    limit = limit or device_bytes()
    shards = parallel.num_row_shards()
    capacity, page = Capacity.of(options, tree, shards), memory.page_bytes(config, model)
    if limit is None:
        return options
    room = max(0, int((config.sampling.memory_share * limit - _beside(config, model, capacity, training)) / page))
    if room >= capacity.num_pages:
        return options
    if room < capacity.least:
        share = f"sampling.memory_share={config.sampling.memory_share} of {memory.gib(limit)}"
        raise UserError(
            f"sampling.pages=0: a question's {capacity.group_size} responses need up to {capacity.least} pages "
            f"(sampling.page_size={options.page_size}), {memory.gib(capacity.least * page)}, and {share} leaves room "
            f"for {room}: lower sampling.max_new_tokens, sampling.page_size or sampling.slots, raise mesh.fsdp or "
            "mesh.tensor, or set sampling.pages"
        )
    return dataclasses.replace(options, pages=room * shards)


def describe(options: SamplerOptions, capacity: Capacity, config: Any, model: ModelConfig) -> str:
    """One line that says what was chosen."""
    pages = capacity.total_pages
    return (
        f"sampling with {options.slots} slots, {capacity.num_blocks * capacity.num_shards} questions in flight, "
        f"{pages:,} pages of {options.page_size} tokens "
        f"({memory.gib(capacity.num_pages * memory.page_bytes(config, model))} on each device)"
    )


def device_bytes() -> float | None:
    """Memory of each device, None where nobody says; of several hosts' CPUs the least, since all make the same pool."""
    if parallel.platform() != "cpu":
        return memory.device_bytes()
    found = memory.host_bytes()
    limit = 0.0 if found is None else _HOST_SHARE * found / jax.local_device_count()
    if jax.process_count() > 1:
        limit = float(np.min(multihost_utils.process_allgather(np.float32(limit))))
    return limit or None


def _beside(config: Any, model: ModelConfig, capacity: Capacity, training: bool) -> float:
    """Bytes on each device besides the pages while responses are sampled."""
    tensor = parallel.mesh_axis_size("tensor")
    own_copy = parallel.current_mesh() is not None or config.model.param_dtype != config.model.dtype
    own_copy = own_copy or config.model.lora_rank > 0  # adapters are merged in it
    serving = own_copy * model.num_params / tensor * memory.bytes_of(config.model.dtype)
    if parallel.platform() == "gpu":  # reads its layers from arrays of their own (`Decoder.unstack`)
        layers = model.num_params - model.vocab_size * model.embed_dim * (2 - model.tie_embeddings)
        serving += layers / tensor * memory.bytes_of(config.model.dtype)
    table = capacity.num_blocks * capacity.block_rows * capacity.pages_per_row * 4
    logits = _LOGITS * capacity.num_slots * model.vocab_size * 4 / tensor
    return memory.state_bytes(config, model, training=training) + serving + table + logits
