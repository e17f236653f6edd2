"""The whole path on the tiny model: prompt, trees, scores, update, checkpoint, evaluation, export."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from ibtpo import config as config_lib
from ibtpo import environment, metrics, saved_trees
from ibtpo import export as export_lib
from ibtpo import train as train_lib
from ibtpo import trainer as trainer_lib
from ibtpo.errors import UserError
from ibtpo.evaluation.benchmarks import load_benchmarks
from ibtpo.evaluation.checkpoint import identify, load_checkpoint
from ibtpo.evaluation.run import make_eval_sampler
from ibtpo.evaluation.suite import evaluate_benchmarks
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.metrics.meanings import find as find_meaning
from ibtpo.policy import load_policy
from ibtpo.rewards.pool import Grader
from ibtpo.token_weights import TokenWeights


def rows(workdir):
    found = list(metrics.read(workdir))
    assert {name for row in found for name in row if name != "step" and find_meaning(name) is None} == set()
    return found


def learning(row):
    """The numbers of a row that must not depend on the machine."""
    return {name: value for name, value in row.items() if not name.startswith("time/")}


@pytest.fixture(scope="module")
def finished_run(tiny_config, tmp_path_factory):
    """Four uninterrupted updates, evaluated before, in the middle and after."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_config(eval__every=2, log__trees=2, log__trees_every=3)
    train_lib.train(config, str(workdir))
    return config, workdir


def test_a_run_leaves_metrics_checkpoints_and_a_curve(finished_run):
    _config, workdir = finished_run
    training = [row for row in rows(workdir) if "train/loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(workdir) if "eval/avg_at_k" in row] == [0, 2, 4]
    assert (workdir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (workdir / "config.json").is_file()
    for row in training:
        assert row["train/kv_pages_left"] == 0
        assert row["train/skipped_updates"] == 0
        if "train/sampler_gap" in row:  # the trainer recomputes what the sampler reported
            assert row["train/sampler_gap"] < 1e-5
            assert row["train/ratio"] == pytest.approx(1, abs=1e-5)
    assert any(row["train/masked_groups"] < 1 for row in training)


def test_a_run_leaves_trees_a_report_and_a_note_of_its_machine(finished_run):
    _config, workdir = finished_run
    files = [(step, kind) for step, kind, _ in saved_trees.list_files(workdir / "trees")]
    assert files == [(0, "eval"), (2, "eval"), (3, "train"), (4, "eval"), (4, "train")]
    evaluated = [saved_trees.read_file(path) for _, kind, path in saved_trees.list_files(workdir / "trees")]
    first, last = (evaluated[i].trees for i in (0, 3))
    assert [tree["question"] for tree in first] == [tree["question"] for tree in last] and len(first) == 2
    assert all(len(tree["leaf"]) == 2 and set(tree["round"]) == {0} for tree in first)  # eval.samples
    for tree in evaluated[2].trees:
        assert len(tree["leaf"]) == 5 and max(tree["round"]) == 2 and tree["question"].startswith("Start with")
    assert "10 saved questions" in (workdir / "report.html").read_text()
    [entry] = environment.read(workdir)
    assert entry["step"] == 0 and entry["backend"] == "cpu" and entry["jax"] and "path" not in str(entry).lower()


def test_resuming_equals_not_stopping(finished_run, tiny_config, tmp_path, capsys):
    config, whole = finished_run
    half = tiny_config(eval__every=2, train__steps=2, log__trees=2, log__trees_every=3)
    train_lib.train(half, str(tmp_path))
    assert capsys.readouterr().err.count("first 12 responses: ") == 1  # the unguided ones, of the first update
    # As if it had been killed behind update 3, of which no checkpoint is left.
    (tmp_path / "trees" / "train_00000003.json.gz").write_bytes(b"of an update that is done again")
    (tmp_path / "trees" / "train_00000002.json.gz").unlink()  # the end of the half
    train_lib.train(config, str(tmp_path))
    assert "responses: " not in capsys.readouterr().err
    assert [learning(row) for row in rows(tmp_path)] == [learning(row) for row in rows(whole)]
    for _, _, path in saved_trees.list_files(whole / "trees"):
        assert (tmp_path / "trees" / path.name).read_bytes() == path.read_bytes()
    assert len(os.listdir(tmp_path / "trees")) == len(os.listdir(whole / "trees"))
    assert [entry["step"] for entry in environment.read(tmp_path)] == [0, 2]


def test_running_again_says_finished(finished_run, capsys):
    config, workdir = finished_run
    before = rows(workdir)
    train_lib.train(config, str(workdir))
    assert "is finished: 4 of 4 updates" in capsys.readouterr().out
    assert rows(workdir) == before


def test_a_workdir_refuses_another_configuration(finished_run, tiny_config):
    with pytest.raises(config_lib.ConfigError, match=r"loss\.kl"):
        train_lib.train(tiny_config(eval__every=2, loss__kl=0.5), str(finished_run[1]))


def test_checkpoints_of_another_configuration_are_refused(finished_run, tiny_config, tmp_path):
    """Whatever the workdir: the folder of the checkpoints may be anywhere."""
    folder = str(finished_run[1] / "checkpoints")
    with pytest.raises(config_lib.ConfigError, match=r"loss\.kl: 0\.001 -> 0\.5.*checkpoint\.dir"):
        train_lib.train(tiny_config(eval__every=2, loss__kl=0.5, checkpoint__dir=folder), str(tmp_path / "other"))
    assert not (tmp_path / "other" / "config.json").exists()
    train_lib.train(tiny_config(eval__every=2, checkpoint__dir=folder), str(tmp_path / "new"))  # is finished


def test_a_mistyped_folder_of_checkpoints_loses_nothing(finished_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[1], workdir)
    before = rows(workdir)
    wrong = tiny_config(eval__every=2, checkpoint__dir=str(tmp_path / "typo"))
    with pytest.raises(config_lib.ConfigError, match=r"checkpoint\.dir=.*typo.*has no checkpoint"):
        train_lib.train(wrong, str(workdir))
    assert rows(workdir) == before
    assert config_lib.load_saved(workdir).checkpoint.dir == ""


def test_a_damaged_newest_checkpoint_costs_the_updates_since_the_one_before(finished_run, tmp_path, capsys):
    config, whole = finished_run
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    data = max((workdir / "checkpoints" / "4").rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(bytes(byte ^ (i == 5000) for i, byte in enumerate(data.read_bytes())))
    train_lib.train(config, str(workdir))
    said = capsys.readouterr().out
    assert "Damaged checkpoint is set aside" in said and "4.damaged" in said and "Continuing at update 2 of 4" in said
    assert [learning(row) for row in rows(workdir)] == [learning(row) for row in rows(whole)]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "4.damaged"]


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_without_a_word(finished_run, tmp_path):
    config, whole = finished_run
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    before = rows(workdir)
    for step in (2, 4):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"has no checkpoint, but the run in .* had saved step 4 .*another --workdir"):
        train_lib.train(config, str(workdir))
    assert rows(workdir) == before


def test_a_folder_for_checkpoints_that_cannot_be_used_is_refused_before_the_model_is_read(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    config = tiny_config(checkpoint__dir=str(tmp_path / "file"), model__path="nowhere")
    with pytest.raises(UserError, match=r"no checkpoint can be written to .*/file \(a file is in its place\)"):
        train_lib.train(config, str(tmp_path / "run"))


def test_a_run_that_could_not_start_leaves_its_workdir_free(tiny_config, tmp_path):
    with pytest.raises(UserError, match="no model in Hugging Face format"):
        train_lib.train(tiny_config(model__path="nowhere"), str(tmp_path / "run"))
    with pytest.raises(UserError, match="is no file"):
        train_lib.train(tiny_config(data__source="jsonl:missing.jsonl"), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_updates_that_are_not_finite_end_the_run_and_leave_their_batch(tiny_config, tmp_path, monkeypatch):
    """Updates 1, 3 and 4 of six have infinite weights, and two in a row are too many."""
    weights, calls = trainer_lib.token_weights, itertools.count(1)

    def broken(*args, **options):
        found = weights(*args, **options)
        return TokenWeights(*(np.full_like(x, np.inf) for x in found)) if next(calls) in (1, 3, 4) else found

    monkeypatch.setattr(trainer_lib, "token_weights", broken)
    config = tiny_config(train__steps=6, train__max_skipped=2, loss__mask_uniform_groups=False)
    with pytest.raises(config_lib.ConfigError, match=r"the last 2 updates, up to step 4, .*skipped_4\.npz"):
        train_lib.train(config, str(tmp_path))
    assert [row["train/skipped_updates"] for row in rows(tmp_path)] == [1, 0, 1, 1]
    with np.load(tmp_path / "skipped_4.npz") as saved:
        assert saved["tokens"].shape == saved["ref_log_probs"].shape == saved["positive"].shape
        assert not np.isfinite(saved["weight"]).all() and np.isfinite(saved["log_probs"]).all()


def test_skipped_updates_are_counted_one_by_one(tiny_config, tmp_path, monkeypatch):
    """Of two minibatches a step the first is infinite, which is never two in a row; then both of the third step."""
    weights, calls = trainer_lib.token_weights, itertools.count(1)

    def broken(*args, **options):
        found = weights(*args, **options)
        return TokenWeights(*(np.full_like(x, np.inf) for x in found)) if next(calls) in (1, 3, 5, 6) else found

    monkeypatch.setattr(trainer_lib, "token_weights", broken)
    config = tiny_config(
        train__steps=4, train__minibatches=2, train__max_skipped=2, loss__mask_uniform_groups=False, eval__every=0
    )
    with pytest.raises(config_lib.ConfigError, match=r"the last 2 updates, up to step 3, .*skipped_3\.npz"):
        train_lib.train(config, str(tmp_path))
    assert [row["train/skipped_updates"] for row in rows(tmp_path)] == [0.5, 0.5, 1]
    with np.load(tmp_path / "skipped_3.npz") as saved:
        assert not np.isfinite(saved["weight"]).all()


def test_evaluating_a_run_repeats_its_own_last_evaluation(finished_run, tmp_path):
    config, workdir = finished_run
    identity, policy = identify(workdir), load_checkpoint(config, workdir)
    assert identity == {"path": str(workdir / "checkpoints"), "step": 4}
    # A run may save another checkpoint once its newest one is named.
    earlier = load_checkpoint(config, workdir, identity | {"step": 2})
    assert any(np.any(a != b) for a, b in zip(*(jax.tree.leaves(p.params) for p in (earlier, policy))))
    benchmarks = load_benchmarks(config, policy.tokenizer)
    sampler = make_eval_sampler(policy, config)
    with Grader(workers=1) as grader:
        evaluate_benchmarks(policy, benchmarks, sampler, grader, config, identity, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["chained_arithmetic"]
    # The same policy, problems and random numbers.
    logged = [row for row in rows(workdir) if "eval/avg_at_k" in row][-1]
    assert {f"eval/{name}": value for name, value in summary.items()}.items() <= logged.items()
    assert {"eval/avg_at_k", "eval/avg_low", "eval/pass_at_k", "eval/maj_high", "eval/mean_length"} <= logged.keys()
    with pytest.raises(UserError, match="neither a run"):
        load_checkpoint(config, tmp_path)


def test_exported_policy_loads_in_transformers_with_the_same_logits(finished_run, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    config, workdir = finished_run
    export_lib.export(config, str(workdir), str(tmp_path / "hf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours, original = load_checkpoint(config, tmp_path / "hf"), load_policy(config)
    trained = load_checkpoint(config, workdir)
    leaves = zip(*(jax.tree.leaves(p.params) for p in (ours, trained, original)))
    moved = 0.0
    for a, b, c in leaves:
        np.testing.assert_array_equal(a, b)
        moved = max(moved, float(np.abs(np.asarray(b) - np.asarray(c)).max()))
    assert moved > 0
    ids = tokenizer("Question: Start with 3. Add 4.\nAnswer:\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        theirs = model(ids).logits.numpy()
    tokens = jnp.asarray(ids.numpy(), jnp.int32)
    ends = jnp.full(tokens.shape, tokens.shape[1])

    def attend(q, k, v, layer, cache):
        return tree_attention(q, k, v, ends), cache

    decoder = nnx.merge(ours.graphdef, ours.params)
    hidden, _ = decoder(tokens, jnp.arange(tokens.shape[1])[None], attend)
    np.testing.assert_allclose(decoder.logits(hidden), theirs, atol=1e-4)


@pytest.mark.slow  # a minute; tests/eight_devices.py has the same of the parts
def test_a_mesh_of_eight_devices_trains_as_one_device_does(tiny_config, tmp_path, repo_root):
    """The command line, in a process of its own: same trees, same loss, whatever the mesh."""
    changes = {"train.steps": 1, "train.rows_per_step": 4, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(sampling__slots=4).to_dict()))
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-m", "ibtpo.train", f"--config={tmp_path / 'config.json'}"]
    command += [f"--workdir={tmp_path / 'mesh'}", *(f"--config.{key}={value}" for key, value in changes.items())]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 cpu device(s)" in done.stdout
    # The update, and the log-probabilities of the reference.
    assert re.search(r"^compiling \d+ programs \(update 2, sampler \d+\): \d+ s$", done.stdout, re.MULTILINE)
    assert "compiled once more" not in done.stderr
    train_lib.train(tiny_config(train__steps=1, train__rows_per_step=4), str(tmp_path / "one"))
    [mesh], [one] = rows(tmp_path / "mesh"), rows(tmp_path / "one")
    assert mesh["train/generated_tokens"] == one["train/generated_tokens"]
    for name in ("train/loss", "train/grad_norm", "train/ib_score", "train/avg_rate"):
        assert mesh[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


REAL = {
    "gsm8k": dict(data__source="tfds:gsm8k", data__decontaminate="gsm8k, math_500"),
    "math": dict(
        data__source="jsonl:{folder}/math4500_train.jsonl",
        data__question_field="problem",
        data__answer_field="solution",
        data__answer_pattern="boxed",
    ),
}


@pytest.mark.parametrize("name", [pytest.param("gsm8k", marks=pytest.mark.slow), "math"])
def test_real_problems_run_from_prompt_to_update(tiny_config, shared_data, tmp_path, name):
    config = tiny_config(
        **{key: value.format(folder=shared_data) for key, value in REAL[name].items()},
        data__files=str(shared_data),
        data__limit=8,
        data__max_prompt_tokens=400,
        train__row_tokens=640,
        train__steps=1,
        loss__mask_uniform_groups=False,
    )
    train_lib.train(config, str(tmp_path))
    row = rows(tmp_path)[-1]
    assert np.isfinite(row["train/loss"]) and row["train/skipped_updates"] == 0
    assert row["train/kv_pages_left"] == 0
    # Tokens of length-limited prompts of real text: the trainer still sees what the sampler saw.
    assert row["train/sampler_gap"] < 1e-5
