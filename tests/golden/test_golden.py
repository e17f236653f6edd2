"""The golden trees against the code and against slow oracles, and the one that is worked out by hand."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from ibtpo.advantages import ADVANTAGES
from tests.golden import make
from tests.test_advantages import ORACLES
from tests.tree_cases import nested, node_of_step, obvious_confidence, obvious_values, paths, to_jax

FILES = sorted(path.stem for path in make.FOLDER.glob("*.json"))


def load(name):
    return json.loads((make.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def wanted(file):
    """What `make.outputs_of` computes, as the file has it."""
    scores = [{key: np.asarray(s[key]) for key in ("values", "eta1", "eta2", "J", "cov")} for s in file["scores"]]
    return dict(scores=scores, advantages={name: np.asarray(a) for name, a in file["advantages"].items()})


def test_every_tree_has_its_file_and_every_advantage_its_numbers():
    assert FILES == sorted(make.TREES)
    for name in FILES:
        file = load(name)
        title, drafts, sizes = make.TREES[name]
        assert file["title"] == title and file["padded_to"] == sizes
        assert file["questions"] == [make.question_of(make.PROMPT, d) for d in drafts]
        assert list(file["advantages"]) == list(ADVANTAGES)
        assert [{k: s[k] for k in make.SCORE_OPTIONS[0]} for s in file["scores"]] == make.SCORE_OPTIONS


@pytest.mark.parametrize("name", FILES)
def test_code_reproduces_the_file_in_float64(name):
    file = load(name)
    tree = make.batch_of(file["questions"], file["padded_to"])
    for field, value in file["tree"].items():
        np.testing.assert_allclose(np.asarray(getattr(tree, field), float), value, rtol=0, atol=1e-12, err_msg=field)
    found = make.outputs_of(tree)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), found, wanted(file))


def test_code_reproduces_the_files_in_float32_under_jit():
    # One program for all of them: the trees of every file, padded to the largest.
    files = [load(name) for name in FILES]
    questions = [question for file in files for question in file["questions"]]
    largest = [max(np.shape(f["tree"][field])[1] for f in files) for field in ("tokens", "node_parent", "rewards")]
    sizes = dict(zip(("num_tokens", "num_nodes", "num_responses"), largest))
    found = jax.jit(make.outputs_of)(to_jax(make.batch_of(questions, sizes, np.float32)))
    begin = 0
    for file in files:
        part = slice(begin, begin := begin + len(file["questions"]))

        def compare(seen, expected, part=part):
            seen = seen[part][tuple(slice(n) for n in expected.shape)]
            assert seen.dtype == np.float32
            np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)

        jax.tree.map(compare, found, wanted(file))


@pytest.mark.parametrize("name", FILES)
def test_file_equals_the_obvious_version(name):
    """Values, confidences, scores and advantages from the lists of responses alone, padding included."""
    file = load(name)
    for q, question in enumerate(file["questions"]):
        responses = make.responses_of(question)
        ids = {None: 0, **node_of_step(make.tree_of(question), responses)}
        for score in file["scores"]:
            check_score({key: x[q] if isinstance(x, list) else x for key, x in score.items()}, responses, ids)
        for method, advantages in file["advantages"].items():
            expected = np.zeros(np.shape(advantages[q]))
            oracle = ORACLES[method](responses, make.advantage_options())
            for r, path in enumerate(paths(responses)):
                for s in path:
                    expected[r, ids[s]] = oracle(r, s)
            np.testing.assert_allclose(advantages[q], expected, atol=1e-12, err_msg=method)


def check_score(score, responses, ids):
    values = obvious_values(responses, value=score["value"], root=score["root"])
    sure = obvious_confidence(responses, confidence=score["confidence"])
    children, through = nested(responses)
    size = len(score["J"])
    expected = {key: np.zeros(size) for key in ("values", "eta1", "J", "cov")} | dict(eta2=np.ones(size))
    for s, below in children.items():
        expected["values"][ids[s]] = values[s]
        for c in below:
            ratio = values[c] / values[s] if values[s] > 0 else 1.0
            expected["eta1"][ids[c]] = ratio ** score["ratio_power"] - (1 + 1 / score["beta"])
            expected["eta2"][ids[c]] = sure[c]
        if below:
            at = [ids[c] for c in below]
            a, b = expected["eta1"][at], expected["eta2"][at]
            times = [len(through[c]) if score["child_weight"] == "responses" else 1 for c in below]
            expected["J"][ids[s]] = 1 + score["beta"] * np.average(a * b, weights=times)
            expected["cov"][ids[s]] = np.cov(a, b, ddof=0, fweights=times)[0, 1]
    for key, x in expected.items():
        np.testing.assert_allclose(score[key], x, atol=1e-12, err_msg=key)


def test_the_tree_worked_out_by_hand():
    """The figures of README.md."""
    file = load("one_fork")
    assert file["tree"]["node_parent"] == [[-1, 0, 1, 1, 0]]
    assert file["tree"]["subtree_end"] == [[11, 11, 11, 9, 9, 7, 7, 9, 9, 11, 11]]
    paper = file["scores"][0]
    expected = dict(
        values=[1 / 3, 1 / 2, 1, 0, 0],
        eta1=[0, 0.3, 0.8, -1.2, -1.2],
        eta2=[1, 1 / 2, 1 / 2, 1 / 4, 1 / 4],
        J=[0.625, 1.25, 0, 0, 0],
        cov=[0.09375, 0.125, 0, 0, 0],
    )
    for key, x in expected.items():
        np.testing.assert_allclose(paper[key], [x], atol=1e-12, err_msg=key)
    step = np.array([0, 1 / np.sqrt(8) + 0.015, np.sqrt(2) + 0.04, -np.sqrt(0.5) - 0.03, -np.sqrt(0.5) - 0.03])
    path = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 1], [1, 1, 0, 1, 0]])
    np.testing.assert_allclose(file["advantages"]["ibtpo"], [path * step], atol=1e-12)
    by_responses = file["scores"][16]
    assert by_responses["child_weight"] == "responses"
    np.testing.assert_allclose(by_responses["J"], [[1, 1.25, 0, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(by_responses["cov"], [[1 / 12, 0.125, 0, 0, 0]], atol=1e-12)
    root = {(s["value"], s["root"]): s["J"][0][0] for s in file["scores"][:16:4]}
    np.testing.assert_allclose(
        [root["leaf_mean", "initial"], root["backup", "all"], root["backup", "initial"]], [0, 1.25, 0], atol=1e-12
    )
