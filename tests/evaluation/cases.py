"""Made-up evaluations, with texts that would break files or pages if they could."""

import itertools
import json

import numpy as np

from ibtpo.data.problems import Problem
from ibtpo.evaluation.results import Evaluation
from ibtpo.rewards import instructions

HOSTILE = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "lone \ud800 and \udfff surrogates",
    "lines \u2028 and \u2029, \u202e turned round, \0 nothing, \x1b[31m red",
    '{{ 7 * 7 }} {% raw %} ${7*7} "quoted" \\u003c <!-- &lt;',
    "",
]


def make_evaluation(rng, num_questions=20, num_samples=4, *, rate=None, ids=None, kind="math"):
    """Made-up responses, of which about `rate` are right; hostile texts among them."""
    ids = range(num_questions) if ids is None else ids
    rate = rng.random(num_questions) if rate is None else np.full(num_questions, rate)
    correct = (rng.random((num_questions, num_samples)) < rate[:, None]).astype(float)
    wrong = rng.choice(["7", "8", ""], correct.shape)
    return Evaluation(
        problems=[Problem(id, f"What is {id}? {HOSTILE[id % len(HOSTILE)]}", "42", kind) for id in ids],
        correct=correct,
        answers=[["42" if c else w or None for c, w in zip(*row)] for row in zip(correct, wrong)],
        texts=[[HOSTILE[(q + i) % len(HOSTILE)] for i in range(num_samples)] for q in range(num_questions)],
        lengths=rng.integers(1, 100, correct.shape),
        truncated=rng.random(correct.shape) < 0.2,
        generated_tokens=1234,
    )


def make_instructions(rng, num_questions=12, num_samples=3):
    """An evaluation of instruction following, graded by `rewards.instructions`."""
    known = [
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
        ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}),
    ]
    texts = [
        "*one, two*",
        "Intro,\nthe cat sat on the mat",
        "a dog, a cat and a bird",
        "no",
        "The end\nof it all is here",
    ]
    problems = []
    for id in range(num_questions):
        chosen = [known[i] for i in rng.permutation(3)[: 1 + id % 3]]
        reference = {"instruction_id_list": [n for n, _ in chosen], "kwargs": [a for _, a in chosen], "prompt": "?"}
        problems.append(Problem(id, f"Write {id}", json.dumps(reference), "instructions"))
    responses = [[str(rng.choice(texts)) for _ in range(num_samples)] for _ in problems]
    checked = [[instructions.check(text, p.answer) for text in row] for p, row in zip(problems, responses)]
    shape = (num_questions, num_samples)
    evaluation = Evaluation(
        problems=problems,
        correct=np.array([[float(all(found["strict"])) for found in row] for row in checked]),
        answers=[[None] * num_samples for _ in problems],
        texts=responses,
        lengths=rng.integers(1, 50, shape),
        truncated=np.zeros(shape, bool),
        generated_tokens=99,
        followed={mode: [np.array([found[mode] for found in row]) for row in checked] for mode in ("strict", "loose")},
    )
    return evaluation, list(itertools.chain(*checked))


def instruction_accuracies(verdicts: list[dict[str, list[bool]]]) -> dict[str, float]:
    """IFEval's four figures of `instructions.check` results, as they are defined: a prompt is followed if all of its
    instructions are; an instruction counts once for each response."""
    result = {}
    for mode in ("strict", "loose"):
        result[f"prompt_{mode}"] = float(np.mean([all(found[mode]) for found in verdicts]))
        result[f"instruction_{mode}"] = float(np.mean([one for found in verdicts for one in found[mode]]))
    return result


def assert_equal(one, other):
    """Two evaluations of the same responses."""
    assert one.problems == other.problems and one.answers == other.answers and one.texts == other.texts
    for name in ("correct", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.followed.keys() == other.followed.keys()
    for mode, verdicts in one.followed.items():
        assert all(np.array_equal(a, b) for a, b in zip(verdicts, other.followed[mode], strict=True))


def read_lines(folder, name):
    """The responses that were written of a benchmark."""
    return [json.loads(line) for line in (folder / name / "responses.jsonl").open()]
