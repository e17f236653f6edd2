"""Fingerprints tell other content from the same content, and a resumed run that has other inputs is refused."""

import dataclasses
import json
import shutil

import jax
import pytest

from ibtpo import train as train_lib
from ibtpo.data.problems import Problem
from ibtpo.errors import UserError
from ibtpo.fingerprints import check_same, fingerprints
from ibtpo.policy import load_policy

PROBLEMS = [Problem(0, "What is 1 + 1?", "2"), Problem(1, "What is 2 + 1?", "3")]


@pytest.fixture(scope="module")
def policy(tiny_config):
    return load_policy(tiny_config())


def of(policy, problems=PROBLEMS, chat_template=False):
    return fingerprints(policy, problems, chat_template=chat_template)


def test_the_same_content_has_the_same_fingerprints(policy, tiny_config, tiny_model_dir, tmp_path):
    moved = shutil.copytree(tiny_model_dir, tmp_path / "moved")
    # Another form of the same file: keys in another order, other blanks.
    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    (moved / "tokenizer.json").write_text(json.dumps(dict(reversed(tokenizer.items()))))
    other = load_policy(tiny_config(model__path=str(moved)))
    other.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)  # which it then remembers
    renumbered = [dataclasses.replace(problem, id=problem.id + 5) for problem in PROBLEMS]
    assert of(policy) == of(other, renumbered)


@pytest.mark.parametrize(
    "problems",
    [
        PROBLEMS[::-1],
        PROBLEMS[:1],
        [*PROBLEMS, PROBLEMS[0]],
        [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], answer="4")],
        [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], question="What is 2 + 2?")],
        [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], kind="letters")],
        [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], prompt="{question}!")],
        # The same text, divided otherwise.
        [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], question="What is 2 + 1?3", answer="")],
    ],
)
def test_other_problems_have_another(policy, problems):
    now, other = of(policy), of(policy, problems)
    assert {name for name in now if now[name] != other[name]} == {"data"}


def test_one_other_weight_has_another(policy):
    leaves, structure = jax.tree.flatten(policy.params)
    for index in (0, len(leaves) - 1):
        changed = [x.at[(0,) * x.ndim].add(1e-3) if i == index else x for i, x in enumerate(leaves)]
        other = of(policy.with_params(jax.tree.unflatten(structure, changed)))
        assert {name for name, text in of(policy).items() if other[name] != text} == {"model"}


def test_another_architecture_of_the_same_sizes_has_another(policy):
    other = dataclasses.replace(policy, model=dataclasses.replace(policy.model, rope_theta=1234.0))
    assert of(other)["model"] != of(policy)["model"]


def test_another_tokenizer_of_the_same_size_has_another(tiny_config, tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = tiny_config(model__path=str(folder))
    before = of(load_policy(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    after = of(load_policy(config))
    assert {name for name in before if before[name] != after[name]} == {"tokenizer"}


def test_the_chat_template_counts_where_it_is_used(policy):
    before = {used: of(policy, chat_template=used)["tokenizer"] for used in (False, True)}
    template = policy.tokenizer.chat_template
    try:
        policy.tokenizer.chat_template = "{{ messages[0]['content'] }} now"
        after = {used: of(policy, chat_template=used)["tokenizer"] for used in (False, True)}
    finally:
        policy.tokenizer.chat_template = template
    assert after[False] == before[False] and after[True] != before[True]


def test_a_difference_is_named_with_the_way_out():
    names = dict(data="data.source=jsonl:x", model="model.path=m", tokenizer="model.path=m")
    now = dict(data="2 problems ab", model="cd", tokenizer="ef")
    check_same("runs/r", now, now, names)
    with pytest.raises(UserError, match=r"runs/r .*the data of data\.source=jsonl:x \(3 problems aa then, 2 problems"):
        check_same("runs/r", now | dict(data="3 problems aa"), now, names)
    # Nothing is taken on trust.
    with pytest.raises(UserError, match=r"the model of model\.path=m \(not recorded then, cd now\).*; the tokenizer"):
        check_same("runs/r", dict(data="2 problems ab"), now, names)


def write_problems(file, first):
    numbers = range(first, first + 9)
    lines = (json.dumps({"question": f"Start with {i}. Add {i}.", "answer": str(2 * i)}) for i in numbers)
    file.write_text("\n".join(lines))


def test_a_run_whose_questions_were_swapped_is_not_resumed(tiny_config, tmp_path):
    """As many, in the same file, under the same configuration."""
    file = tmp_path / "problems.jsonl"

    def config(steps):
        return tiny_config(data__source=f"jsonl:{file}", train__steps=steps, checkpoint__every=1, data__limit=0)

    write_problems(file, 1)
    train_lib.train(config(1), str(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    write_problems(file, 2)
    with pytest.raises(UserError, match=r"the data of data\.source=jsonl:.* \(9 problems \w+ then, 9 pro"):
        train_lib.train(config(2), str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    write_problems(file, 1)
    train_lib.train(config(2), str(tmp_path / "run"))
    assert '"step": 2' in (tmp_path / "run" / "metrics.jsonl").read_text()
