"""Problems of three kinds for the tests of evaluation."""

import json

import pytest

from ibtpo.data.problems import Problem


@pytest.fixture
def benchmarks():
    """Three sets of the same questions, which the tiny model can answer, graded in three ways."""
    questions = [f"Start with {i}. Add {i + 1}. Multiply by 2." for i in range(4)]
    reference = {"instruction_id_list": ["punctuation:no_comma", "keywords:frequency"], "prompt": ""}
    reference["kwargs"] = [{}, {"keyword": "+", "frequency": 2, "relation": "less than"}]
    answers = {
        "gsm8k": ("math", [str(2 * (2 * i + 1)) for i in range(4)]),
        "gpqa_diamond": ("multiple_choice", ["A"] * 4),
        "ifeval": ("instructions", [json.dumps(reference)] * 4),
    }
    return {
        name: [Problem(i, q, a, kind) for i, (q, a) in enumerate(zip(questions, references))]
        for name, (kind, references) in answers.items()
    }
