"""The command that keeps problems by how often they are solved."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

from ibtpo import config as config_lib
from ibtpo.data.problems import load_problems
from ibtpo.errors import UserError
from ibtpo.evaluation import filtering, suite
from ibtpo.evaluation.files import read_benchmark
from ibtpo.evaluation.filtering import KEPT, Bounds, filter_problems
from tests.evaluation.cases import make_evaluation


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_bounds_are_included_whatever_the_rounding():
    for n in range(1, 40):
        shares = np.arange(n + 1) / n
        assert Bounds(0.2, 0.8).keep(shares).tolist() == [5 * i >= n and 5 * i <= 4 * n for i in range(n + 1)]
    assert Bounds(0, 1).keep(np.array([0.0, 1.0])).all() and not Bounds(0.5, 0.5).keep(np.array([0.4, 0.6])).any()


def test_what_is_kept_is_read_again_as_problems(tiny_config, tmp_path, capsys):
    evaluation = make_evaluation(np.random.default_rng(0), 30, 5, kind="multiple_choice")
    evaluation.problems = [dataclasses.replace(p, question=f'Wie groß ist "{p.id}"?\n') for p in evaluation.problems]
    out, config = tmp_path / "a folder" / KEPT, tiny_config(data__question_field="problem")
    filtering.write_kept(evaluation, Bounds(0.2, 0.8), str(out), config)
    shares = evaluation.correct.mean(axis=1)
    kept = [q for q in range(30) if 0.2 <= round(shares[q], 9) <= 0.8]
    assert [(r["id"], r["solved"]) for r in read(out)] == [(q, pytest.approx(shares[q])) for q in kept]
    assert 0 < len(kept) < 30
    printed = capsys.readouterr().out
    assert f"kept {len(kept)} of 30 problems, solved 20 to 80 % of 5 times" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("train on them: ")]
    arguments = [argument.removeprefix("--config.") for argument in shlex.split(line.removeprefix("train on them: "))]
    keys = dict(argument.split("=", 1) for argument in arguments)
    assert keys == {"data.source": f"jsonl:{out}", "data.question_field": "question", "reward.kind": "multiple_choice"}
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.update_from_flattened_dict(keys)
    found = load_problems(config_lib.resolve(changed).data, "train")
    assert [p.question for p in found] == [evaluation.problems[q].question for q in kept]
    assert {p.answer for p in found} == {"42"}


def test_where_no_problem_is_kept_the_bounds_are_named(tiny_config, tmp_path):
    evaluation = make_evaluation(np.random.default_rng(0), 4, 5, rate=0.0)
    with pytest.raises(UserError, match=r"none of 4 problems is solved 20 to 80 % of 5 times \(4 never"):
        filtering.write_kept(evaluation, Bounds(0.2, 0.8), str(tmp_path / KEPT), tiny_config())
    assert not (tmp_path / KEPT).exists()


def test_the_command_samples_as_training_does_and_only_once(tiny_config, tmp_path, monkeypatch, capsys):
    config = tiny_config(data__limit=12, sampling__temperature=1.3, sampling__top_k=0, eval__temperature=0.1)
    filter_problems(config, str(tmp_path), Bounds(0.25, 0.75), samples=4)
    first = read(tmp_path / KEPT)
    [folder] = [path.parent for path in tmp_path.glob("*/responses.jsonl")]
    evaluation = read_benchmark(folder)
    settings = json.loads((folder / "summary.json").read_text())["config"]
    assert settings["eval.temperature"] == 1.3 and settings["eval.top_k"] == 0 and settings["eval.samples"] == 4
    assert [p.question for p in evaluation.problems] == [p.question for p in load_problems(config.data, "train")]
    assert first == list(filtering.kept_records(evaluation, Bounds(0.25, 0.75)))
    assert {0.25 <= record["solved"] <= 0.75 for record in first} == {True} and len(first) < 12
    monkeypatch.setattr(suite, "evaluate", None)  # other bounds sample nothing
    filter_problems(config, str(tmp_path), Bounds(0, 1), samples=4)
    assert len(read(tmp_path / KEPT)) == 12 and "finished before" in capsys.readouterr().out
