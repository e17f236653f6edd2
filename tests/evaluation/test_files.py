"""The files of an evaluation are read back, and a broken one is named."""

import json

import numpy as np
import pytest

from ibtpo.errors import UserError
from ibtpo.evaluation import files
from tests.evaluation.cases import assert_equal, make_evaluation, make_instructions


def test_every_response_is_a_line_and_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    for evaluation in (make_evaluation(rng), make_instructions(rng)[0]):
        path = tmp_path / "responses.jsonl"
        files.write_responses(evaluation, path)
        # One line each, in any reading of "line": separators of lines within texts are escaped.
        lines = path.read_bytes().decode("ascii").splitlines()
        assert len(lines) == evaluation.correct.size
        first = json.loads(lines[0])
        assert {"id", "question", "answer", "kind", "sample", "response", "extracted", "correct"} <= first.keys()
        assert {"tokens", "truncated"} <= first.keys() and type(first["correct"]) is bool
        found = files.read_responses(path, evaluation.generated_tokens)
        assert_equal(found, evaluation)
        assert found.summary() == evaluation.summary()


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "responses.jsonl"
    evaluation = make_evaluation(np.random.default_rng(0), 2, 2)
    files.write_responses(evaluation, path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(UserError, match=r"responses.jsonl, line 4 is no response"):
        files.read_responses(path)
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(UserError, match=r"questions have \[1, 2\] responses"):
        files.read_responses(path)
    path.write_text("")
    with pytest.raises(UserError, match="at least one"):
        files.read_responses(path)
    path.unlink()
    with pytest.raises(UserError, match=r"responses.jsonl is not there"):
        files.read_responses(path)
    with pytest.raises(UserError, match=r"summary.json is not there"):
        files.read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        files.read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(UserError, match="is no summary"):
        files.read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="is no summary of a benchmark"):
        files.read_benchmark(tmp_path)


def test_a_file_is_there_complete_or_not_at_all(tmp_path):
    evaluation = make_evaluation(np.random.default_rng(0), 3, 2)
    evaluation.lengths = evaluation.lengths.astype(object)
    evaluation.lengths[2, 1] = "no number"
    with pytest.raises(ValueError):
        files.write_responses(evaluation, tmp_path / "responses.jsonl")
    assert not (tmp_path / "responses.jsonl").exists()
