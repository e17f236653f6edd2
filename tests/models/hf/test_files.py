"""A file that does not fit, is damaged or is not there is named; configuration and shapes need no weights."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.hf.files import read_token_ids
from tests.models.hf.folders import read_tensors


def test_missing_weights_are_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights at .*model\.safetensors"):
        hf.load(checkpoint)


DAMAGED_JSON = {
    "empty": (b"", r"is not JSON \(it is empty\): fetch it again"),
    "blank": (b" \n", r"is not JSON \(it is empty\): fetch it again"),
    "truncated": (b'{"model_type": "qw', r"is not JSON \(Unterminated string .*\): fetch it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"Git LFS pointer: git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html></html>", r"is not JSON \(it is a web page\): fetch it again"),
    "mark": (b"\xef\xbb\xbf{}", r"begins with a byte order mark\): save it as UTF-8 without one"),
    "UTF-16": ("{}".encode("utf-16"), r"begins with a byte order mark\): save it as UTF-8 without one"),
    "bytes": (b'{"model_type": "\xff"}', r"is not JSON \(.*codec.*\): fetch it again"),
    "nested": (b"[" * 100_000, r"is not JSON \(.*\): fetch it again"),
    "list": (b"[]", r"holds no JSON object but a list: fetch it again"),
    "text": (b'"qwen3"', r"holds no JSON object but a text: fetch it again"),
    "null": (b"null", r"holds no JSON object but null: fetch it again"),
    "number": (b"3", r"holds no JSON object but a number: fetch it again"),
}


def refusal(folder, read=hf.load) -> str:
    with pytest.raises(UserError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("damage", DAMAGED_JSON)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_is_named(checkpoint, name, damage):
    data, message = DAMAGED_JSON[damage]
    (checkpoint / name).write_bytes(data)
    text = refusal(checkpoint)
    assert text.startswith(str(checkpoint / name)) and re.search(message, text)


def test_an_unsupported_configuration_names_its_folder(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | dict(head_dim=None)))
    assert refusal(checkpoint).startswith(f"{checkpoint}: config.json: head_dim = None is not supported")


def test_a_path_that_is_a_file_is_named(checkpoint):
    for name in ("config.json", "model.safetensors"):
        assert f"{checkpoint / name} is a file: name the folder" in refusal(checkpoint / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"no weights .*: pytorch_model\.bin is of another format, .*convert"),
        ("consolidated.00.pth", r"no weights .*: consolidated\.00\.pth is of another format, .*convert"),
        ("model-00001-of-00002.safetensors", r"00001-of-00002\.safetensors is there, so fetch model\.safetens.*index"),
    ],
)
def test_weights_of_another_kind_are_named(checkpoint, name, message):
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    assert re.search(message, refusal(checkpoint))


def test_an_adapter_beside_the_model_is_refused(checkpoint):
    (checkpoint / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json), which is not computed: merge it" in refusal(checkpoint)


# -------------------------------------------------------------------------------------------- which file holds a tensor

INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(checkpoint, tmp_path):
    """A folder with two shards and their index, a function that writes the index with changes, and the tensors."""
    tensors = read_tensors(checkpoint)
    folder, names = tmp_path / "shards", sorted(tensors)
    folder.mkdir()
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    parts = {f"model-{i + 1:05d}-of-00002.safetensors": names[i::2] for i in range(2)}

    def write(extra: dict[str, list[str]], changes: dict) -> None:
        """extra: tensors that a shard holds beside its own; changes: of the index's weight_map, None: not there."""
        for file, own in parts.items():
            held = {name: tensors[name] for name in [*own, *extra.get(file, [])]}
            safetensors.numpy.save_file(held, folder / file, metadata={"format": "pt"})
        places = {name: file for file, own in parts.items() for name in own} | changes
        places = {name: place for name, place in places.items() if place is not None}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    write({}, {})
    return folder, write, parts


def test_shards_are_read_as_the_index_says(shards):
    folder, _, _ = shards
    hf.load(folder)
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"no part of the model")
    hf.load(folder)  # the index does not name it


def test_one_file_and_an_index_are_refused(shards, checkpoint):
    folder, _, _ = shards
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    text = refusal(folder)
    assert "holds two models" in text and f"delete model.safetensors, or {INDEX} and its shards" in text


def test_an_index_of_one_file_is_an_index(checkpoint):
    places = dict.fromkeys(read_tensors(checkpoint), "model.safetensors")
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": places}))
    hf.load(checkpoint)


def test_index_and_shards_must_agree(shards):
    folder, write, ((first, [name, *_]), (second, [other, *_])) = *shards[:2], shards[2].items()
    write({second: [name]}, {})
    assert f"{name} is in {folder / first} and in {folder / second}: fetch" in refusal(folder)
    write({}, {name: second})
    assert f"{name} is in {folder / first}, but {INDEX} says in {second}: fetch" in refusal(folder)
    write({}, {name: None})
    assert f"{name} is in {folder / first}, but {INDEX} says in no file: fetch" in refusal(folder)
    write({}, {"model.extra": first})
    assert f"{folder / first} has no model.extra, which {INDEX} says it has: fetch" in refusal(folder)
    write({}, {other: "model-00009-of-00002.safetensors"})
    assert f"no weights at {folder}/model-00009-of-00002.safetensors, which {INDEX} names: fetch it" in refusal(folder)


@pytest.mark.parametrize("place", [7, None, "", "../a.safetensors", "/a.safetensors", ["a"], "sub/a.safetensors"])
def test_an_index_names_files_of_its_folder(checkpoint, place):
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": place}}))
    assert f"model.norm.weight is in {place!r}, which is no file name: fetch the index again" in refusal(checkpoint)


@pytest.mark.parametrize("content", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_weight_map_is_named(checkpoint, content):
    (checkpoint / INDEX).write_text(json.dumps(content))
    assert f"{checkpoint / INDEX} has no weight_map" in refusal(checkpoint)


# -------------------------------------------------------------------------------------------------- what a file holds


def _rewrite(path, change):
    tensors = read_tensors(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_all_misfits_are_reported_at_once(checkpoint):
    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.self_attn.q_proj.weight"] = np.zeros((32, 64), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)

    _rewrite(checkpoint, spoil)
    with pytest.raises(ValueError, match=r"do not fit config.json") as error:
        hf.load(checkpoint)
    assert "\n" not in str(error.value)
    lines = str(error.value).removeprefix("the weights do not fit config.json: ").split("; ")
    missing, misshaped, extra = lines
    assert "model.layers.1.mlp.up_proj.weight: expected shape (48, 32), found no such tensor" in missing
    assert "q_proj.weight: expected shape (64, 32), found (32, 64)" in misshaped
    assert "model.layers.3.mlp.up_proj.weight: expected no such tensor, found shape (48, 32)" in extra
    assert all(str(checkpoint / "model.safetensors") in line for line in lines)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-7], r"model\.safetensors is damaged: \d+ bytes of tensors, its header promises \d+"),
        (lambda data: data[:100], r"or cut off \(of a header of \d+ bytes there are 92\): fetch it again"),
        (lambda data: data[:5], r"or cut off \(of a header of \d+ bytes there are 0\): fetch it again"),
        (lambda data: b"", r"model\.safetensors is no safetensors file \(it is empty\): fetch it again"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", r"\(it is a Git LFS pointer: .*\): fetch it"),
        (lambda data: b"<!DOCTYPE html>\n", r"is no safetensors file \(it is a web page\): fetch it again"),
        (lambda data: bytes([60, *[0] * 7]) + b"x" * 60, r"is no safetensors file \(its header: .*\): fetch it again"),
        (lambda data: bytes([2, *[0] * 7]) + b"[]", r"its header is no JSON object\): fetch it again"),
        (lambda data: data.replace(b'"F32"', b'"I32"', 1), r"expected one of F32, BF16, F16, found I32 in .*: fetch"),
        (lambda data: data.replace(b'"F32"', b'"F8" ', 1), r"expected one of F32, BF16, F16, found F8 in .*: fetch"),
    ],
    ids=["truncated", "header", "length", "empty", "pointer", "page", "text", "list", "dtype", "F8"],
)
def test_damaged_files_are_named(checkpoint, damage, message):
    file = checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert re.search(message, refusal(checkpoint))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data_offsets=None), "data_offsets None"),
        (dict(data_offsets=[0]), r"data_offsets \[0\]"),
        (dict(data_offsets=["0", "4096"]), r"data_offsets \['0', '4096'\]"),
        (dict(data_offsets=[4096, 0]), r"data_offsets \[4096, 0\]"),
        (dict(data_offsets=[-4, 4]), r"data_offsets \[-4, 4\]"),
        (dict(data_offsets=[0, 64]), r"64 bytes, but shape \(32,\) of F32"),
        (dict(data_offsets=[128, 256]), "a tensor begins at byte 128, but the one before ends at 0"),
        (dict(dtype=""), "dtype ''"),
        (dict(dtype=None), "dtype None"),
        (dict(dtype=32), "dtype 32"),
        (dict(shape=None), "shape None"),
        (dict(shape=[-32]), r"shape \[-32\]"),
        (dict(shape=[32.0]), r"shape \[32\.0\]"),
        ([], r"no entry but \[\]"),
    ],
)
def test_a_header_that_does_not_describe_its_tensors_is_named(checkpoint, changes, message):
    """One tensor of the model is alone in a file whose header says something else."""
    entry = dict(dtype="F32", shape=[32], data_offsets=[0, 128])
    if isinstance(changes, dict):
        entry = {name: value for name, value in (entry | changes).items() if value is not None}
    else:
        entry = changes
    header = json.dumps({"__metadata__": {"format": "pt"}, "model.norm.weight": entry}).encode()
    file = checkpoint / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    assert re.search(rf"{file} is damaged: in its header, .*{message}: fetch it again", refusal(checkpoint))


def test_only_the_first_misfits_are_told(checkpoint):
    _rewrite(checkpoint, lambda tensors: tensors.clear() or tensors.update(other=np.zeros(1, np.float32)))
    assert re.search(r"do not fit config\.json: .*; and \d\d more: fetch", refusal(checkpoint))


@pytest.mark.parametrize("value", ["7", 1.0, [[7]], [1, "2"], {"id": 1}, True, -1, [None]])
def test_token_ids_are_whole_numbers(tmp_path, value):
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": value}))
    text = refusal(file, lambda file: read_token_ids(file, "eos_token_id"))
    assert text.startswith(f"{file}: eos_token_id = {json.dumps(value)} is no token id")


def test_token_ids_may_be_one_several_or_none(tmp_path):
    file = tmp_path / "config.json"
    assert read_token_ids(file, "eos_token_id") == []
    for value, ids in [(None, []), (0, [0]), ([], []), ([7, 3], [7, 3])]:
        file.write_text(json.dumps({"eos_token_id": value}))
        assert read_token_ids(file, "eos_token_id") == ids
    assert read_token_ids(file, "bos_token_id") == []


def test_configuration_and_shapes_without_weights(checkpoint):
    config = hf.read_config(checkpoint)
    assert config == hf.load(checkpoint).config
    _, params = hf.abstract(config, param_dtype=jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    assert hf.tensor_shapes(params) == {name: x.shape for name, x in read_tensors(checkpoint).items()}
    with pytest.raises(UserError, match=r"no model in Hugging Face format: it has no config\.json"):
        hf.read_config(checkpoint / "nowhere")


def test_tied_head_may_be_repeated_but_not_contradicted(checkpoint):
    table = read_tensors(checkpoint)["model.embed_tokens.weight"]
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table.copy()}))
    hf.load(checkpoint)
    _rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: expected no such tensor"):
        hf.load(checkpoint)
