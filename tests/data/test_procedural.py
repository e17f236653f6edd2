"""Tasks of reasoning-gym: splits that share no question, the task's own scorer in workers, and what is wrong with them.

The package is not one of the tests' requirements (it brings ten others): a small module plays it, and where it is
installed the same is tried with it.
"""

import importlib.util
import json
import sys

import pytest

from ibtpo.config import ConfigError, resolve
from ibtpo.data import procedural
from ibtpo.data.problems import load_problems
from ibtpo.errors import UserError
from ibtpo.rewards import find_extractor, find_statement, reasoning_gym, show_reference
from ibtpo.rewards.pool import Grader
from tests.config_cases import runnable

FACTORY = '''
import fractions, random

class Task:
    def __init__(self, seed, size, most=10**6, odd=False):
        assert most > 0, "most must be positive"
        self.seed, self.size, self.most, self.odd = seed, size, most, odd
    def __getitem__(self, index):
        rng = random.Random(self.seed + index)
        a, b = rng.randrange(self.most), rng.randrange(self.most)
        meta = {"pair": (a, b)}
        if self.odd:
            meta["half"] = fractions.Fraction(a, 2)
        return {"question": f"What is {a} + {b}?", "answer": str(a + b), "metadata": meta}
    def score_answer(self, answer, entry):
        if answer == "raise":
            raise RuntimeError("a form that the scorer does not know")
        a, b = entry["metadata"]["pair"]
        assert isinstance(entry["metadata"]["pair"], tuple)
        if answer in ("nan", "inf", "-1", "7e9"):
            return float(answer)
        return 1.0 if answer == str(a + b) else 0.25 if answer.isdecimal() else 0

DATASETS = {"sums": (Task, None), "sums_of_few": (Task, None)}

def create_dataset(name, **options):
    return DATASETS[name][0](**options)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module that plays reasoning_gym, also for grading workers."""
    place = tmp_path / "packages"
    (place / "reasoning_gym").mkdir(parents=True)
    (place / "reasoning_gym" / "factory.py").write_text(FACTORY)
    (place / "reasoning_gym" / "__init__.py").write_text("from .factory import create_dataset\n")
    (place / "reasoning_gym-9.9.dist-info").mkdir()
    (place / "reasoning_gym-9.9.dist-info" / "METADATA").write_text("Name: reasoning-gym\nVersion: 9.9\n")
    _forget()
    monkeypatch.syspath_prepend(place)
    yield place
    _forget()


def _forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        del sys.modules[name]
    reasoning_gym._task.cache_clear()
    reasoning_gym._entry.cache_clear()


def answered(answer):
    return f"I add.\n\n<answer>{answer}</answer>"


def test_problems_follow_from_the_seed_and_no_question_is_in_two_splits(package, data_config, monkeypatch):
    monkeypatch.setattr(procedural, "GENERATED", 3000)
    config = data_config(source="reasoning_gym:sums", options='{"most": 30}')  # 900 questions, each some times
    splits = {split: load_problems(config, split) for split in procedural.SHARES}
    questions = {split: [problem.question for problem in problems] for split, problems in splits.items()}
    train, validation, test = (set(questions[split]) for split in ("train", "validation", "test"))
    assert not train & test and not train & validation and not validation & test
    assert len(test) == len(questions["test"]) > 20 and len(validation) == len(questions["validation"]) > 10
    assert len(train) > 700 and len(questions["train"]) > 2500
    assert {(p.kind, p.prompt) for p in splits["test"]} == {("reasoning_gym", procedural.PROMPT)}
    assert [p.id for p in splits["test"]] == list(range(len(splits["test"])))
    # Read again, and made again elsewhere.
    assert load_problems(config, "test") == splits["test"]
    config.dir += "2"
    assert load_problems(config, "train") == splits["train"]
    config.options = '{"most": 30, "seed": 1}'
    assert load_problems(config, "train") != splits["train"]
    config.limit = 7
    assert len(load_problems(config, "train")) == 7 and len(load_problems(config, "test")) == 7


@pytest.mark.parametrize("odd", [False, True])
def test_the_tasks_own_scorer_is_the_reward_in_workers(odd, package, data_config):
    """With an entry that is kept, or made again where no literal stands for it."""
    config = data_config(source="reasoning_gym:sums", options=json.dumps({"odd": odd}), limit=3)
    problem = load_problems(config, "train")[1]
    assert bool(json.loads(problem.answer)["entry"]) is not odd
    assert show_reference("reasoning_gym", problem.answer) == json.loads(problem.answer)["answer"]
    right = str(sum(int(x) for x in problem.question[8:-1].split(" + ")))
    cases = {
        answered(right): 1.0,
        answered(f" {right}\n"): 1.0,
        answered("12345"): 0.25,
        answered("word"): 0.0,
        f"so \\boxed{{{right}}}": 1.0,
        f"{answered('3')} or rather {answered(right)}": 1.0,
        f"{answered(right)} or rather {answered('none')}": 0.0,
        f"<think>{answered(right)}</think> I do not know": 0.0,
        f"<think>{answered(right)}": 0.0,
        f"The answer is {right}": 0.0,
        answered(""): 0.0,
        answered("raise"): 0.0,
        answered("nan"): 0.0,
        answered("-1"): 0.0,
        answered("7e9"): 1.0,
        answered("9" * 50_000): 0.0,
        answered("__import__('os').system('true')"): 0.0,
        answered("open('x')"): 0.0,
        "": 0.0,
    }
    with Grader("reasoning_gym", workers=1) as grader:
        found = grader.grade([(text, problem.answer) for text in cases])
        counts = grader.counts
    assert dict(zip(cases, found)) == cases
    assert counts["crashed"] == counts["timeout"] == 0 and counts["fast"] == 8


def test_what_a_response_states():
    extract = find_extractor("reasoning_gym")
    assert extract(answered("a b")) == "a b" and extract("x") is None and extract("<answer> </answer>") is None
    assert extract(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    stated = find_statement("reasoning_gym")
    assert stated("ab <answer>") == 3 and stated("ab \\boxed{") == 3 and stated("abc") == 3
    assert stated("<think><answer>1</answer></think>ok") == len("<think><answer>1</answer></think>ok")


@pytest.mark.parametrize(
    ("source", "options", "split", "words"),
    [
        ("smus", "", "train", r"no task of this name; did you mean 'sums'\?"),
        ("xxxxxxxx", "", "train", r"no task of this name: it has sums, sums_of_few"),
        ("sums", '{"mots": 3}', "train", r"data\.options='\{\"mots\": 3\}' \(TypeError: .*mots.*\): set the"),
        ("sums", '{"most": -1}', "train", r"\(AssertionError: most must be positive\)"),
        ("sums", '{"most": 1}', "test", r"split 'test': none of its first 22,000 questions"),
        ("sums", "", "train[:5]", r"no split 'train\[:5\]': use one of test, validation, train"),
    ],
)
def test_what_is_wrong_is_one_line(source, options, split, words, package, data_config):
    with pytest.raises(UserError, match=words) as error:
        load_problems(data_config(source=f"reasoning_gym:{source}", options=options), split)
    assert str(error.value).startswith(f"data.source=reasoning_gym:{source}") and "\n" not in str(error.value)


def test_without_the_package_it_is_said_before_anything_is_loaded(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "reasoning_gym" else found(name))
    with pytest.raises(UserError, match=r'reasoning_gym:x: .* not installed: pip install "ibtpo\[reasoning'):
        procedural.check_installed("reasoning_gym:x")
    procedural.check_installed("tfds:gsm8k")
    reasoning_gym.load()  # of every pool of workers


def test_a_reference_of_another_kind_and_a_task_that_changed_are_refused(package, data_config):
    with pytest.raises(UserError, match=r"none of reasoning_gym: set reward\.kind"):
        reasoning_gym.fast_reward(answered("1"), "17")
    config = data_config(source="reasoning_gym:sums", options='{"odd": true}', limit=1)
    [problem] = load_problems(config, "train")
    changed = json.loads(problem.answer) | {"index": 5}
    with pytest.raises(UserError, match="makes another problem 5 than it did"):
        reasoning_gym.reward(answered("1"), json.dumps(changed))


@pytest.mark.parametrize(("key", "value"), [("source", "reasoning_gym:a-b"), ("options", "[1]"), ("options", "{")])
def test_rules(key, value):
    with pytest.raises(ConfigError, match=rf"data\.{key}='"):
        resolve(runnable(**{f"data__{key}": value}))
    resolve(runnable(data__source="reasoning_gym:chain_sum", data__options='{"min_terms": 3}'))


def test_the_real_package(data_config):
    pytest.importorskip("reasoning_gym")
    for name, options in (("chain_sum", '{"min_terms": 2}'), ("knights_knaves", ""), ("rubiks_cube", "")):
        config = data_config(source=f"reasoning_gym:{name}", options=options, limit=5)
        problems = load_problems(config, "train")
        assert len(problems) == 5
        task = procedural.make_task(name, options)
        for problem in problems:
            entry = procedural.read_reference(problem.answer).find_entry(task)
            answer = str(entry["answer"])  # some tasks know none: any that the scorer finds right is
            assert reasoning_gym.reward(answered(answer), problem.answer) == task.score_answer(answer, entry)
