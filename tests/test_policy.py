"""A loaded checkpoint: where responses stop, what they say, where their answer begins; and README's example."""

import json
import re
import shutil

import numpy as np
import pytest

from configs import tiny
from ibtpo import config as config_lib
from ibtpo.policy import load_policy


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    config = tiny.get_config()
    config.model.path = str(tiny_model_dir)
    return load_policy(config_lib.resolve(config))


@pytest.mark.parametrize(
    "text", ["12+3=15\n\nThe answer is \\boxed{15}.", "\\boxed{1}", "no box", "é \\boxed{2} \\boxed{3}"]
)
def test_answer_starts_at_the_token_that_opens_the_first_box(policy, text):
    tokens = np.asarray(policy.tokenizer.encode(text))
    start = policy.answer_start(tokens)
    assert "\\boxed" not in policy.text(tokens[:start])
    assert (
        start == len(tokens)
        if "\\boxed" not in text
        else "\\boxed" in policy.text(tokens[: start + 1]) or (policy.text(tokens[:start]) + "\\boxed" in text)
    )
    assert policy.text(tokens) == text


def test_special_tokens_have_no_text_and_end_a_response(policy):
    assert policy.stop_ids == (policy.tokenizer.eos_token_id,)
    assert policy.text(policy.stop_ids) == ""
    assert len(policy.table) >= policy.model.vocab_size


def test_generation_config_adds_stop_tokens(tiny_model_dir, policy, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, policy.stop_ids[0]]}))
    config = tiny.get_config()
    config.model.path = str(folder)
    assert load_policy(config_lib.resolve(config)).stop_ids == (5, *policy.stop_ids)


def test_lengths_beyond_the_models_positions_are_refused(tiny_model_dir):
    config = tiny.get_config()
    config.model.path = str(tiny_model_dir)
    config.sampling.max_new_tokens = 100_000
    config.train.row_tokens = 0
    with pytest.raises(ValueError, match=r"data\.max_prompt_tokens \+ sampling\.max_new_tokens = 100064 .* 512"):
        load_policy(config_lib.resolve(config))


def test_the_example_in_the_readme_runs(repo_root, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.chdir(repo_root)
    [example] = re.findall(r"```python\n(.*?)```", (repo_root / "README.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "SamplerStats(questions=1, responses=12" in capsys.readouterr().out
