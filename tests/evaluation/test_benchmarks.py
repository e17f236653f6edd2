"""Benchmarks are loaded, measured and tried before anything is sampled."""

import json
from concurrent.futures import Future

import pytest

from ibtpo.data.problems import Problem
from ibtpo.data.tokenizer import load_tokenizer
from ibtpo.errors import UserError
from ibtpo.evaluation.benchmarks import check_grading, load_benchmarks, source_name
from ibtpo.rewards.pool import Grader


def test_a_reference_that_cannot_be_graded_is_found_first(benchmarks):
    with Grader(workers=1) as grader:
        check_grading(benchmarks, grader)
        for name, answer, message in (
            ("gsm8k", " ", "gsm8k, id 9: the reference answer is empty"),
            ("gpqa_diamond", "Z", "gpqa_diamond, id 9: .*letter"),
            ("ifeval", '{"instruction_id_list": ["no:such"], "kwargs": [{}]}', "ifeval, id 9: .*no:such"),
        ):
            broken = Problem(9, "Why?", answer, benchmarks[name][0].kind)
            with pytest.raises(UserError, match=message):
                check_grading(benchmarks | {name: [*benchmarks[name], broken]}, grader)


def test_workers_that_cannot_start_are_found_first(benchmarks, monkeypatch):
    class Broken:
        def submit(self, text, reference, kind=None):
            future = Future()
            if text:
                future.set_exception(RuntimeError("no grading worker could be started"))
            return future

    with pytest.raises(UserError, match="no grading worker"):
        check_grading(benchmarks, Broken())


def test_every_benchmark_is_loaded_before_one_is_sampled(tiny_config, tiny_tokenizer_dir, tmp_path):
    fields = {"gsm8k": {"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}}
    fields["aime_2025"] = {"problem": "What is 1 + 3? " + "Think hard. " * 20, "answer": "4"}
    names = {"gsm8k": "gsm8k_test.jsonl", "aime_2025": "aime_2025.jsonl"}
    for name, record in fields.items():
        (tmp_path / names[name]).write_text(json.dumps(record) + "\n")

    def load(benchmarks, **changes):
        files = dict(data__files=str(tmp_path), data__dir=str(tmp_path / "tfds"), data__check_rows=False)
        return load_benchmarks(tiny_config(eval__benchmarks=benchmarks, **files, **changes), tokenizer)

    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    found = load("aime_2025, gsm8k", data__max_prompt_tokens=400, train__row_tokens=0)
    assert [(name, [p.answer for p in problems]) for name, problems in found.items()] == [
        ("aime_2025", ["4"]),
        ("gsm8k", ["3"]),
    ]
    with pytest.raises(UserError, match=r"aime_2025: 1 of 1 prompts .*max_prompt_tokens=64: set it to \d"):
        load("gsm8k,aime_2025")
    with pytest.raises(UserError, match=r"benchmark amc_2023: .*has no files"):
        load("gsm8k,amc_2023")


@pytest.mark.parametrize(
    "source, name",
    [
        ("tfds:chained_arithmetic", "chained_arithmetic"),
        ("jsonl:/data/problems_{split}.jsonl", "problems"),
        ("parquet:mine.parquet", "mine"),
        ("jsonl:data/{split}.jsonl", "problems"),
        ("jsonl:~/sets/mine_*.jsonl", "mine"),
        ("jsonl:~/sets/[ab]*", "ab"),
        ("parquet:sets/*.parquet", "problems"),
        ("jsonl:~/sets", "sets"),
    ],
)
def test_results_of_a_source_are_called_by_its_file(source, name):
    assert source_name(source) == name
