"""Tokenizers: the tiny one's promises, bytes of tokens, and where steps are cut."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ibtpo.data.arithmetic import DIFFICULTIES, make_problem, worked_solution
from ibtpo.data.steps import step_ends
from ibtpo.data.tokenizer import check_vocabulary, find_special, load_tokenizer, token_bytes
from ibtpo.errors import UserError

SEPARATOR = b"\n\n"


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def solutions(shared_data) -> list[str]:
    paths = [shared_data / "math4500_train.jsonl", shared_data / "math500_test.jsonl"]
    return [json.loads(line)["solution"] for path in paths for line in path.open(encoding="utf-8")]


@pytest.fixture(scope="module")
def trained(solutions):
    """A byte-level BPE with the pre-tokenisation that Qwen and Llama 3 use for punctuation and line
    breaks, so that one token holds a full stop and the separator, or more than a separator."""
    split = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    # Real solutions hold few runs of three line breaks; the tokenizer must know them as one token.
    backend.train_from_iterator([*solutions[:300], "end.\n\nx\n\n\ny" * 2000], trainer)
    backend.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


# ---------------------------------------------------------------------------------- tiny tokenizer


def test_tiny_tokenizer_files_are_what_the_script_writes(repo_root, tiny):
    spec = importlib.util.spec_from_file_location("make_tokenizer", repo_root / "assets" / "make_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = module.build_tokenizer()
    assert built.get_vocab() == tiny.get_vocab()
    assert json.loads(built.backend_tokenizer.to_str()) == json.loads(tiny.backend_tokenizer.to_str())
    assert built.chat_template == tiny.chat_template


def test_tiny_tokenizer_size_and_special_tokens(tiny):
    assert 300 <= len(tiny) <= 400
    assert tiny.eos_token == tiny.pad_token == "<|endoftext|>"
    assert tiny.encode("7<|endoftext|>") == [*tiny.encode("7"), tiny.eos_token_id]
    assert sorted(tiny.get_vocab().values()) == list(range(len(tiny)))


@given(text=st.text())
def test_tiny_tokenizer_round_trips_every_string(tiny, text):
    tokens = tiny.encode(text.replace("<|endoftext|>", ""))
    assert tiny.decode(tokens) == text.replace("<|endoftext|>", "")


def test_tiny_tokenizer_encodes_every_byte(tiny):
    table = token_bytes(tiny)
    assert {bytes([byte]) for byte in range(256)} <= set(table)


@given(st.integers(0, 2**32), st.sampled_from(sorted(DIFFICULTIES)))
def test_tiny_tokenizer_on_its_task(tiny, seed, difficulty):
    rng = np.random.default_rng(seed)
    problem = make_problem(rng, DIFFICULTIES[difficulty])
    pieces = [tiny.decode([token]) for token in tiny.encode(f"Question: {problem.question}\nAnswer:\n")]
    assert pieces[:2] == ["Question:", " Start with "]
    words = {"+": " Add ", "-": " Subtract ", "*": " Multiply by "}
    operators = [operator for operator, _ in problem.operations]
    assert [piece for piece in pieces if piece in words.values()] == [words[operator] for operator in operators]
    assert not any(len(piece) > 1 and re.search(r"\d", piece) for piece in pieces)
    solution = worked_solution(problem, rng, noise=0.3)
    tokens = tiny.encode(solution)
    pieces = [tiny.decode([token]) for token in tokens]
    assert pieces.count("\n\n") == len(operators)
    assert pieces[pieces.index("The answer is ") :][:2] == ["The answer is ", "\\boxed{"]
    assert not any(len(piece) > 1 and re.search(r"\d", piece) for piece in pieces)
    assert len(step_ends(tokens, token_bytes(tiny), SEPARATOR)) == len(operators) + 1


# ------------------------------------------------------------------------------------ token_bytes


@pytest.mark.parametrize("name", ["tiny", "trained"])
@given(text=st.text())
def test_bytes_of_tokens_join_to_the_text(request, name, text):
    tokenizer = request.getfixturevalue(name)
    table = token_bytes(tokenizer)
    tokens = tokenizer.encode(text)
    specials = set(tokenizer.all_special_tokens)
    if not any(special in text for special in specials):
        assert b"".join(table[token] for token in tokens) == text.encode()


def test_special_tokens_have_no_bytes_and_added_words_have_theirs(trained):
    table = token_bytes(trained)
    assert table[trained.eos_token_id] == b""
    assert table[trained.convert_tokens_to_ids("<think>")] == b"<think>"
    assert len(table) == len(trained)


def test_other_kinds_of_tokenizers_are_refused_by_name():
    with_bytes = Tokenizer(models.BPE({"▁a": 0, "<0x0A>": 1}, [], byte_fallback=True))
    with_bytes.normalizer = normalizers.Replace(" ", "▁")
    with_bytes.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    with pytest.raises(UserError, match=r"BPE model with decoders.*ByteFallback"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=with_bytes))
    words = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match=r"WordPiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=words))


def test_every_token_must_have_a_place_in_the_model(trained):
    check_vocabulary(trained, len(trained))
    check_vocabulary(trained, len(trained) + 100)  # padding
    with pytest.raises(UserError, match=r"the token '<think>' has id 1200, .* vocab_size is 1200"):
        check_vocabulary(trained, len(trained) - 1)
    with pytest.raises(UserError, match=r"the special token '<eos>' has id 0, .* vocab_size is 0"):
        check_vocabulary(trained, 0)


def test_special_and_added_tokens_are_found_by_name(trained):
    assert find_special(trained, "<eos>") == [trained.eos_token_id]
    assert find_special(trained, " <think>,<eos>") == [1200, trained.eos_token_id]
    with pytest.raises(UserError, match=r"'<thinks>' is no special token .*nearest: <think>"):
        find_special(trained, "<eos>,<thinks>")
    ordinary = "0"  # in every byte-level vocabulary, and near to no special token
    assert ordinary in trained.get_vocab()
    with pytest.raises(UserError, match=f"'{ordinary}' is no special token .*nearest: .*<eos>"):
        find_special(trained, ordinary)


def test_a_token_that_is_not_spelled_in_bytes_is_named(tiny_tokenizer_dir):
    specification = json.loads((tiny_tokenizer_dir / "tokenizer.json").read_text())
    specification["model"]["vocab"]["▁a b"] = 400
    backend = Tokenizer.from_str(json.dumps(specification))
    with pytest.raises(UserError, match=r"the token '▁a b' \(\d+\) is not spelled in bytes"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_a_folder_with_a_sentencepiece_model_only_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n\x0b\n\x05<unk>")
    with pytest.raises(UserError, match=rf"has a SentencePiece tokenizer \({name}\); .*byte-level BPE"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xef\xbb\xbf{}", b"<html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_damaged_tokenizer_files_are_named(tiny_tokenizer_dir, tmp_path, name, data):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    (folder / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert str(error.value).startswith(f"{folder / name} ") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": {"type": "BPE", "vocab": 1, "merges": []}}])
def test_a_tokenizer_that_cannot_be_built_is_one_line(tiny_tokenizer_dir, tmp_path, content):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value) and "cannot be read (" in str(error.value)
    assert str(error.value).endswith("): fetch it again") and "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"model_max_length": "512"}, {"eos_token": 5}, {"added_tokens_decoder": [1]}])
def test_settings_that_cannot_be_used_are_one_line(tiny_tokenizer_dir, tmp_path, settings):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert f"the tokenizer in {str(folder)!r} cannot be read (" in str(error.value) and "\n" not in str(error.value)


def test_wrong_tokenizer_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no tokenizer \(tokenizer.json"):
        load_tokenizer(tmp_path)


# -------------------------------------------------------------------------------------- step_ends


@pytest.mark.parametrize("name", ["tiny", "trained"])
def test_steps_of_real_solutions(request, name, solutions):
    tokenizer = request.getfixturevalue(name)
    table = token_bytes(tokenizer)
    num_steps = 0
    for tokens, solution in zip(tokenizer(solutions).input_ids, solutions, strict=True):
        ends = step_ends(tokens, table, SEPARATOR)
        byte_ends = np.cumsum([len(table[token]) for token in tokens])
        # The text alone says after which bytes steps end: every separator that closes a non-blank
        # piece and has a non-blank piece somewhere after it.
        pieces = solution.encode().split(SEPARATOR)
        filled = [index for index, piece in enumerate(pieces) if piece.strip()]
        lengths = np.cumsum([len(piece) + len(SEPARATOR) for piece in pieces])
        expected = [int(np.searchsorted(byte_ends, lengths[index])) + 1 for index in filled[:-1]]
        assert ends == [*expected, len(tokens)]
        steps = [tokens[begin:end] for begin, end in zip([0, *ends], ends)]
        assert b"".join(table[token] for step in steps for token in step) == solution.encode()
        num_steps += len(filled)
    assert num_steps > len(solutions)  # the data do have separators


def test_trained_tokenizer_has_tokens_that_straddle_separators(trained):
    table = token_bytes(trained)
    assert b".\n\n" in table and b"\n\n\n" in table
    tokens = trained.encode("a.\n\nb\n\n\n\nc\n\n\nd")
    steps = step_ends(tokens, table, SEPARATOR)
    pieces = [b"".join(table[t] for t in tokens[i:j]) for i, j in zip([0, *steps], steps)]
    assert len(pieces) == 4
    assert [piece.strip() for piece in pieces] == [b"a.", b"b", b"c", b"d"]
