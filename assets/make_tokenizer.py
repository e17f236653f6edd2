r"""Builds the tokenizers of the tiny base models. From the repository root:

    python assets/make_tokenizer.py --output assets/qwen3-tiny
    python assets/make_tokenizer.py --output assets/qwen3-navigation --bytes

The first is a byte-level BPE: the 256 bytes, the pieces below, and the end-of-text token. Every string is
encodable and round-trips, each digit is one token, and each of the pieces is one token in the
task's text. The merges are written down rather than trained, so the files never change.

The second is the bytes and the end-of-text token alone: every text has exactly one sequence of tokens, so that the
probability of a text is that of one sequence.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

# Frequent pieces of the chained-arithmetic task and of plain mathematical prose.
PIECES = (
    "\n\n",
    " Start with ",
    " Add ",
    " Subtract ",
    " Multiply by ",
    "The answer is ",
    "\\boxed{",
    "}.",
    "Question:",
    "\nAnswer:",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n"
    "{% if message['role'] == 'assistant' %}" + END_OF_TEXT + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)


def build_tokenizer(pieces: tuple[str, ...] = PIECES) -> PreTrainedTokenizerFast:
    """Vocabulary: 256 bytes in code-point order, then for each piece its growing prefixes (the
    merges that build it byte by byte), then the end-of-text token, which also pads."""
    # With `use_regex=False` pieces may span words; no piece holds a digit, so digits stay single.
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for piece in pieces:
        characters = to_symbols.pre_tokenize_str(piece)[0][0]
        for length in range(1, len(characters)):
            if characters[: length + 1] not in symbols:
                merges.append((characters[:length], characters[length]))
                symbols.append(characters[: length + 1])
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges))
    backend.pre_tokenizer = to_symbols
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("assets/qwen3-tiny"))
    parser.add_argument("--bytes", action="store_true", help="no pieces: a token for each byte")
    arguments = parser.parse_args()
    output = arguments.output
    tokenizer = build_tokenizer(() if arguments.bytes else PIECES)
    tokenizer.save_pretrained(output)
    # transformers 5 writes a class name of its own; the older one is read by 4 and 5 alike.
    path = output / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")
    print(f"wrote {len(tokenizer)} tokens to {output}")


if __name__ == "__main__":
    main()
