"""Tokenizers of Hugging Face folders: the bytes behind each token, and its special tokens."""

import contextlib
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ibtpo.data.prompts import first_token
from ibtpo.errors import UserError, one_line
from ibtpo.json_files import read_object
from ibtpo.messages import hushed_import

with hushed_import():
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_SETTINGS = "tokenizer_config.json"
_OBJECTS = (*_TOKENIZER_FILES, _SETTINGS, "special_tokens_map.json", "added_tokens.json", "chat_template.json")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what transformers remarks on a config.json: it is checked here, in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer of a local folder in the Hugging Face layout; no network is used.

    It puts a beginning-of-sequence token before a text if tokenizer.json does or tokenizer_config.json says so
    (add_bos_token, which transformers 5 leaves unread where there is a tokenizer.json).

    Raises:
      UserError: `path` is no folder, or holds no tokenizer files; a file is damaged; the tokenizer has no fast
        (tokenizers-library) implementation; its settings ask for a token that they do not name.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"no tokenizer folder {str(path)!r}: model.path must be a local folder in the Hugging Face layout"
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        if found := [name for name in _SENTENCEPIECE if (folder / name).is_file()]:
            raise UserError(
                f"folder {str(path)!r} has a SentencePiece tokenizer ({found[0]}); steps are cut on bytes, which needs "
                "a byte-level BPE tokenizer (as of Qwen or Llama 3): take another model"
            )
        raise UserError(
            f"folder {str(path)!r} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}): copy the tokenizer files of "
            "the model there"
        )
    files = {name: read_object(folder / name) for name in _OBJECTS if (folder / name).is_file()}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer("a")  # some settings fail when they are used
    except Exception as error:  # of any kind, for the files are the user's
        raise UserError(f"the tokenizer in {str(path)!r} cannot be read ({one_line(error)}): fetch it again") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{type(tokenizer).__name__} in {str(path)!r} is not a fast tokenizer: save tokenizer.json")
    if files.get(_SETTINGS, {}).get("add_bos_token"):
        if tokenizer.bos_token_id is None:
            raise UserError(
                f"{folder / _SETTINGS} asks for a beginning-of-sequence token (add_bos_token), but names no bos_token: "
                "name it, or set add_bos_token to false"
            )
        if first_token(tokenizer) is None:
            cast(Any, tokenizer).add_bos_token = True  # its type has no setter
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Refuses a tokenizer that gives tokens the model has no embedding of (a larger model vocabulary is padding).

    Raises:
      UserError: a special token, or any other, has an id of `vocab_size` or more; the message names it.
    """
    ids = tokenizer.get_vocab()
    special = {token: ids[token] for token in tokenizer.all_special_tokens if token in ids}
    for kind, tokens in (("the special token", special), ("the token", ids)):
        token = max(tokens, key=lambda name: tokens[name], default=None)
        if token is not None and tokens[token] >= vocab_size:
            raise UserError(
                f"{tokenizer.name_or_path}: {kind} {token!r} has id {tokens[token]}, but the model's vocab_size is "
                f"{vocab_size}: tokenizer and model do not belong together"
            )


def find_special(tokenizer: PreTrainedTokenizerFast, names: str) -> list[int]:
    """The ids of special or added tokens given by name, separated by commas ("<|im_end|>,<|endoftext|>").

    Raises:
      UserError: the tokenizer has no special or added token of a name; the message gives the nearest that it has.
    """
    added = tokenizer.get_added_vocab()
    special = {name: cast(int, tokenizer.convert_tokens_to_ids(name)) for name in tokenizer.all_special_tokens} | added
    ids = []
    for name in (part.strip() for part in names.split(",")):
        if name not in special:
            nearest = difflib.get_close_matches(name, special, n=3, cutoff=0.4) or sorted(special)[:3]
            where = f"the tokenizer {tokenizer.name_or_path!r}"
            raise UserError(f"{name!r} is no special token of {where}; nearest: {', '.join(nearest)}")
        ids.append(special[name])
    return ids


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes]:
    """The UTF-8 bytes that each token id stands for; b"" for special tokens and unused ids.

    The bytes of the tokens of a text, joined, are the bytes of the text (up to a normaliser of the
    tokenizer, such as NFC). This holds only for byte-level BPE (GPT-2, Qwen, Llama 3, ...), whose
    vocabulary spells each byte as one printable character.

    Raises:
      UserError: the tokenizer is of another kind (for example SentencePiece), naming it; or a token is spelled with a
        character that stands for no byte.
    """
    specification = json.loads(tokenizer.backend_tokenizer.to_str())
    model = (specification["model"] or {}).get("type")
    decoder = specification["decoder"] or {}
    decoders = [part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part]
    if model != "BPE" or "ByteLevel" not in decoders:
        raise UserError(
            f"{type(tokenizer).__name__} {tokenizer.name_or_path!r} has a {model} model with decoders {decoders}; "
            "steps are cut on bytes, which needs a byte-level BPE tokenizer (as of Qwen or Llama 3)"
        )
    added = tokenizer.added_tokens_decoder
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    vocabulary = tokenizer.get_vocab()
    table = [b""] * (max([*vocabulary.values(), *added]) + 1)
    for symbols, token in vocabulary.items():
        if token in added:
            continue
        if not byte_of.keys() >= set(symbols):
            raise UserError(
                f"{tokenizer.name_or_path}: the token {symbols!r} ({token}) is not spelled in bytes; steps are cut on "
                "bytes, which needs a byte-level BPE tokenizer (as of Qwen or Llama 3)"
            )
        table[token] = bytes(byte_of[symbol] for symbol in symbols)
    for token, content in added.items():
        # Added tokens are spelled as themselves, not in the alphabet of bytes.
        special = content.special or token in tokenizer.all_special_ids
        table[token] = b"" if special else content.content.encode()
    return table


def _byte_characters() -> list[str]:
    """The character that spells each byte 0..255 in byte-level BPE (GPT-2): printable Latin-1
    characters stand for themselves, the others are numbered from U+0100 in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]
