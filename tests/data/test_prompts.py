"""Prompts begin with the token that the tokenizer asks for and never end with a stop token; templates may fail."""

import json
import shutil

import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, processors

from ibtpo.data.problems import Problem, check_prompts, format_prompt, prompt_lengths
from ibtpo.data.prompts import encode_prompts, first_token
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.errors import UserError

BOS, EOS = "<|bos|>", "<|endoftext|>"
TEXT = "What is 1 + 1?"
CHAT = "{% for message in messages %}User: {{ message['content'] }}\n{% endfor %}Answer:\n"


@pytest.fixture
def make(tiny_tokenizer_dir, tmp_path):
    """make(single, template, **settings): the tiny tokenizer with a token BOS, what tokenizer.json puts around a text
    ("{BOS} $A {EOS}", each of the two may be left out), a chat template, and further settings."""

    def make(single="$A", template=CHAT, **settings):
        folder = tmp_path / f"tokenizer-{len(list(tmp_path.iterdir()))}"  # what is warned of, once, has its name
        shutil.copytree(tiny_tokenizer_dir, folder)
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.add_special_tokens([BOS])
        tokens = [(name, backend.token_to_id(name)) for name in (BOS, EOS)]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
        backend.save(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text()) | dict(bos_token=BOS) | settings
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(template)
        return load_tokenizer(folder)

    return make


def config_of(**values) -> ConfigDict:
    return ConfigDict(
        dict(prompt="{question}\n", chat_template=False, system_prompt="", max_prompt_tokens=64) | values
    )


def prompt(tokenizer, stop_ids=(), **values) -> str:
    tokens = format_prompt(Problem(0, TEXT, "2"), config_of(**values), tokenizer, stop_ids)
    assert tokens[-1] not in {tokenizer.eos_token_id, *stop_ids}
    assert prompt_lengths([Problem(0, TEXT, "2")], config_of(**values), tokenizer) == [len(tokens)] or stop_ids
    return tokenizer.decode(tokens)


@pytest.mark.parametrize("single", ["$A", f"{BOS} $A", f"$A {EOS}", f"{BOS} $A {EOS}"])
@pytest.mark.parametrize("asks", [None, False, True])
def test_a_text_begins_and_ends_as_it_must(make, single, asks, caplog):
    tokenizer = make(single, **({} if asks is None else dict(add_bos_token=asks)))
    begins = BOS in single or bool(asks)
    assert first_token(tokenizer) == (tokenizer.bos_token_id if begins else None)
    assert prompt(tokenizer) == BOS * begins + f"{TEXT}\n"
    # What transformers itself would add or the settings have changed needs no word; what is left out does.
    said = "prompts end with the stop token <|endoftext|> (327); it is left out" in caplog.text
    assert said == (EOS in single and not (asks and BOS not in single))


@pytest.mark.parametrize("single", ["$A", f"{BOS} $A", f"{BOS} $A {EOS}"])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_chat_template_may_forget_the_first_token(make, single, spelled, caplog):
    tokenizer = make(single, "{{ bos_token }}" * spelled + CHAT)
    text = f"User: {TEXT}\n\nAnswer:"  # a template's last line break is not part of it
    assert prompt(tokenizer, chat_template=True) == BOS * (spelled or BOS in single) + text
    message = f"{tokenizer.name_or_path}: prompts lack the token {BOS} (328) at their beginning; it is added"
    assert (message in caplog.text) == (BOS in single and not spelled)


def test_the_first_token_is_there_once(make, caplog):
    tokenizer = make(f"{BOS} $A")
    assert prompt(tokenizer, prompt=BOS + "{question}\n") == f"{BOS}{TEXT}\n"
    assert f"prompts begin with the token {BOS} (328) twice; one is left out" in caplog.text


def test_settings_may_not_ask_for_a_token_without_name(make):
    with pytest.raises(UserError, match=r"config\.json asks for .*\(add_bos_token\), but names no bos_token: "):
        make(add_bos_token=True, bos_token=None)
    assert first_token(make(add_bos_token=False, bos_token=None)) is None


def test_stop_tokens_at_the_end_of_a_text_are_left_out(make, caplog):
    tokenizer = make()
    newline = tokenizer.encode("\n")
    assert prompt(tokenizer, prompt="{question}" + EOS * 2) == TEXT
    assert prompt(tokenizer, stop_ids=newline) == TEXT
    assert f"prompts end with the stop token {tokenizer.convert_ids_to_tokens(newline)[0]}" in caplog.text
    assert encode_prompts([EOS, ""], tokenizer, chat=False) == [[], []]
    inside = encode_prompts([f"a{EOS}b"], tokenizer, chat=False)
    assert inside == [[*tokenizer.encode("a"), tokenizer.eos_token_id, *tokenizer.encode("b")]]


def test_a_first_token_that_is_a_stop_token_begins_a_prompt(make):
    tokenizer = make(add_bos_token=True, bos_token=EOS)
    assert prompt(tokenizer) == f"{EOS}{TEXT}\n"
    assert encode_prompts([""], tokenizer, chat=False) == [[]]


def test_a_chat_template_that_ends_with_a_stop_token_is_refused(make):
    tokenizer = make(template="{{ messages[0]['content'] }}{{ eos_token }}")
    with pytest.raises(UserError) as error:
        prompt(tokenizer, chat_template=True)
    assert "ends with the stop token <|endoftext|> (327), so that no turn of the assistant begins" in str(error.value)
    assert str(error.value).endswith(": set data.chat_template=False")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role\\nnot supported') }}", "TemplateError: System role not supported"),
        ("{% for message in messages %}", "TemplateSyntaxError: "),
        ("{{ messages[0]['content'].missing.field }}", "UndefinedError: "),
        ("{{ messages + 1 }}", "TypeError: "),
        ("{{ messages | no_such_filter }}", "TemplateAssertionError: "),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
    ],
)
def test_a_chat_template_that_fails_is_one_line(make, template, message):
    tokenizer = make(template=template)
    for system, way_out in [("", ": set data.chat_template=False"), ("Be brief.", ": set data.system_prompt=\"\" ")]:
        with pytest.raises(UserError) as error:
            check_prompts(config_of(chat_template=True, system_prompt=system), tokenizer, ())
        text = str(error.value)
        assert f"the chat template of the tokenizer {tokenizer.name_or_path!r} fails ({message}" in text
        assert way_out in text and "\n" not in text
    check_prompts(config_of(), tokenizer, ())


@pytest.mark.parametrize("template", ["version https://git-lfs.github.com/spec/v1\noid", "<!DOCTYPE html>", "Answer:"])
def test_a_chat_template_that_leaves_the_question_out_is_refused(make, template):
    tokenizer = make(template=template)
    with pytest.raises(UserError, match=r"chat template .* leaves the question out: fetch it again"):
        check_prompts(config_of(chat_template=True), tokenizer, ())
