"""Export: transformers reads the result, and a model is whole or not there, whenever the program stops."""

import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from ibtpo.errors import UserError
from ibtpo.models import hf
from tests.models.hf.folders import assert_same_tensors, read_tensors
from tests.models.reference import CASES, make_reference, random_tokens, torch_logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "tied"), CASES)
def test_round_trip_is_bit_identical_and_transformers_reads_it(family, tied, dtype, tmp_path):
    model = make_reference(family, tied).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "in")
    decoder = hf.load(tmp_path / "in", param_dtype=jnp.dtype(dtype))
    hf.save(decoder, tmp_path / "out", tokenizer_from=None)

    tensors = read_tensors(tmp_path / "out")
    assert ("lm_head.weight" in tensors) != tied
    assert {x.dtype.name for x in tensors.values()} == {dtype}
    assert_same_tensors(tensors, read_tensors(tmp_path / "in"))

    # Both through from_pretrained: `model` itself has its rotary table rounded by the cast above.
    reference, again = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")
        for name in ("in", "out")
    )
    assert type(again) is type(model) and again.dtype == model.dtype
    tokens = random_tokens((1, 30))
    np.testing.assert_array_equal(torch_logits(again.float(), tokens), torch_logits(reference.float(), tokens))


def test_many_files_equal_one(checkpoint, tmp_path):
    decoder = hf.load(checkpoint)
    hf.save(decoder, tmp_path / "parts", tokenizer_from=None, max_file_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "parts" / "model.safetensors").exists()
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert_same_tensors(read_tensors(tmp_path / "parts"), read_tensors(checkpoint))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "parts")

    again = hf.load(tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(nnx.state(decoder)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(a, b)
    # A model saved over another leaves nothing of it behind.
    hf.save(again, tmp_path / "parts", tokenizer_from=None)
    assert [file.name for file in (tmp_path / "parts").glob("model*")] == ["model.safetensors"]


def test_tokenizer_files_and_token_ids_go_with_the_model(checkpoint, tiny_tokenizer_dir, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_tokenizer_dir, source)
    (source / "config.json").write_text(json.dumps({"eos_token_id": 7, "bos_token_id": None}))
    (source / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    hf.save(hf.load(checkpoint), tmp_path / "out", tokenizer_from=source, token_ids={"pad_token_id": 9})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == 7 and config["pad_token_id"] == 9 and "bos_token_id" not in config
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


def test_a_place_without_tokenizer_and_one_that_is_a_file_are_named(decoders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tokenizer in .*empty.*tokenizer\.json"):
        hf.save(decoders[0], tmp_path / "out", tokenizer_from=tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file: name a folder"):
        hf.save(decoders[0], tmp_path / "file", tokenizer_from=None)


def test_a_used_folder_is_emptied_of_the_old_model(decoders, tiny_tokenizer_dir, tmp_path):
    """Its shards, under whatever names its index has, the index, tokenizer, templates, generation_config.json."""
    out = tmp_path / "out"
    hf.save(decoders[0], out, tokenizer_from=tiny_tokenizer_dir, max_file_bytes=20_000)
    old = next(out.glob("model-00002-*"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    index["weight_map"] = {k: "weights-2.safetensors" if v == old.name else v for k, v in index["weight_map"].items()}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    old.rename(out / "weights-2.safetensors")
    for name in ("generation_config.json", "chat_template.json", "merges.txt", "optimizer.pt"):
        (out / name).write_text("{}")
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "rag.jinja").write_text("old")
    hf.save(decoders[1], out, tokenizer_from=tiny_tokenizer_dir)
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    own = {"config.json", "model.safetensors", "README.md", "optimizer.pt"}
    assert {file.name for file in out.iterdir()} == own | tokenizer
    hf.load(out)


def test_chat_templates_with_names_go_with_the_model(decoders, tiny_tokenizer_dir, tmp_path):
    source = shutil.copytree(tiny_tokenizer_dir, tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    for _ in range(2):  # also over the folder of the first time
        hf.save(decoders[0], tmp_path / "out", tokenizer_from=source)
    template = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert template["rag"] == "{{ messages }}" and template["default"] == (source / "chat_template.jinja").read_text()


def test_the_model_card_says_what_the_folder_holds(decoders, tmp_path):
    out = tmp_path / "tiny|model"
    hf.save(decoders[0], out, tokenizer_from=None, facts={"Base model": "Qwen/Qwen3-8B", "Prompt": "a|b\nc"})
    text = (out / "README.md").read_text()
    head, rest = text.removeprefix("---\n").split("---\n", 1)
    assert "library_name: transformers" in head and "base_model: Qwen/Qwen3-8B" in head
    count = sum(x.size for x in read_tensors(out).values())
    assert "# tiny|model" in rest and f"| Parameters | {count:,}, float32 |" in rest
    assert "| Architecture | Qwen3ForCausalLM: 3 layers, width 32," in rest and "| Prompt | a\\|b c |" in rest
    hf.save(decoders[0], out, tokenizer_from=None, facts={"Base model": "mine"})
    text = (out / "README.md").read_text()  # its own card is replaced
    assert "| Base model | mine |" in text and "base_model" not in text and "| Prompt" not in text
    (out / "README.md").write_text("somebody else's")
    hf.save(decoders[0], out, tokenizer_from=None)
    assert (out / "README.md").read_text() == "somebody else's"


def test_a_folder_with_an_adapter_is_refused(decoders, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config\.json\): name another folder"):
        hf.save(decoders[0], tmp_path, tokenizer_from=None)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter_config.json"]


def test_a_damaged_generation_config_is_not_copied(decoders, tiny_tokenizer_dir, tmp_path):
    source = shutil.copytree(tiny_tokenizer_dir, tmp_path / "source")
    (source / "generation_config.json").write_text("<html>")
    with pytest.raises(UserError, match=r"generation_config\.json is not JSON \(it is a web page\)"):
        hf.save(decoders[0], tmp_path / "out", tokenizer_from=source)


# An export that is stopped: every operation on files is counted, and each one stopped once, before it or in its middle.

_OPERATIONS = [(os, "replace"), (shutil, "copyfile"), (shutil, "rmtree"), (safetensors.numpy, "save_file")]
_OPERATIONS += [(pathlib.Path, name) for name in ("write_text", "mkdir", "chmod")]


class _Killed(BaseException):
    """Ends everything, as a kill does: no operation of a handler has any effect either."""


class _Stop:
    """Stops operation number `at`: with an OSError, or, `kill`, it and all that follow. halfway: what it writes or
    removes is left in the middle."""

    def __init__(self, monkeypatch, at: int | None = None, *, kill: bool = False, halfway: bool = False):
        self.at, self.kill, self.halfway, self.count = at, kill, halfway, 0
        for owner, name in _OPERATIONS:
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name), name))

    def _counting(self, operation, name):
        def call(*args, **kwargs):
            self.count += 1
            if self.at is None or self.count < self.at or (self.count > self.at and not self.kill):
                return operation(*args, **kwargs)
            if self.count == self.at and self.halfway:
                self._half(operation, name, args, kwargs)
            if self.kill:
                raise _Killed
            if not kwargs.get("ignore_errors"):
                raise OSError(errno.ENOSPC, "No space left on device")

        return call

    def _half(self, operation, name, args, kwargs):
        if name in ("copyfile", "save_file", "write_text"):
            operation(*args, **kwargs)
            file = args[0] if name == "write_text" else args[1]
            os.truncate(file, file.stat().st_size // 2)
        elif name == "rmtree":
            for file in [*args[0].glob("*")][:1]:
                file.unlink()


def _visible(folder) -> dict[str, bytes]:
    """The files that a reader of the folder may look for."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Two models that differ in every tensor."""
    result = []
    for seed in (0, 1):
        path = tmp_path_factory.mktemp("model")
        make_reference("qwen3", tied=True, seed=seed).save_pretrained(path)
        result.append(hf.load(path))
    return result


@pytest.fixture(scope="module")
def exports(decoders, tiny_tokenizer_dir, tmp_path_factory):
    """[(export(folder), the files it leaves there)]: one file of weights, or many; each with another tokenizer."""
    sources = [tmp_path_factory.mktemp("tokenizer") for _ in range(2)]
    for source, names in zip(sources, [("special_tokens_map.json", "generation_config.json"), ("merges.txt",)]):
        for name in ("tokenizer.json", "tokenizer_config.json", *names):
            (source / name).write_text(json.dumps({"from": source.name}))

    def exporting(decoder, source, max_file_bytes):
        def export(folder):
            hf.save(decoder, folder, tokenizer_from=source, max_file_bytes=max_file_bytes)

        folder = tmp_path_factory.mktemp("export")
        export(folder)
        assert not [file for file in folder.iterdir() if file.is_dir()]
        return export, _visible(folder)

    return [exporting(decoders[0], sources[0], 10**9), exporting(decoders[1], sources[1], 40_000)]


@pytest.mark.parametrize("kill", [False, True], ids=["error", "kill"])
@pytest.mark.parametrize("before, after", [(0, 1), (1, 0), (None, 1)])
def test_a_stopped_export_leaves_one_whole_model(before, after, kill, exports, tmp_path):
    export, new = exports[after]
    old = {} if before is None else exports[before][1]
    other = {"README.md": b"mine"}
    assert set(old) != set(new)

    def stopped(at, halfway):
        """The number of operations of an export over the old model, stopped there; what it leaves is whole, and the
        next export succeeds."""
        folder = tmp_path / f"{at}-{halfway}"
        folder.mkdir()
        for name, data in (old | other).items():
            (folder / name).write_bytes(data)
        ended = "whole"
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop = _Stop(monkeypatch, at, kill=kill, halfway=halfway)
            try:
                export(folder)
            except (OSError, _Killed) as error:
                ended = type(error)
        found = _visible(folder)
        if ended == "whole":
            assert found == new | other
        elif not kill:  # the old model, and nothing else
            assert found == old | other and not [file for file in folder.iterdir() if file.is_dir()]
        else:
            whole = found in (old | other, new | other) and "config.json" in found
            if not whole:  # then it is no model, and that is said
                assert "config.json" not in found
                with pytest.raises(UserError, match=r"has no config\.json"):
                    hf.load(folder)
        export(folder)
        assert _visible(folder) == new | other and not [file for file in folder.iterdir() if file.is_dir()]
        return stop.count

    count = stopped(None, False)
    assert count > len(old) + 2 * len(new)
    for at in range(1, count + 1):
        for halfway in (False, True):
            stopped(at, halfway)
