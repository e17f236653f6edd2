"""SmolLM2 from its wheel: the conversion by itself and, where `make real` has put the model, against transformers."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from ibtpo import config as config_lib
from ibtpo.data.problems import Problem, format_prompt
from ibtpo.data.tokenizer import load_tokenizer, token_bytes
from ibtpo.errors import UserError
from ibtpo.models import hf
from ibtpo.models.presets import PRESETS
from ibtpo.policy import load_policy

TOKENS = [*"0123456789ab", "Ġ", "ab", "12", "Ġab", "<|im_start|>", "<|im_end|>"]
FIELDS = {
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * (len(TOKENS) - 2) + [3, 3],
    "tokenizer.ggml.merges": ["a b", "1 2", "Ġ ab"],
    "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    **{f"tokenizer.ggml.{name}_token_id": len(TOKENS) - 2 for name in ("bos", "unknown")},
    **{f"tokenizer.ggml.{name}_token_id": len(TOKENS) - 1 for name in ("eos", "padding")},
}


def load_script(repo_root, name):
    spec = importlib.util.spec_from_file_location(name, repo_root / "assets" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(repo_root):
    return load_script(repo_root, "smollm2")


def test_each_digit_is_a_token_and_special_tokens_are_whole(script, tmp_path):
    tokenizer = script.make_tokenizer(FIELDS)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12 ab12")) == ["1", "2", "Ġab", "1", "2"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab 1"}], tokenize=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) == ["<|im_start|>", "ab", "Ġ", "1", "<|im_end|>"]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode("12 ab12") == tokenizer.encode("12 ab12") and again.eos_token == "<|im_end|>"
    assert token_bytes(again)[-2:] == [b"", b""] and token_bytes(again)[15] == b" ab"


def test_a_tokenizer_that_splits_another_way_is_refused(script):
    with pytest.raises(UserError, match="the tokenizer splits 'I have 123 apples' into"):
        script.check_tokenizer(script.make_tokenizer(FIELDS))


def test_rotary_pairs_go_apart_in_each_head(script):
    """Rows of two heads of six: GGUF has each pair side by side."""
    pairs = np.arange(12)[:, None] * np.ones(3)
    expected = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    np.testing.assert_array_equal(script.in_halves(pairs, 2)[:, 0], expected)


def test_a_folder_without_the_model_is_named(script, tmp_path):
    for files in ([], ["SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q8_0.gguf"]):
        for name in files:
            (tmp_path / name).touch()
        with pytest.raises(UserError, match=f"holds {len(files)} files SmolLM2"):
            script.find_file(tmp_path)


def test_easy_problems_are_those_of_few_small_calculations(repo_root, tmp_path, capsys):
    script = load_script(repo_root, "easy_gsm8k")
    solutions = {"one": "<<1+1=2>>2\n#### 2", "two": "<<10*10=100>>100 <<100-8-2=90>>90\n#### 90"}
    solutions |= {
        "three": "<<1+1=2>>" * 3 + "\n#### 2", "none": "It is 5.\n#### 5", "x" * 201: solutions["one"],
        "large": "<<100+1=101>>101\n#### 101", "division": "<<8/4=2>>2\n#### 2", "share": "<<8*.5=4>>4\n#### 4",
        "words": "<<a>>2\n#### 2", "empty": "<<>>2\n#### 2",
    }  # fmt: skip
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in solutions.items()]
    for split in ("train", "test"):
        (tmp_path / f"gsm8k_{split}.jsonl").write_text("\n".join([*lines, "no record"]))
    script.main([str(tmp_path / "out"), f"--files={tmp_path}"])
    for split in ("train", "test"):
        found = [json.loads(line) for line in (tmp_path / "out" / f"gsm8k_easy_{split}.jsonl").open()]
        assert [(p["question"], p["answer"]) for p in found] == [("one", "2"), ("two", "90")]
    assert "gsm8k_easy_test.jsonl: 2 problems" in capsys.readouterr().out


def test_the_config_is_of_the_model_and_shows_a_step_a_line(repo_root):
    config = config_lib.resolve(config_lib.load(str(repo_root / "configs" / "smollm2_135m.py")))
    assert config.model.preset in PRESETS and config.data.separator == "\n"
    assert config.data.prompt.count("Problem:") == 3 and config.data.prompt.count("The answer is ") == 2
    assert config_lib.stop_strings(config.sampling.stop_strings) == ["Problem:"]


@pytest.fixture(scope="module")
def model_dir(repo_root):
    folder = repo_root / "models" / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model in {folder}: make real puts it there")
    return folder


@pytest.fixture(scope="module")
def theirs(model_dir):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def config(repo_root, model_dir):
    config = config_lib.load(str(repo_root / "configs" / "smollm2_135m.py"))
    config.model.path = str(model_dir)
    return config_lib.resolve(config)


TEXTS = ["Natalia sold clips to 48 of her friends in April. What is 1,234.5 + 7?", "def f(x):\n    return x ** 2 # é"]


@pytest.mark.slow
def test_logits_are_transformers(model_dir, theirs):
    from tests.models.hf.folders import logits
    from tests.models.reference import torch_logits

    tokenizer, decoder = load_tokenizer(model_dir), hf.load(model_dir)
    for text in TEXTS:
        tokens = np.array([tokenizer.encode(text)], np.int32)
        expected, found = torch_logits(theirs, tokens), logits(decoder, tokens)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_greedy_continuations_are_transformers(config, theirs):
    from ibtpo.policy import make_sampler
    from ibtpo.sampling import Question, SamplingParams
    from tests.models.reference import torch_greedy

    policy = load_policy(config)
    prompts = [policy.tokenizer.encode(text) for text in TEXTS]
    sampler = make_sampler(policy, config, strategy="independent", initial=1, rounds=1, max_new_tokens=24)
    greedy = SamplingParams(temperature=1.0, top_k=1)
    questions = [Question(i, prompt) for i, prompt in enumerate(prompts)]
    trees, _ = sampler(policy.params, questions, lambda question, tokens: 0.0, key=jax.random.key(0), sampling=greedy)
    for prompt, tree in zip(prompts, trees):
        [found] = tree.responses
        expected = torch_greedy(theirs, np.array([prompt]), 24)[0]
        np.testing.assert_array_equal(found.tokens, expected[: len(found.tokens)])
        assert len(found.tokens) == 24 or found.finish == "stop"


@pytest.mark.slow
def test_prompts_and_bytes_are_the_tokenizers(config, model_dir):
    tokenizer = load_tokenizer(model_dir)
    table = token_bytes(tokenizer)
    assert len(table) == PRESETS[config.model.preset].vocab_size == 49_152
    special = set(tokenizer.all_special_ids)
    for token in range(len(table)):  # every token by itself, as far as it is text
        text = table[token].decode("utf-8", errors="replace")
        assert tokenizer.decode([token]) == text or token in special or token in tokenizer.added_tokens_decoder
    chat = config.data.copy_and_resolve_references()
    with chat.unlocked():
        chat.chat_template = True
    turns = [{"role": "user", "content": chat.prompt.format(question=TEXTS[0])}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert format_prompt(Problem(0, TEXTS[0], "1"), chat, tokenizer) == expected
    plain = tokenizer.encode(config.data.prompt.format(question=TEXTS[0]))
    assert format_prompt(Problem(0, TEXTS[0], "1"), config.data, tokenizer) == plain


@pytest.mark.slow
def test_the_conversion_is_transformers_but_for_digits(repo_root, model_dir, script, monkeypatch):
    wheels = repo_root / "build" / "real"
    if not wheels.is_dir():
        pytest.skip(f"no wheels in {wheels}: make real puts them there")
    monkeypatch.setattr(sys, "path", [*sys.path, str(wheels)])
    import transformers

    file = script.find_file(wheels)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    expected = {name: x.detach().float().numpy() for name, x in theirs.state_dict().items() if name != "lm_head.weight"}
    _, params = nnx.split(hf.load(model_dir), nnx.Param)
    found = hf.tensor_shapes(params)
    assert {name: x.shape for name, x in expected.items()} == found
    from tests.models.hf.folders import read_tensors

    written = read_tensors(model_dir)
    for name, x in expected.items():
        np.testing.assert_array_equal(written[name], x, err_msg=name)
    split = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert split.get_vocab() == load_tokenizer(model_dir).get_vocab()
