"""Export: a model directory that transformers reads, whole or not at all."""

import itertools
import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from ibtpo import parallel
from ibtpo.errors import UserError
from ibtpo.models.decoder import Decoder
from ibtpo.models.hf import swap
from ibtpo.models.hf.card import CARD, About, card, may_replace
from ibtpo.models.hf.files import ADAPTER, CONFIG, INDEX, WEIGHTS, read_json
from ibtpo.models.hf.layout import tensors, tensors_of

_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
_GENERATION = "generation_config.json"  # chat models list their stop tokens there, and nowhere else
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_CHAT_TEMPLATES = "additional_chat_templates"  # a folder of those that have a name
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    decoder: Decoder,
    path: str | pathlib.Path,
    *,
    tokenizer_from: str | pathlib.Path | None,
    token_ids: Mapping[str, int] | None = None,
    facts: Mapping[str, str] | About | None = None,
    max_file_bytes: int = 5_000_000_000,
) -> None:
    """Writes a model directory that `load` and transformers read; tensors keep their dtype.

    With tied embeddings no lm_head is written. When parameters are sharded over several processes,
    all must call this; the first one writes, and an error there is raised on all.

    A model that is there already stays whole until the new one is, and an error (a full disk) leaves it as it was. A
    program killed at any moment leaves the old model or the new one, or for the moment of the exchange none (no
    config.json), and perhaps hidden folders, which the next export removes (see `swap`).

    Args:
      decoder: the model.
      path: created if need be; a model already there is replaced, with all of its shards and their index, its tokenizer
        too if one is given. Other files stay, a README.md of somebody else among them.
      tokenizer_from: directory whose tokenizer files, chat templates, generation_config.json, and bos, eos and pad
        token ids in config.json go with the model. None: no tokenizer.
      token_ids: further fields of config.json, as {"eos_token_id": 0}; they win over the copied ones.
      facts: further rows of the model card, README.md, as {"Base model": "Qwen/Qwen3-8B"}; or a `card.About`.
      max_file_bytes: weights above this size are spread over several files with an index.

    Raises:
      UserError: `tokenizer_from` holds no tokenizer file, or `path` is a file, or holds an adapter, which transformers
        would add to the new model.
      OSError: a file cannot be written.
      RuntimeError: another process failed.
    """
    path = pathlib.Path(path)
    source = None if tokenizer_from is None else pathlib.Path(tokenizer_from)
    params = nnx.split(decoder, nnx.Param)[1]
    sizes = _sizes(params)
    files = _files(sizes, max_file_bytes)
    writer = jax.process_index() == 0
    try:
        with parallel.together():
            if writer:
                staged = _stage(path)
                ids = {} if source is None else _copy_tokenizer(source, path, staged)
                _write_texts(decoder, path, staged, ids | dict(token_ids or {}), facts or {})
                if len(files) > 1:
                    write_json(staged / INDEX, _index(files, sizes))
        arrays = tensors(params)
        for file, names in files.items():
            contents = {name: array for name, array in itertools.islice(arrays, len(names)) if writer}
            with parallel.together():
                if writer:
                    write_tensors(staged / file, contents)
        with parallel.together():
            if writer:
                swap.swap(path, CONFIG, _stale(path, source))
    finally:
        if writer:
            swap.discard(path)


def _stage(path: pathlib.Path) -> pathlib.Path:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder to write the model to")
    if (path / ADAPTER).exists():
        raise UserError(f"{path} holds an adapter ({ADAPTER}): name another folder to write the model to")
    return swap.stage(path)


def _stale(path: pathlib.Path, tokenizer_from: pathlib.Path | None) -> list[str]:
    """Names of an earlier model's files, which would shadow the new ones."""
    stale = [file.name for pattern in _WEIGHTS for file in path.glob(pattern)] + _indexed(path)
    if tokenizer_from is not None and not _same(tokenizer_from, path):
        stale += [*_TOKENIZER_FILES, _GENERATION, _CHAT_TEMPLATES]
    return stale


def _indexed(path: pathlib.Path) -> list[str]:
    """The files of the folder that an earlier model's index names, whatever they are called."""
    try:
        places = {*read_json(path / INDEX)["weight_map"].values()}
    except (OSError, UserError, LookupError, TypeError, AttributeError):
        return []  # there is none, or no good one
    return [name for name in places if isinstance(name, str) and pathlib.PurePath(name).name == name]


def _sizes(params: nnx.State) -> dict[str, int]:
    """{tensor: its bytes}, in the order in which `tensors` yields them."""
    return {
        name: math.prod(group.shape) * param.dtype.itemsize
        for key_path, param in jax.tree.leaves_with_path(params)
        for group in [tensors_of(key_path, param)]
        for name in group.names
    }


def write_tensors(file: pathlib.Path, contents: dict[str, np.ndarray]) -> None:
    # transformers accepts no file without this mark.
    safetensors.numpy.save_file(contents, file, metadata={"format": "pt"})
    file.chmod(0o644)  # it is created for its owner's eyes only


def write_json(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


def _write_texts(
    decoder: Decoder,
    path: pathlib.Path,
    staged: pathlib.Path,
    token_ids: Mapping[str, int],
    facts: Mapping[str, str] | About,
) -> None:
    """config.json, and the model card if there is none of somebody else."""
    dtype = decoder.param_dtype.name
    write_json(staged / CONFIG, decoder.config.to_hf() | {"torch_dtype": dtype} | dict(token_ids))
    if may_replace(path / CARD):
        (staged / CARD).write_text(card(path.resolve().name, decoder.config, dtype, facts), encoding="utf-8")


def _index(files: dict[str, list[str]], sizes: dict[str, int]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    return {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }


def _files(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """{file: names of its tensors}: consecutive ones, at most `limit` bytes; a larger tensor has a file to itself."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _same(source: pathlib.Path, target: pathlib.Path) -> bool:
    return source.resolve() == target.resolve()


def _copy_tokenizer(source: pathlib.Path, target: pathlib.Path, staged: pathlib.Path) -> dict[str, Any]:
    """Copies the tokenizer files of `source`, unless it is `target` itself, to where the new files of `target` are
    staged; returns the special token ids of the source's config.json."""
    found = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UserError(f"no tokenizer in {source}: looked for {', '.join(_TOKENIZER_FILES)}")
    generation, templates = source / _GENERATION, source / _CHAT_TEMPLATES
    if generation.is_file():
        read_json(generation)  # a damaged one is not spread
        found.append(generation)
    if not _same(source, target):
        for file in found:
            shutil.copyfile(file, staged / file.name)
        if templates.is_dir():
            (staged / _CHAT_TEMPLATES).mkdir()
            for file in templates.glob("*.jinja"):
                shutil.copyfile(file, staged / _CHAT_TEMPLATES / file.name)
    config = source / CONFIG
    fields = read_json(config) if config.is_file() else {}
    return {name: fields[name] for name in _TOKEN_IDS if fields.get(name) is not None}
