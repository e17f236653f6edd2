"""Rewards, strategies and advantages of the user's, by import path: found, checked, called, and refused in one line."""

import importlib
import re
import sys

import numpy as np
import pytest

from ibtpo import own_code
from ibtpo.advantages import AdvantageOptions, compute_advantages
from ibtpo.config import resolve
from ibtpo.errors import UserError
from ibtpo.rewards import find_extractor, find_statement
from ibtpo.rewards.pool import Grader
from ibtpo.sampling.choosing import choose
from ibtpo.sampling.strategies import Fork, TreeOptions, inner_prefixes
from tests.config_cases import runnable
from tests.tree_cases import make_tree, random_responses


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Makes a module in the current folder, which is not on sys.path; nothing of it is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)

    def make(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()

    yield make
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]
    own_code.find.cache_clear()
    own_code.find_module.cache_clear()


@pytest.fixture
def example(write, repo_root):
    """The module of docs/extending.md."""
    page = (repo_root / "docs" / "extending.md").read_text()
    section = page[page.index("## Your own functions") : page.index("## In the package")]
    [code] = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    write("own_example", code)
    return "own_example"


def test_the_documented_module_configures_grades_forks_and_scores(example):
    config = resolve(
        runnable(
            reward__kind=f"{example}:last_word",
            tree__strategy=f"{example}:deepest",
            loss__advantage=f"{example}:centred",
        )
    )
    with Grader(config.reward.kind, workers=1) as grader:
        assert grader.grade([("It is 12.", "12"), ("13", "12")]) == [1.0, 0.0]
        assert grader.grade([("\\boxed{7}", "7")]) == [0.0]
        assert grader.submit("\\boxed{7}", "7", "math").result() == 1.0
        assert grader.counts["slow"] == 3

    responses = random_responses(3, 4, rewards=[0.0, 1.0, 1.0, 1.0])
    tree = make_tree(responses, np.float64)
    options = TreeOptions(strategy=config.tree.strategy, top_k=2, branch=2, max_new_tokens=100)
    forks = choose(tree, responses, options, np.random.default_rng(0), None, ())
    _, possible = inner_prefixes(tree, options)
    assert len(forks) == 4 and forks[0].position == max(fork.position for fork in possible)

    values = compute_advantages(config.loss.advantage, tree, AdvantageOptions())
    leaves = values[0, np.arange(4), tree.response_node[0, :4]]
    np.testing.assert_allclose(leaves, [-0.75, 0.25, 0.25, 0.25])
    shaping = np.zeros_like(tree.rewards)
    shaping[0, 0] = 1.0
    shaped = compute_advantages(config.loss.advantage, tree, AdvantageOptions(), shaping)
    np.testing.assert_allclose(shaped, 0, atol=1e-12)


CODE = """
value = 3
def reward(text, reference): return 1.0
def one(text): return 1.0
def more(text, reference, weight): return 1.0
def named(text, *, reference): return 1.0
def optional(text, reference, weight=1.0): return 1.0
def any_number(*arguments): return 1.0
"""

WRONG = [
    ("own_nowhere:reward", ["no module 'own_nowhere'", "PYTHONPATH"]),
    ("own_code_here.sub:reward", ["no module 'own_code_here.sub'"]),
    ("own_code_here:rewrd", ["no function 'rewrd'", "did you mean 'reward'?"]),
    ("own_code_here:value", ["a int 'value', no function"]),
    ("own_code_here:one", ["one(text) cannot be called as one(text, reference)"]),
    ("own_code_here:more", ["more(text, reference, weight) cannot be called"]),
    ("own_code_here:named", ["named(text, *, reference) cannot be called"]),
    ("own_breaks:reward", ["importing own_breaks failed", "ZeroDivisionError"]),
    ("own_syntax:reward", ["importing own_syntax failed", "SyntaxError"]),
    ("own_imports:reward", ["importing own_imports failed", "no_such_package"]),
]


@pytest.mark.parametrize("path, parts", WRONG)
def test_what_is_wrong_with_a_path_is_one_line(write, path, parts):
    write("own_code_here", CODE)
    write("own_breaks", "1 / 0\n")
    write("own_syntax", "def reward(:\n")
    write("own_imports", "import no_such_package\n")
    for refused in (lambda: resolve(runnable(reward__kind=path)), lambda: Grader(path, workers=1)):
        with pytest.raises(UserError) as caught:
            refused()
        message = str(caught.value)
        assert message.startswith(f"reward.kind={path!r}: ") and "\n" not in message
        assert all(part in message for part in parts), message


@pytest.mark.parametrize("key", ["tree.strategy", "loss.advantage"])
def test_the_parameters_are_those_of_the_key(write, key):
    write("own_code_here", CODE)
    with pytest.raises(UserError, match=rf"{key}='own_code_here:one': one\(text\) cannot be called as one\(tree, "):
        resolve(runnable(**{key.replace(".", "__"): "own_code_here:one"}))
    resolve(runnable(**{key.replace(".", "__"): "own_code_here:any_number"}))
    resolve(runnable(reward__kind="own_code_here:optional"))


@pytest.mark.parametrize("path", ["own:", ":reward", "own r:x", "own:re w", "a:b:c", "../own:f", "own.:f", "own"])
def test_other_forms_are_names_that_there_are_not(path):
    with pytest.raises(UserError, match=r"must be one of math, .*, or module:function"):
        resolve(runnable(reward__kind=path))


def test_the_rest_of_a_kind_is_taken_from_its_module(write):
    write(
        "own_kind",
        "def first(text, reference): return 0.5\n"
        "def fast_first(text, reference): return 0.25 if text == 'fast' else None\n"
        "def unevaluated_first(text, reference): return 0.75\n"
        "def extract_answer(text): return text[:1]\n"
        "def find_statement(text): return 1\n",
    )
    with Grader("own_kind:first", workers=1) as grader:
        assert grader.grade([("fast", ""), ("slow", "")]) == [0.25, 0.5]
        assert grader.counts["fast"] == grader.counts["slow"] == 1
    with Grader("own_kind:first", workers=1, unevaluated=True) as grader:
        assert grader.grade([("fast", "")]) == [0.75]
    assert find_extractor("own_kind:first")("abc") == "a" and find_statement("own_kind:first")("abc") == 1
    assert find_extractor("no such kind") is None and find_statement("") is len


def test_a_reward_that_raises_or_leaves_the_range_is_treated_like_any(write):
    write("own_bad", "def fails(text, reference): return 1 / 0\ndef two(text, reference): return 2\n")
    with Grader("own_bad:fails", workers=1) as grader:
        assert grader.grade([("", "")]) == [0.0] and grader.counts["crashed"] == 1
    with Grader("own_bad:two", workers=1) as grader, pytest.raises(UserError, match=r"own_bad\.two.* returned 2"):
        grader.grade([("", "")])


@pytest.mark.parametrize("returned", ["None", "3", "[(0, 1)]", "[Fork(9, 1)]", "[Fork(0, -1)]", "[Fork(0, 10**6)]"])
def test_a_strategy_returns_forks(write, returned):
    write("own_forks", f"from {Fork.__module__} import Fork\ndef f(*arguments): return {returned}\n")
    responses = random_responses(3, 4)
    with pytest.raises(UserError, match=r"tree\.strategy='own_forks:f' returned .*: a strategy returns a list of Fork"):
        choose(make_tree(responses), responses, TreeOptions(strategy="own_forks:f"), None, None, ())


@pytest.mark.parametrize("returned", ["None", "tree.rewards", "1.0", "np.full(tree.response_node.shape + (1,), 1.0)"])
def test_an_advantage_has_its_shape(write, returned):
    write("own_shape", f"import numpy as np\ndef f(tree, options): return {returned}\n")
    with pytest.raises(UserError, match=r"loss\.advantage='own_shape:f' returned .*\[questions, responses, nodes\]"):
        compute_advantages("own_shape:f", make_tree(random_responses(3, 4)), AdvantageOptions())


def test_an_advantage_is_finite(write):
    code = "import numpy as np\ndef f(t, o): return np.full((*t.response_node.shape, t.node_parent.shape[1]), np.nan)\n"
    write("own_nan", code)
    with pytest.raises(UserError, match=r"loss\.advantage='own_nan:f' returned values that are not finite"):
        compute_advantages("own_nan:f", make_tree(random_responses(3, 4)), AdvantageOptions())
