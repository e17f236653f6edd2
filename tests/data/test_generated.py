"""The generated tasks as TFDS data sets: disjoint splits, stable content, prepared once however many ask."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ibtpo import choices
from ibtpo.data import countdown, generated
from ibtpo.data.arithmetic import Difficulty
from ibtpo.data.generated import TASKS, ChainedArithmetic, Countdown, GeneratedConfig, Navigation
from ibtpo.data.problems import load_problems
from ibtpo.errors import UserError

DIFFICULTIES = ("easy", "normal", "hard")  # of every task
_SPLITS = ("train", "validation", "test")


def _small(task=ChainedArithmetic) -> GeneratedConfig:
    sizes = {"train": 30, "validation": 5, "test": 8}
    return GeneratedConfig(name="small", difficulty=task.difficulties["easy"], split_sizes=sizes)


def test_every_name_leads_to_its_task():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in choices.GENERATED}
    assert all({"easy", "normal", "hard"} <= set(task.difficulties) for task in TASKS.values())


@settings(max_examples=5)
@given(st.sampled_from(sorted(TASKS)), st.sampled_from(DIFFICULTIES), st.integers(1, 150))
def test_splits_share_no_problem_and_repeat_none(task, difficulty, size):
    task = TASKS[task]
    questions = {
        (other, split): [p.question for p in task.draw_split(task.difficulties[other], split, size)]
        for split in _SPLITS
        for other in (difficulty, "normal")
    }
    for drawn in questions.values():
        assert len(set(drawn)) == len(drawn) == size
    # Not even between difficulties, so a model trained on one may be evaluated on another.
    split_sets = [set(questions[difficulty, split]) | set(questions["normal", split]) for split in _SPLITS]
    assert len(set().union(*split_sets)) == sum(map(len, split_sets))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_longer_split_begins_with_the_shorter_one(task):
    draw = lambda size: list(task.draw_split(task.difficulties["hard"], "test", size))  # noqa: E731
    assert draw(20)[:7] == draw(7)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_difficulty_holds_its_splits(task):
    for difficulty in task.difficulties.values():
        for split, size in generated.SPLIT_SIZES.items():
            assert sum(1 for _ in task.draw_split(difficulty, split, size)) == size


def test_content_belongs_to_the_version():
    """Prepared copies are reused by version: whoever changes the problems drawn must raise VERSION too."""
    first = lambda task, name: next(iter(task.draw_split(task.difficulties[name], "test", 1)))  # noqa: E731
    assert {str(task.VERSION) for task in TASKS.values()} == {"1.0.0"}
    drawn = {name: first(ChainedArithmetic, name) for name in DIFFICULTIES}
    assert {name: (p.question, p.answer) for name, p in drawn.items()} == {
        "easy": ("Start with 6. Multiply by 2. Multiply by 2.", "24"),
        "normal": ("Start with 44. Subtract 1. Add 23. Subtract 24. Multiply by 3. Add 18.", "144"),
        "hard": (
            "Start with 34. Subtract 33. Subtract 1. Add 63. Multiply by 6. Multiply by 2. Subtract 25. Add 1.",
            "732",
        ),
    }
    assert {name: first(Navigation, name).question for name in DIFFICULTIES} == {
        "easy": "From B2 to E5. Blocked: B5 C2 C4.",
        "normal": "From D1 to G7. Blocked: E3 F7 G5.",
        "hard": "From B1 to G6. Blocked: B6 C4 D1 D4 E3 E6 G5.",
    }
    assert {name: first(Countdown, name).question for name in DIFFICULTIES} == {
        "easy": "Numbers: 21 31 36. Target: 46.",
        "normal": "Numbers: 7 17 19 20. Target: 63.",
        "hard": "Numbers: 4 18 26 32. Target: 54.",
    }
    assert first(ChainedArithmetic, "long").answer == "192"


def test_too_narrow_ranges_are_an_error(monkeypatch):
    monkeypatch.setattr(generated, "_MAX_MISSES", 1000)
    narrow = Difficulty(1, 1, max_start=3, max_operand=2, max_multiplier=2)
    with pytest.raises(ValueError, match=r"different problems for split 'train'"):
        list(ChainedArithmetic.draw_split(narrow, "train", 100))


def test_solutions_go_on_when_the_problems_are_used_up(monkeypatch):
    """A stream that took each problem once would draw ever longer for the last ones."""
    narrow = countdown.Difficulty(3, max_number=6, max_target=30, min_chance=0.05, max_chance=1.0)
    monkeypatch.setitem(Countdown.difficulties, "narrow", narrow)
    draws, make = [], Countdown.make_problem
    monkeypatch.setattr(Countdown, "make_problem", staticmethod(lambda *given: draws.append(1) or make(*given)))
    stream = Countdown.solutions("narrow", np.random.default_rng(0), 0.0)
    questions = [problem.question for problem, _ in itertools.islice(stream, 1_000)]
    different = set(questions)
    assert len(different) < 300 and len(draws) < 10_000
    assert max(map(questions.count, different)) <= 2 * 1_000 / len(different)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_prepared_examples_are_those_drawn_in_order(task, tmp_path):
    config = _small(task)
    for _ in range(2):  # generated, then read again
        builder = task.prepare(config, str(tmp_path))
        assert {split: info.num_examples for split, info in builder.info.splits.items()} == config.split_sizes
        for split, size in config.split_sizes.items():
            examples = [(e["question"].decode(), e["answer"].decode()) for e in builder.as_data_source(split)]
            drawn = task.draw_split(config.difficulty, split, size)
            assert examples == [(p.question, p.answer) for p in drawn]


def test_several_may_prepare_at_once(tmp_path, monkeypatch):
    """Three builders generate side by side before any of them finishes; all end with the same data."""
    num = 3
    barrier = threading.Barrier(num, timeout=30)
    original = ChainedArithmetic._generate_examples

    def meet(self, split):
        barrier.wait()
        yield from original(self, split)

    monkeypatch.setattr(ChainedArithmetic, "_generate_examples", meet)
    results: list = [None] * num

    def work(index):
        try:
            builder = ChainedArithmetic.prepare(_small(), str(tmp_path))
            results[index] = [e["question"] for e in builder.as_data_source("train")]
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [p.question.encode() for p in ChainedArithmetic.draw_split(_small().difficulty, "train", 30)]
    assert results == [expected] * num
    assert not list(tmp_path.glob("**/incomplete*"))


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        ChainedArithmetic.prepare(_small(), str(tmp_path / "file"))


def test_the_whole_data_set_without_tensorflow(tmp_path):
    """As a run uses it, in a fresh process: quick, without TensorFlow and without warnings."""
    script = (
        "import sys, warnings; warnings.simplefilter('error', UserWarning)\n"
        "from ibtpo.data.generated import ChainedArithmetic as c\n"
        "print([len(c.load('normal', s, sys.argv[1])) for s in ('train', 'validation', 'test', 'train[:10]')])\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[20000, 512, 1024, 10]"
    assert "WARNING" not in done.stderr

    config = ConfigDict(
        dict(source="tfds:chained_arithmetic", dir=str(tmp_path), difficulty="normal", limit=50, prompt="{question}")
    )
    problems = load_problems(config, "test")
    drawn = ChainedArithmetic.draw_split(ChainedArithmetic.difficulties["normal"], "test", 50)
    assert [(p.id, p.question, p.answer) for p in problems] == [(i, d.question, d.answer) for i, d in enumerate(drawn)]
    with pytest.raises(UserError, match=r"no split 'dev'.*'test', 'train', 'validation'"):
        load_problems(config, "dev")
    config.difficulty = "impossible"
    with pytest.raises(UserError, match=r"unknown data.difficulty 'impossible'"):
        load_problems(config, "test")


@pytest.mark.parametrize("task", [Navigation, Countdown], ids=["navigation", "countdown"])
def test_a_task_is_a_source_with_a_reward_of_its_own(task, tmp_path, monkeypatch):
    builder = task.prepare(_small(task), str(tmp_path))  # as a run does, but fewer
    monkeypatch.setattr(task, "prepare", lambda *_: builder)
    config = ConfigDict(
        dict(source=f"tfds:{task.name}", dir=str(tmp_path), difficulty="easy", limit=0, prompt="{question}")
    )
    problems = load_problems(config, "test")
    drawn = task.draw_split(task.difficulties["easy"], "test", 8)
    assert [(p.question, p.answer, p.kind) for p in problems] == [(d.question, d.answer, task.name) for d in drawn]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_an_unknown_difficulty_is_named(task, tmp_path):
    with pytest.raises(UserError, match=r"unknown data.difficulty 'harder'.*easy.*hard.*normal"):
        task.load("harder", "train", str(tmp_path))
