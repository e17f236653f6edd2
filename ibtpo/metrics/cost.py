"""What a step cost the machine: tokens a second, the share of the devices' peak, and their memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ibtpo.compiler.chips import peak_flops
from ibtpo.compiler.model import own_flops
from ibtpo.models.config import ModelConfig
from ibtpo.models.lora import LoraOptions
from ibtpo.tree import Array, Tree


@dataclass(frozen=True)
class StepCost:
    """The machine's side of a step's metrics.

    model: of the policy. epochs: times that a step's trees are trained on. peak: FLOP/s of all devices together; None:
    not known, or the computation is of another type than the one that it is published for. adapters: None where all
    parameters are trained.
    """

    model: ModelConfig
    epochs: int
    peak: float | None
    adapters: LoraOptions | None = None

    @classmethod
    def from_config(cls, config: Any, model: ModelConfig) -> "StepCost":
        """On the devices of this program."""
        one = peak_flops(jax.devices()[0].device_kind) if config.model.dtype == "bfloat16" else None
        peak = None if one is None else one * jax.device_count()
        return cls(model, config.train.epochs, peak, LoraOptions.from_config(config.model))

    def metrics(
        self, tree: Tree, trained: Array, generated_tokens: int, seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """{name: value} of a step.

        "time/mfu" is `own_flops` (6 N for each token, with adapters 4 N and 6 for each of their parameters, and the
        attention between tokens that see each other, nothing computed twice) over what the devices could have done in
        the update's seconds: all that is beside forward and backward pass counts as lost.

        Args:
          tree: the trees, [Q, ...], on the host.
          trained: bool [Q], which of them were trained on.
          generated_tokens: in this step.
          seconds: "sample_s" and "update_s" of the step.
        """
        tokens, pairs = self.epochs * work(tree, trained)
        update = max(seconds["update_s"], 1e-9)
        found = {
            "time/sampled_tokens_per_s": generated_tokens / max(seconds["sample_s"], 1e-9),
            "time/trained_tokens_per_s": tokens / update,
        }
        if self.peak is not None:
            found["time/mfu"] = own_flops(self.model, tokens, pairs, self.adapters) / (update * self.peak)
        return found | device_memory()


def work(tree: Tree, trained: Array) -> np.ndarray:
    """[tokens, pairs] of one pass over the trees of `trained`, bool [Q]: unique tokens, prompts included, and (query,
    key) that see each other, j <= i < subtree_end[j]."""
    real = (np.asarray(tree.step) >= 0) & np.asarray(trained)[:, None]
    ends = np.asarray(tree.subtree_end, np.int64)
    return np.array([real.sum(), ((ends - np.arange(ends.shape[1])) * real).sum()], np.int64)


def device_memory() -> dict[str, float]:
    """{"memory/peak_bytes", "memory/peak_share"}: the most that has been in use on one of this process's devices since
    it started, and as a share of what JAX may use there; {} where the backend does not say (a CPU)."""
    found: dict[str, float] = {}
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "peak_bytes_in_use" not in stats:
            continue
        peak, limit = float(stats["peak_bytes_in_use"]), float(stats.get("bytes_limit", 0))
        found["memory/peak_bytes"] = max(peak, found.get("memory/peak_bytes", 0.0))
        if limit:
            found["memory/peak_share"] = max(peak / limit, found.get("memory/peak_share", 0.0))
    return found
