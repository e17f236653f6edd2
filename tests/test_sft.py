"""Supervised training: packing, data sources, and a short run."""

import itertools
import json
import sys

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models

from configs import tiny_sft
from ibtpo import metrics, supervised
from ibtpo.errors import UserError
from ibtpo.metrics import sinks
from ibtpo.models import hf
from ibtpo.profiling import Profile
from ibtpo.workdir_lock import FolderLock
from tests.test_profiling import events


@given(
    lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=30),
    rows=st.integers(1, 3),
)
def test_packed_rows_hold_every_example_whole(lengths, rows):
    tokens = itertools.count(1)
    examples = [([next(tokens) for _ in range(a)], [next(tokens) for _ in range(b)]) for a, b in lengths]
    # Examples of a whole row, one more than there are rows, push out the batch that holds the last of the others.
    fillers = [([0] * 11, [0])] * (rows + 1)
    batches = supervised.pack([*examples, *fillers], rows=rows, row_tokens=12)
    found = []
    for batch in batches:
        for r in range(rows):
            start = 0
            while start < 12 and batch.subtree_end[r, start] > start + 1:
                end = batch.subtree_end[r, start]
                place = (r, slice(start, end))
                assert (batch.subtree_end[place] == end).all()
                np.testing.assert_array_equal(batch.positions[place], np.arange(end - start))
                parents = np.arange(start, end) - 1
                parents[0] = start
                np.testing.assert_array_equal(batch.parent_token[place], parents)
                weight = batch.weight[place].astype(int)
                prompt = int((weight == 0).sum())
                assert (weight[prompt:] == 1).all()
                row = batch.tokens[place].tolist()
                found.append((row[:prompt], row[prompt:]))
                start = end
            rest = (r, slice(start, None))
            np.testing.assert_array_equal(batch.subtree_end[rest], np.arange(start, 12) + 1)
            np.testing.assert_array_equal(batch.parent_token[rest], np.arange(start, 12))
            assert not batch.weight[rest].any()
    assert sorted(example for example in found if example != fillers[0]) == sorted(examples)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"an example of 13 tokens does not fit train\.row_tokens=12"):
        next(supervised.pack([([1] * 12, [2])], rows=1, row_tokens=12))


def test_json_lines_are_read_again_and_again(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps({"q": f"question {i} \u2028", "s": f"solution {i}"}, ensure_ascii=False) + "\n" for i in range(5)
        )
    )
    data = ConfigDict(dict(source=f"jsonl:{path}", question_field="q", solution_field="s"))
    pairs = list(itertools.islice(supervised.solutions(data, seed=0), 10))
    for epoch in (pairs[:5], pairs[5:]):
        assert sorted(solution for _, solution in epoch) == [f"solution {i}" for i in range(5)]
        assert all(p.question.split()[1] == s.split()[1] for p, s in epoch)
    with pytest.raises(ValueError, match=r"data\.source='csv:x' is neither"):
        next(supervised.solutions(ConfigDict(dict(source="csv:x")), seed=0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.source": "foo"}, "data.source='foo' is neither"),
        ({"data.source": "jsonl:nowhere.jsonl"}, "nowhere.jsonl"),
        ({"data.source": "jsonl:{tmp}/b*.jsonl"}, "bad.jsonl, line 2: no field 'solution'"),
        ({"data.source": "jsonl:{tmp}/bad.jsonl"}, "bad.jsonl, line 2: no field 'solution'"),
        ({"data.max_prompt_tokens": 3}, "data.max_prompt_tokens"),
        ({"train.row_tokens": 12}, "does not fit train.row_tokens=12"),
        ({"optimizer.schedule": "bogus"}, "bogus"),
        ({"model.remat": "bogus"}, "model.remat='bogus' is none of none, elementwise, attention, full"),
        ({"log.every": 0}, "log.every=0"),
        ({"train.steps": 0}, "train.steps=0"),
        ({"tokenizer": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(tiny_tokenizer_dir, tmp_path, changes, message):
    (tmp_path / "bad.jsonl").write_text('{"question": "1", "solution": "2"}\n{"question": "3"}\n')
    config = tiny_sft.get_config()
    config.tokenizer, config.output = str(tiny_tokenizer_dir), str(tmp_path / "out")
    config.model.architecture.update(embed_dim=16, mlp_dim=16, num_layers=1, num_heads=1, num_kv_heads=1)
    for key, value in changes.items():
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config)[leaf] = value.format(tmp=tmp_path) if leaf == "source" else value
    with pytest.raises(UserError) as error:
        supervised.run(config, str(tmp_path / "work"))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_sentencepiece_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    """Also where it comes as a tokenizer.json."""
    backend = Tokenizer(models.BPE({"▁a": 0, "<0x0A>": 1}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "▁a"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(hf, "load", lambda *_, **__: pytest.fail("the weights were read"))
    config = tiny_sft.get_config()
    config.tokenizer = config.model.path = str(tmp_path)
    with pytest.raises(UserError, match=r"BPE model with decoders \['ByteFallback', 'Fuse'\].*byte-level BPE"):
        supervised.run(config, str(tmp_path / "run"))


def test_a_folder_that_another_run_has_is_refused(tiny_tokenizer_dir, tmp_path):
    config = tiny_sft.get_config()
    config.tokenizer, config.output = str(tiny_tokenizer_dir), str(tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with FolderLock(tmp_path / "run"), pytest.raises(UserError, match="is in use by process"):
        supervised.run(config, str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'


class _Service:
    """Weights & Biases, as `metrics.sinks` sees it."""

    def __init__(self):
        self.runs, self.rows, self.where = [], [], "here"

    def open_run(self, project, name, id, workdir, config):
        self.runs.append((project, name, id, config["train"]["steps"]))
        return self

    def write(self, step, values):
        self.rows.append((step, values["sft/loss"]))

    def close(self):
        self.rows.append("closed")


def test_a_short_run_learns_repeats_itself_and_saves(tiny_tokenizer_dir, tmp_path, monkeypatch):
    """The first time with a service, TensorBoard and a trace, as training has them; the second without."""
    service = _Service()
    monkeypatch.setitem(sys.modules, "tests.service_of_sft", service)
    monkeypatch.setitem(sinks.SERVICES, "wandb", "tests.service_of_sft")
    monkeypatch.setattr(sinks, "check_installed", lambda log: None)

    def run(name: str, watched: bool = False):
        config = tiny_sft.get_config()
        config.tokenizer, config.output = str(tiny_tokenizer_dir), str(tmp_path / name)
        config.model.architecture.update(embed_dim=32, mlp_dim=48, num_layers=1, num_heads=2, num_kv_heads=1)
        config.model.architecture.head_dim = 16
        config.train.update(steps=30, rows=2, row_tokens=128)
        config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
        config.log.every = 10
        config.log.wandb = config.log.tensorboard = watched
        supervised.run(config, str(tmp_path / "work" / name), Profile(2, 3) if watched else None)
        losses = [row["sft/loss"] for row in metrics.read(tmp_path / "work" / name)]
        return losses, nnx.state(hf.load(tmp_path / name))

    losses, params = run("a", watched=True)
    assert service.rows == [*zip((10, 20, 30), losses), "closed"]
    assert [(project, name, steps) for project, name, _, steps in service.runs] == [("ibtpo", "a", 30)]
    found, named = events(tmp_path / "work" / "a" / "profile")
    assert [stats["step_num"] for stats in found["update"]] == [2, 3] and "optimizer step" in named
    assert list((tmp_path / "work" / "a" / "tensorboard").iterdir())
    assert losses[-1] < 0.75 * losses[0] and losses[-1] > 0
    again, same = run("b")
    assert losses == again
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").is_file()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["eos_token_id"] > 0
    assert params["embedding"][...].shape[1] == same["embedding"][...].shape[1] == 32
