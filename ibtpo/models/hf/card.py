"""The model card of an export: a README.md that says what the folder holds and how it is used."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
{links}---
{mark}

# {title}

A language model written by ibtpo, a JAX implementation of the reinforcement learning method IB-TPO
([arXiv 2605.28109](https://arxiv.org/abs/2605.28109)).

| | |
|---|---|
{rows}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{title}"
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```
{config}"""

_ADAPTER_BODY = """\
---
library_name: peft
tags:
- ibtpo
- lora
{links}---
{mark}

# {title}

Low-rank adapters written by ibtpo, a JAX implementation of the reinforcement learning method IB-TPO
([arXiv 2605.28109](https://arxiv.org/abs/2605.28109)), for the PEFT library.

| | |
|---|---|
{rows}

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_path}"), "{title}")
```
{config}"""
_CONFIG = """
## Configuration

<details><summary>What it was trained with, of <code>configs/base.py</code></summary>

```json
{text}
```

</details>
"""


@dataclass(frozen=True)
class About:
    """What a card says beside the model itself. facts: rows of name and value. title: "" for the folder's name. base,
    dataset: ids on the hub, for its links; "": none. config: of the run, as JSON; "": none."""

    facts: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    base: str = ""
    dataset: str = ""
    config: str = ""

    @classmethod
    def of(cls, facts: "Mapping[str, str] | About | None") -> "About":
        """Rows alone: a "Base model" of `models.presets` among them is linked."""
        if isinstance(facts, About):
            return facts
        base = (facts or {}).get("Base model", "")
        return cls(facts or {}, base=base if base in PRESETS else "")

    def links(self) -> str:
        """Lines of the hub's metadata."""
        base = f"base_model: {self.base}\n" if self.base else ""
        return base + (f"datasets:\n- {self.dataset}\n" if self.dataset else "")

    def shown_config(self) -> str:
        """The section of the configuration."""
        return _CONFIG.format(text=self.config.replace("```", "` ` `")) if self.config else ""


def adapter_card(title: str, base: str, facts: Mapping[str, str] | About) -> str:
    """The text of a card of adapters. base: name or folder of the model they belong to."""
    about = About.of(facts)
    if not about.base and base in PRESETS:
        about = replace(about, base=base)
    return _ADAPTER_BODY.format(
        mark=_MARK,
        title=about.title or title,
        links=about.links(),
        base_path=base,
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in about.facts.items()),
        config=about.shown_config(),
    )


def card(title: str, config: ModelConfig, dtype: str, facts: Mapping[str, str] | About) -> str:
    """The text of a card: architecture, size and context, then rows of name and value (`About.of`)."""
    c = config
    rows = {
        "Architecture": f"{ARCHITECTURES[c.family]}: {c.num_layers} layers, width {c.embed_dim}, MLP {c.mlp_dim}, "
        f"{c.num_heads} heads of {c.head_dim}, {c.num_kv_heads} of keys and values",
        "Parameters": f"{c.num_params:,}, {dtype}",
        "Context": f"{c.max_positions:,} tokens",
        "Vocabulary": f"{c.vocab_size:,}",
    }
    about = About.of(facts)
    return _BODY.format(
        mark=_MARK,
        title=about.title or title,
        links=about.links(),
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in (rows | dict(about.facts)).items()),
        config=about.shown_config(),
    )


def may_replace(file: pathlib.Path) -> bool:
    """Whether there is no card at `file`, or one that `card` made: a text of somebody else stays."""
    return not file.exists() or (file.is_file() and _MARK in file.read_text(encoding="utf-8", errors="replace"))


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
