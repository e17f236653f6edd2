"""A loaded checkpoint: where responses stop, their text, where their answer begins; and README's example."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tokenizers import Tokenizer, decoders, models

from configs import tiny
from ibtpo import config as config_lib
from ibtpo import parallel
from ibtpo.data.problems import Problem
from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.presets import PRESETS
from ibtpo.policy import load_policy, make_grade
from ibtpo.rewards.pool import Grader
from ibtpo.sampling import Question


def config_of(folder, **changes):
    """tiny.py with the model of a folder, and changes {"section__key": value}."""
    values = config_lib.flatten(tiny.get_config()) | {"model.path": str(folder)}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return config_lib.resolve(config_lib.unflatten(values))


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    return load_policy(config_of(tiny_model_dir))


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


@pytest.fixture
def records():
    """The log messages, INFO included."""
    found, handler, logger = [], logging.Handler(), logging.getLogger("absl")
    handler.emit = found.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "text, marker",
    [
        ("12+3=15\n\nThe answer is \\boxed{15}.", "answer is"),
        ("\\boxed{1}", "\\boxed"),
        ("no statement", ""),
        ("é \\boxed{2} \\boxed{3}", "\\boxed"),
    ],
)
def test_answer_starts_at_the_token_that_begins_its_first_statement(policy, text, marker):
    tokens = np.asarray(policy.tokenizer.encode(text))
    assert policy.text(tokens) == text
    start = policy.codec.answer_start(tokens)
    if not marker:
        assert start == len(tokens)
        return
    # The token has the marker's first letter in it.
    at = text.index(marker)
    assert len(policy.text(tokens[:start])) <= at < len(policy.text(tokens[: start + 1]))


def test_a_problems_kind_says_what_states_its_answer(policy):
    data = tiny.get_config().data
    letter = "So I choose B."
    for kind, start in (("", None), ("math", len(letter)), ("multiple_choice", 3), ("instructions", len(letter))):
        question = policy.question(0, Problem(0, "1 + 1?", "B", kind), data)
        assert (question.find_answer and question.find_answer(letter)) == start
    assert policy.codec.find_answer("The answer is 5") == 4


def test_special_tokens_have_no_text_and_end_a_response(policy):
    assert policy.codec.stop_ids == (policy.tokenizer.eos_token_id,)
    assert policy.text(policy.codec.stop_ids) == ""
    assert len(policy.codec.token_bytes) >= policy.model.vocab_size


def test_generation_config_adds_stop_tokens(folder, policy, records):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, policy.codec.stop_ids[0]]}))
    assert load_policy(config_of(folder)).codec.stop_ids == (5, *policy.codec.stop_ids)
    [record] = [r for r in records if "responses end at" in r.getMessage()]
    assert record.levelno == logging.INFO and f"<|endoftext|> ({policy.codec.stop_ids[0]})" in record.getMessage()


def test_named_stop_tokens_replace_those_of_the_files(folder, policy, records):
    tokenizer = policy.tokenizer.__class__.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    edit(folder / "config.json", vocab_size=400)  # its embeddings come below
    tokenizer.save_pretrained(folder)
    decoder = hf.load(policy.tokenizer.name_or_path)
    table = np.zeros((400, decoder.config.embed_dim), np.float32)
    table[: decoder.config.vocab_size] = decoder.embedding[...]
    decoder.embedding.set_value(jax.numpy.asarray(table))
    decoder.config = hf.read_config(folder)
    hf.save(decoder, folder, tokenizer_from=folder, token_ids={"eos_token_id": policy.codec.stop_ids[0]})

    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert load_policy(config_of(folder)).codec.stop_ids == policy.codec.stop_ids
    both = load_policy(config_of(folder, sampling__stop_tokens="<|im_end|>, <|endoftext|>"))
    assert both.codec.stop_ids == tuple(sorted([end, *policy.codec.stop_ids])) and both.codec.token_bytes[end] == b""
    assert not [r for r in records if r.levelno >= logging.WARNING]
    assert load_policy(config_of(folder, sampling__stop_tokens="<|im_end|>")).codec.stop_ids == (end,)
    [warning] = [r for r in records if r.levelno >= logging.WARNING]  # config.json would have another one
    assert f"not at the eos_token_id <|endoftext|> ({policy.codec.stop_ids[0]})" in warning.getMessage()
    message = r"sampling\.stop_tokens='<\|im_edn\|>': .* no special token of .*nearest: <\|im_end\|>"
    with pytest.raises(ValueError, match=message):
        load_policy(config_of(folder, sampling__stop_tokens="<|im_edn|>"))


def test_stop_tokens_outside_the_vocabulary_are_refused(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [5000]}')
    with pytest.raises(ValueError, match=r"end-of-sequence token 5000 is outside the model's vocab_size 328"):
        load_policy(config_of(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["<|endoftext|>", "327", 327.0, [[327]], [327, None], {"id": 327}, True, -1])
def test_end_tokens_that_are_no_ids_are_refused(folder, name, value):
    if not (folder / name).is_file():
        (folder / name).write_text("{}")
    edit(folder / name, eos_token_id=value)
    with pytest.raises(UserError) as error:
        load_policy(config_of(folder))
    assert str(error.value).startswith(f"{folder / name}: eos_token_id = {json.dumps(value)} is no token id")


@pytest.mark.parametrize("data", ["", "{", "[]", "<html>", "version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_generation_config_is_named(folder, data):
    (folder / "generation_config.json").write_text(data)
    with pytest.raises(UserError, match=r"generation_config\.json (is not JSON|holds no).*: fetch it again"):
        load_policy(config_of(folder))


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    edit(folder / "config.json", vocab_size=327)
    with pytest.raises(ValueError, match=r"special token '<\|endoftext\|>' has id 327, .* vocab_size is 327"):
        load_policy(config_of(folder))


def test_a_chat_template_must_be_there(folder):
    (folder / "chat_template.jinja").unlink()
    load_policy(config_of(folder))
    with pytest.raises(ValueError, match=r"has none: set data\.chat_template=False"):
        load_policy(config_of(folder, data__chat_template=True))


# ---------------------------------------------------------------------- what is refused before the weights are read


@pytest.fixture
def no_weights(monkeypatch):
    """Loading the weights is an error."""

    def load(*args, **kwargs):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(hf, "load", load)


def test_sentencepiece_is_refused_before_the_weights_are_read(folder, no_weights):
    backend = Tokenizer(models.BPE({"▁a": 0, "<0x0A>": 1}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"BPE model with decoders \['ByteFallback', 'Fuse'\].*byte-level BPE"):
        load_policy(config_of(folder))
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match=r"SentencePiece tokenizer \(tokenizer\.model\)"):
        load_policy(config_of(folder))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system turn') }}", r"template .* fails \(TemplateError: no system turn\): set data"),
        ("{% if %}", r"chat template .* fails \(TemplateSyntaxError: .*\): set data"),
        ("{{ messages[-1].content }}<|endoftext|>", r"ends with the stop token <\|endoftext\|> \(327\), .*: set data"),
        ("<html></html>", r"leaves the question out: fetch it again"),
    ],
)
def test_a_chat_template_that_cannot_work_is_refused_before_the_weights_are_read(folder, no_weights, template, message):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=message):
        load_policy(config_of(folder, data__chat_template=True))


def test_a_path_that_is_a_file_is_named(folder, no_weights):
    with pytest.raises(UserError, match=r"config\.json is a file: name the folder"):
        load_policy(config_of(folder / "config.json"))


def test_prompts_of_a_policy_end_with_none_of_its_stop_tokens(folder, policy, records):
    newline = policy.tokenizer.encode("\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": newline}))
    other = load_policy(config_of(folder))
    [record] = [r for r in records if "it is left out" in r.getMessage()]  # said when it is loaded, once
    assert f"end with the stop token {policy.tokenizer.convert_ids_to_tokens(newline)[0]}" in record.getMessage()
    problem, data = Problem(0, "1 + 1?", "2"), config_of(folder).data
    assert other.codec.stop_ids == (*newline, *policy.codec.stop_ids)
    assert [*other.question(0, problem, data).tokens, *newline] == list(policy.question(0, problem, data).tokens)
    assert len([r for r in records if "it is left out" in r.getMessage()]) == 1


def test_a_model_that_is_not_there_is_told_how_to_fetch(tmp_path):
    config = config_of(tmp_path / "models" / "8b", model__preset="Qwen/Qwen3-8B-Base")
    with pytest.raises(UserError) as error:
        load_policy(config)
    assert f"`hf download Qwen/Qwen3-8B-Base --local-dir {tmp_path}/models/8b`" in str(error.value)
    with pytest.raises(UserError, match="no model in Hugging Face format"):
        load_policy(config_of(tmp_path / "models" / "8b"))


def test_another_model_than_the_preset_is_refused(folder, tiny_model_dir):
    config = config_of(folder, model__preset="Qwen/Qwen3-1.7B")
    with pytest.raises(ValueError, match=r"is not model\.preset=Qwen/Qwen3-1\.7B: .*num_layers is 4, not 28"):
        load_policy(config)
    # A longer context is no other model: the right sizes come as far as the weights, which are not those.
    published = PRESETS["Qwen/Qwen3-1.7B"].to_hf() | {"max_position_embeddings": 65_536}
    edit(folder / "config.json", **published)
    with pytest.raises(ValueError, match="the weights do not fit"):
        load_policy(config)
    load_policy(config, path=tiny_model_dir)  # what was asked for is not model.path


def test_parameters_go_straight_to_their_places_on_a_mesh(folder, policy):
    mesh = parallel.make_mesh(tiny.get_config().mesh, jax.devices()[:1])
    placed = load_policy(config_of(folder), mesh=mesh)
    assert placed.params["layers"]["q"].sharding.mesh == mesh
    assert placed.params["layers"]["q"].sharding.spec != PartitionSpec()
    for a, b in zip(jax.tree.leaves(policy.params), jax.tree.leaves(placed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lengths_beyond_the_models_positions_are_refused(tiny_model_dir):
    config = config_of(tiny_model_dir, sampling__max_new_tokens=100_000, train__row_tokens=0)
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens \+ sampling\.max_new_tokens = 100064 .* 512"):
        load_policy(config)


def test_the_example_in_the_readme_runs(repo_root, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.chdir(repo_root)
    [example] = re.findall(r"```python\n(.*?)```", (repo_root / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "SamplerStats(questions=1, responses=12" in capsys.readouterr().out


def test_a_problems_own_kind_comes_before_the_graders(policy):
    text = policy.tokenizer.encode("The answer is \\boxed{B}.")
    problems = {7: Problem(0, "?", "B", kind="multiple_choice"), 8: Problem(1, "?", "15")}
    with Grader("math") as grader:
        grade = make_grade(policy, grader, problems)
        assert grade(Question(7, [1]), np.asarray(text)).result() == 1.0
        assert grade(Question(8, [1]), np.asarray(policy.tokenizer.encode("\\boxed{15}"))).result() == 1.0
        assert grader.counts["fast"] == 2
