"""The model card of an export: a README.md that says what the folder holds and how it is used."""

import pathlib
from collections.abc import Mapping

from ibtpo.models.config import ModelConfig
from ibtpo.models.config_json import ARCHITECTURES
from ibtpo.models.presets import PRESETS

CARD = "README.md"
_MARK = "<!-- Written by ibtpo, and replaced by its next export to this folder unless this line is removed. -->"
_BODY = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- ibtpo
{base}---
{mark}

# {title}

A language model written by ibtpo, a JAX implementation of the reinforcement learning method IB-TPO
([arXiv 2605.28109](https://arxiv.org/abs/2605.28109)).

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{title}"
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```
"""

_ADAPTER_BODY = """\
---
library_name: peft
{base}tags:
- ibtpo
- lora
---
{mark}

# {title}

Low-rank adapters written by ibtpo, a JAX implementation of the reinforcement learning method IB-TPO
([arXiv 2605.28109](https://arxiv.org/abs/2605.28109)), for the PEFT library.

| | |
|---|---|
{rows}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_path}"), "{title}")
```
"""


def adapter_card(title: str, base: str, facts: Mapping[str, str]) -> str:
    """The text of a card of adapters. base: name or folder of the model they belong to."""
    return _ADAPTER_BODY.format(
        mark=_MARK,
        title=title,
        base=f"base_model: {base}\n" if base in PRESETS else "",
        base_path=base,
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
    )


def card(title: str, config: ModelConfig, dtype: str, facts: Mapping[str, str]) -> str:
    """The text of a card: architecture, size and context, then `facts`, rows of name and value. A "Base model" of
    `models.presets` is linked as the hub's metadata do."""
    c = config
    rows = {
        "Architecture": f"{ARCHITECTURES[c.family]}: {c.num_layers} layers, width {c.embed_dim}, MLP {c.mlp_dim}, "
        f"{c.num_heads} heads of {c.head_dim}, {c.num_kv_heads} of keys and values",
        "Parameters": f"{c.num_params:,}, {dtype}",
        "Context": f"{c.max_positions:,} tokens",
        "Vocabulary": f"{c.vocab_size:,}",
    } | dict(facts)
    base = facts.get("Base model")
    return _BODY.format(
        mark=_MARK,
        title=title,
        base=f"base_model: {base}\n" if base in PRESETS else "",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
    )


def may_replace(file: pathlib.Path) -> bool:
    """Whether there is no card at `file`, or one that `card` made: a text of somebody else stays."""
    return not file.exists() or (file.is_file() and _MARK in file.read_text(encoding="utf-8", errors="replace"))


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
