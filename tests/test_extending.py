"""The examples of docs/extending.md are code that runs."""

import importlib
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from ibtpo import advantages, choices, objectives
from ibtpo.losses import LossOptions, policy_loss
from ibtpo.packing import pack_groups
from ibtpo.rewards import KINDS
from ibtpo.rewards.pool import Grader
from ibtpo.rewards.terms import TERMS, parse_terms
from ibtpo.sampling import strategies
from tests.loss_cases import small_batch
from tests.tree_cases import make_tree, random_responses


@pytest.fixture(scope="module")
def examples(repo_root):
    """The Python blocks of the page, by the section they are in."""
    sections = re.split(r"^## ", (repo_root / "docs" / "extending.md").read_text(), flags=re.MULTILINE)[1:]
    return {s.splitlines()[0]: re.findall(r"^```python\n(.*?)^```", s, re.DOTALL | re.MULTILINE) for s in sections}


def define(code: str, module) -> dict:
    """The names that `code` would have as a part of a module."""
    names = dict(vars(module))
    exec(code, names)
    return names


def test_a_reward_of_ten_lines_is_graded_in_workers(examples, tmp_path, monkeypatch):
    [code] = examples["A reward"]
    assert len(code.splitlines()) <= 10
    (tmp_path / "word_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(KINDS, "word", importlib.import_module("word_of_the_docs"))
    pairs = [("It is\n**Paris**.", "Paris"), ("Paris\nis it", "paris"), ("", "Paris"), ("paris!", "Paris")]
    with Grader("word", workers=1) as grader:
        assert grader.grade(pairs) == [1.0, 0.0, 0.0, 1.0]
        assert grader.counts["slow"] == 4


def test_a_term(examples, monkeypatch):
    [code] = examples["A term"]
    term = define(code, importlib.import_module("ibtpo.rewards.terms"))["hedging_term"]
    monkeypatch.setitem(TERMS, "hedging", term)
    assert parse_terms("format:0.1,hedging:-0.2") == {"format": 0.1, "hedging": -0.2}
    assert term("Maybe so. It is", 0.5) == 0.5 and term("", 0.0) == 0.0


def test_a_strategy(examples):
    [code] = examples["A branching strategy"]
    responses = random_responses(3, 4)
    tree = make_tree(responses, np.float64)
    options = strategies.TreeOptions(top_k=2, branch=2, max_new_tokens=100)
    forks = define(code, strategies)["longest"](tree, responses, options, np.random.default_rng(0))
    assert len(forks) == 4 and forks[0] == forks[1] and forks[0].position >= forks[2].position
    _, possible = strategies.inner_prefixes(tree, options)
    assert forks[0].position == max(fork.position for fork in possible)


def test_an_advantage(examples):
    [code] = examples["An advantage"]
    responses = random_responses(3, 4, rewards=[0.0, 1.0, 1.0, 1.0])
    tree = make_tree(responses)
    values = define(code, importlib.import_module("ibtpo.advantages.flat"))["sign"](tree, advantages.AdvantageOptions())
    leaves = values[0, np.arange(4), tree.response_node[0, :4]]
    np.testing.assert_array_equal(leaves, [-1, 1, 1, 1])


def test_an_objective(examples, monkeypatch):
    [code] = examples["An objective"]
    monkeypatch.setitem(objectives.OBJECTIVES, "reinforce", define(code, objectives)["reinforce"])
    monkeypatch.setattr(choices, "OBJECTIVES", (*choices.OBJECTIVES, "reinforce"))
    batch, options = small_batch(), LossOptions("reinforce", kl=0.0)
    gradient = jax.grad(lambda x: policy_loss(x, batch, options=options)[0])(jnp.asarray(batch.log_probs) - 1)
    np.testing.assert_allclose(gradient, -(batch.positive + batch.negative), rtol=1e-6)


def test_packed_rows_in_another_trainer(examples, capsys):
    [code] = examples["The packed rows in another trainer"]
    names = {}
    exec(code, names)
    assert "16 tokens instead of 35: 54% saved" in capsys.readouterr().out
    # The same loss and gradient with a row for each response.
    flat = pack_groups(
        [p for p, group in zip(names["prompts"], names["responses"]) for _ in group],
        [[response] for group in names["responses"] for response in group],
    )
    assert flat.unique_tokens == 3 * 3 + 2 * 2 + 18 and len(np.unique(flat.index[flat.mask])) == 18
    names["packed"] = flat
    loss, gradient = jax.value_and_grad(names["grpo_loss"])(names["model"][1])
    np.testing.assert_allclose(loss, names["loss"], atol=2e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(names["gradient"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
