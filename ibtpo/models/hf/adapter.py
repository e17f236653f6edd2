"""Export of low-rank adapters: a folder that the PEFT library loads beside the base model."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ibtpo import parallel
from ibtpo.errors import UserError
from ibtpo.models.hf import swap
from ibtpo.models.hf.card import CARD, About, adapter_card, may_replace
from ibtpo.models.hf.exporting import write_json, write_tensors
from ibtpo.models.hf.files import ADAPTER, CONFIG
from ibtpo.models.hf.layout import LAYER_TENSORS
from ibtpo.models.lora import Adapters, LoraOptions

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_OLD_WEIGHTS = "adapter_model.bin"  # of other programs; PEFT would not read it beside the other, but people might


def save_adapter(
    adapters: Adapters,
    options: LoraOptions,
    path: str | pathlib.Path,
    *,
    base: str,
    facts: Mapping[str, str] | About | None = None,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors; tensors keep their dtype.

    As with `save`, an adapter that is there stays whole until the new one is, and all processes call this.

    Args:
      adapters: of all layers.
      options: that they were made with.
      path: created if need be. Other files stay.
      base: name or folder of the model they belong to, for adapter_config.json.
      facts: rows of the card, README.md, or all that it says (`card.About`).

    Raises:
      UserError: `path` is a file, or holds a model, to which transformers would add the adapters.
      OSError: a file cannot be written.
      RuntimeError: another process failed.
    """
    path, writer = pathlib.Path(path), jax.process_index() == 0
    contents = _tensors(adapters)
    try:
        with parallel.together():
            if writer:
                staged = _stage(path)
                write_json(staged / ADAPTER, _config(options, base))
                write_tensors(staged / ADAPTER_WEIGHTS, contents)
                if may_replace(path / CARD):
                    text = adapter_card(path.resolve().name, base, facts or {})
                    (staged / CARD).write_text(text, encoding="utf-8")
                swap.swap(path, ADAPTER, [_OLD_WEIGHTS])
    finally:
        if writer:
            swap.discard(path)


def _stage(path: pathlib.Path) -> pathlib.Path:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder to write the adapters to")
    if (path / CONFIG).exists():
        raise UserError(
            f"{path} holds a model ({CONFIG}), to which the adapters would be added: name another folder to write "
            "them to"
        )
    return swap.stage(path)


def _config(options: LoraOptions, base: str) -> dict[str, Any]:
    """The content of adapter_config.json."""
    alpha = options.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": [_module(name).rpartition(".")[2] for name in options.matrices],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _module(name: str) -> str:
    """A matrix's module within its layer, e.g. self_attn.q_proj."""
    return LAYER_TENSORS[name][0].removesuffix(".weight")


def _tensors(adapters: Adapters) -> dict[str, np.ndarray]:
    """{name: tensor} as PEFT stores them, [rank, inputs] and [outputs, rank]. All processes call this."""
    found = {}
    for name, pair in adapters.layers.items():
        a, b = parallel.to_host(pair["a"].get_value()), parallel.to_host(pair["b"].get_value())
        layers, rank = b.shape[:2]
        prefix = "base_model.model.model.layers"
        for layer in range(layers):
            module = f"{prefix}.{layer}.{_module(name)}"
            # safetensors writes the buffer as it lies in memory: the transpose must be made, not viewed.
            found[f"{module}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            found[f"{module}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(rank, -1).T)
    return found
