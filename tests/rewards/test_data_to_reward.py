"""Every real problem from its file to the reward: read, its reference extracted, answered as published, graded."""

import json
import re

import pytest
from ml_collections import ConfigDict

from configs import base
from ibtpo.data.problems import load_problems
from ibtpo.rewards.pool import Grader

# file: (rows, question, answer and its pattern; the field with the published solution, or the phrasing of an answer)
FILES = {
    "gsm8k_train": (7473, "question", "answer", r"####\s*(.+)", "answer"),
    "gsm8k_test": (1319, "question", "answer", r"####\s*(.+)", "answer"),
    "math500_test": (500, "problem", "answer", "", "solution"),
    "math4500_train": (4500, "problem", "solution", "boxed", "solution"),
    "aime24_test": (30, "problem", "answer", "", r"Hence it is \boxed{%s}."),
    "aime25_test": (30, "problem", "answer", "", r"**Answer:** $%s$"),
    "amc23_test": (40, "problem", "answer", "", "The answer is %s."),
}


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, timeout=60.0) as grader:  # nothing here is hostile, however busy the machine
        yield grader


@pytest.mark.parametrize("name", FILES)
def test_every_published_answer_is_right(shared_data, grader, name):
    rows, question, answer, pattern, published = FILES[name]
    path = shared_data / f"{name}.jsonl"
    data = ConfigDict(base.get_config().data)
    data.source, data.question_field, data.answer_field, data.answer_pattern = (
        f"jsonl:{path}",
        question,
        answer,
        pattern,
    )
    problems = load_problems(data, "test")
    assert len(problems) == rows
    with path.open() as file:
        records = [json.loads(line) for line in file]
    texts = [published.replace("%s", p.answer) if "%s" in published else records[p.id][published] for p in problems]
    futures = [grader.submit(text, p.answer, p.kind or None) for text, p in zip(texts, problems)]
    wrong = [text for text, future in zip(texts, futures) if future.result() != 1.0]
    planted = [grader.submit(rf"{t} \boxed{{{p.answer} + 12345}}", p.answer) for t, p in zip(texts[:10], problems)]
    assert [future.result() for future in planted] == [0.0] * len(planted)
    # One of MATH's solutions says "3 or 2/5" of a problem with two solutions; in a response that would be hedging.
    hedged = [text for text in wrong if re.search(r"\}\$ or \$\\boxed\{", text)]
    assert wrong == hedged and len(wrong) == (name == "math4500_train"), wrong
