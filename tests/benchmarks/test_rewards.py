"""Hostile answers, a few by default and 100,000 in the slow tests; and the watch that finds them out."""

import os

import pytest

from benchmarks import hostile_answers
from benchmarks import rewards as benchmark
from ibtpo.rewards import KINDS
from ibtpo.rewards.math import BOX


@pytest.fixture(autouse=True)
def without_its_kind():
    """The benchmark's own kind of reward does not outlive a test."""
    yield
    KINDS.pop("hostile", None)


def run(count, **changes):
    figures, goals = benchmark.hostile(count, print, **changes)
    assert figures["counts"]["graded"] == sum(figures["kinds"].values()) == count
    missed = [goal for goal in goals if not goal["met"] and "seconds" not in goal["name"]]  # wall-clock is no fact
    assert not missed and not figures["broken_out"], (missed, figures)
    return figures


def test_hostile_answers_are_graded_and_touch_nothing():
    figures = run(320, bombs=False, seed=1)
    assert set(figures["kinds"]) == {"grammar", "damaged", "unicode", "injection"}
    assert figures["counts"]["slow"] > 80 and figures["counts"]["fast"] > 50


@pytest.mark.slow
def test_a_hundred_thousand_hostile_answers():
    figures = run(100_000)
    assert figures["counts"]["timeout"] > 0 and figures["kinds"]["bomb"] > 20


def test_answers_are_repeatable_and_of_every_kind(tmp_path):
    first, second = (list(hostile_answers.answers(3000, seed=3, canary="c")) for _ in range(2))
    assert first == second != list(hostile_answers.answers(3000, seed=4, canary="c"))
    shares = {kind: sum(k == kind for k, _, _ in first) / 3000 for kind in hostile_answers.KINDS}
    assert all(abs(shares[kind] - share) < 0.05 for kind, share in hostile_answers.KINDS.items())
    assert len({text for _, text, _ in first}) > 2000 and sum(bool(BOX.search(text)) for _, text, _ in first) > 1000


@pytest.mark.parametrize(
    "deed",
    [
        lambda path: open(path, "w").close(),
        lambda path: open(path, "ab").close(),
        lambda path: os.system("true"),
        lambda path: os.mkdir(path),
        lambda path: os.remove(__file__ + ".none"),
        lambda path: eval("1 + 1"),
        lambda path: exec("x = 1"),
        lambda path: __import__("subprocess").Popen(["true"]).wait(),
        lambda path: __import__("socket").socket().bind(("127.0.0.1", 0)),
    ],
)
def test_the_watch_sees_what_a_text_could_do(deed, tmp_path, monkeypatch):
    def caught(text, reference):
        try:
            deed(tmp_path / "x")
        except OSError:
            pass
        return 0.0

    hostile_answers.load()
    assert hostile_answers._audited(caught, "a", "b") == hostile_answers.BROKEN_OUT
    assert hostile_answers._audited(lambda text, reference: open(__file__).close() or 1.0, "a", "b") == 1.0


def test_the_benchmarks_other_parts_on_a_few_rows(shared_data):
    for part in (benchmark.right, benchmark.speed, benchmark.agreement):
        figures, goals = part(shared_data, 10)
        assert all(goal["met"] for goal in goals if "per second" not in goal["name"]), goals
        assert figures or goals
    assert figures["answers"] == 20 and figures["agreement"] > 0.9


def test_pairs_of_gsm8k_are_right_and_wrong():
    rows = [{"answer": "3 + 4 = 7\n#### 1,007"}, {"answer": "x\n#### -3"}]
    assert benchmark.gsm8k_pairs(rows) == [("3 + 4 = 7\n", "1,007", "1,008"), ("x\n", "-3", "-2")]
