"""The whole path on the tiny model: prompt, trees, scores, update, checkpoint, evaluation, export."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from ibtpo import checkpoints, metrics, packing
from ibtpo import config as config_lib
from ibtpo import evaluate as evaluate_lib
from ibtpo import export as export_lib
from ibtpo import train as train_lib
from ibtpo.advantages import group_is_uniform
from ibtpo.kernels.tree_attention import tree_attention
from ibtpo.policy import load_policy, make_sampler
from ibtpo.rewards.pool import Grader
from ibtpo.tree import node_length


def rows(workdir):
    return list(metrics.read(workdir))


def learning(row):
    """The numbers of a row that must not depend on the machine."""
    return {name: value for name, value in row.items() if not name.startswith("time/")}


@pytest.fixture(scope="module")
def finished_run(tiny_config, tmp_path_factory):
    """Four uninterrupted updates, evaluated before, in the middle and after."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_config(eval__every=2)
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


def test_resuming_equals_not_stopping(finished_run, tiny_config, tmp_path):
    config, whole = finished_run
    half = tiny_config(eval__every=2, train__steps=2)
    train_lib.train(half, str(tmp_path))
    train_lib.train(config, str(tmp_path))
    assert [learning(row) for row in rows(tmp_path)] == [learning(row) for row in rows(whole)]


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


def test_training_on_what_is_evaluated_is_said(tiny_config, shared_data, caplog):
    source = f"jsonl:{shared_data / 'math500_test.jsonl'}"
    fields = dict(data__question_field="problem", data__answer_field="answer", data__limit=8)
    for every, count in ((0, 0), (1, 1)):
        caplog.clear()
        with train_lib.Trainer(tiny_config(data__source=source, eval__every=every, **fields)).grader:
            assert sum("has no {split}" in record.getMessage() for record in caplog.records) == count


def test_a_run_that_could_not_start_leaves_its_workdir_free(tiny_config, tmp_path):
    with pytest.raises(config_lib.ConfigError, match="no model in Hugging Face format"):
        train_lib.train(tiny_config(model__path="nowhere"), str(tmp_path / "run"))
    with pytest.raises(config_lib.ConfigError, match="is no file"):
        train_lib.train(tiny_config(data__source="jsonl:missing.jsonl"), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        dict(
            method="grpo",
            loss__importance_cap=2.0,
            loss__mask_uniform_groups=False,
            sampling__stop_strings='["="]',
        ),
        dict(method="grpo", loss__objective="gspo", loss__clip_low=3e-4, loss__clip_high=4e-4, train__epochs=2),
        dict(tree__strategy="entropy", loss__aggregation="token_mean", train__epochs=2, train__minibatches=2),
        dict(method="treepo", tree__top_k=1, tree__segment_tokens=12, loss__max_old_probability=0.9),
        dict(tree__strategy="random", loss__ib_confidence="reference", loss__dual_clip=3.0, train__row_tokens=112),
        dict(
            tree__value="backup",
            tree__root="initial",
            tree__ratio_power=2,
            tree__confidence="joint",
            loss__aggregation="fixed_length",
            loss__mask_uniform_groups=False,
        ),
    ],
)
def test_other_methods_and_options_train(tiny_config, tmp_path, monkeypatch, changes):
    config, weights, token_weights = tiny_config(train__steps=1, **changes), [], packing.token_weights

    def record(tree, *args, **options):
        found = token_weights(tree, *args, **options)
        weights.append((np.asarray(node_length(tree)), *found))
        return found

    monkeypatch.setattr(packing, "token_weights", record)
    train_lib.train(config, str(tmp_path))
    row = rows(tmp_path)[-1]
    assert np.isfinite(row["train/loss"]) and row["train/kv_pages_left"] == 0
    assert {"train/ib_score_root", "train/cov_root", "train/eff_rate"} <= row.keys()
    assert ("train/kl" in row) == (config.loss.kl > 0)
    if config.loss.whiten_advantages:
        length, positive, negative, _ = weights[0]
        assert abs((length * (positive + negative)).sum()) < 1e-5 < (length * positive).sum()
    assert (row["train/row_repeats"] > 0) == ("train__row_tokens" in changes)
    if "loss__importance_cap" in changes:
        assert row["train/importance"] == pytest.approx(1, abs=1e-5) and row["train/importance_capped"] == 0
    if "sampling__stop_strings" in changes:  # nobody gets beyond the first sum's left side
        assert row["train/response_length"] < 12 and row["train/truncation_rate"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("method", config_lib.METHODS)
def test_every_method_trains_with_its_own_settings(tiny_config, tmp_path, method):
    sizes = {key.replace(".", "__"): x for key, x in config_lib.METHODS[method].items() if key.startswith("tree.")}
    config = tiny_config(method=method, train__steps=2, train__epochs=2, **sizes)
    assert {key: config_lib.flatten(config)[key] for key in config_lib.METHODS[method]} == config_lib.METHODS[method]
    train_lib.train(config, str(tmp_path))
    for row in (row for row in rows(tmp_path) if "train/loss" in row):
        assert np.isfinite(row["train/loss"]) and row["train/skipped_updates"] == row["train/kv_pages_left"] == 0
        assert row["train/grad_norm"] > 0


def test_long_and_truncated_responses(tiny_config, monkeypatch):
    """The penalty and the terms reach the advantages and nothing else; the truncated weigh nothing."""
    config = tiny_config(
        method="grpo",
        loss__mask_truncated=True,
        loss__mask_uniform_groups=False,
        reward__overlong_share=0.6,
        reward__overlong_penalty=0.5,
        reward__terms="format:0.1,length:-0.05",
        sampling__max_new_tokens=40,
    )
    trainer = train_lib.Trainer(config)
    sampled, packed, sample, pack = [], [], trainer.sample, trainer.pack

    def record_sample(problems):
        trees, stats = sample(problems)
        sampled.extend(trees)
        return trees, stats

    def record_pack(tree, advantages, *rest):
        packed.append((advantages, pack(tree, advantages, *rest)))
        return packed[-1][1]

    monkeypatch.setattr(trainer, "sample", record_sample)
    monkeypatch.setattr(trainer, "pack", record_pack)
    with trainer.grader:
        metrics = trainer.update()
    (advantages, (batch, *_)), lengths, cut, boxes = packed[0], set(), 0, []
    for of_question, sampled_tree in zip(advantages, sampled):
        rewards = [r.reward for r in sampled_tree.responses]
        boxed = [trainer.policy.text(r.tokens).count("boxed{") == 1 for r in sampled_tree.responses]
        shaped = np.array(
            [
                x + 0.5 * min(0, (16 - len(r.tokens)) / 24) + 0.1 * box - 0.05 * len(r.tokens) / 40
                for x, box, r in zip(rewards, boxed, sampled_tree.responses)
            ]
        )
        boxes += boxed
        expected = (shaped - shaped.mean()) / (shaped.std() + 1e-6)
        found = of_question[np.arange(len(rewards)), sampled_tree.tree.response_node[0, : len(rewards)]]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        lengths |= {len(r.tokens) for r in sampled_tree.responses}
        cut += sum(r.finish == "length" for r in sampled_tree.responses)
        assert set(rewards) <= {0.0, 1.0}
    whole = sum(len(r.tokens) for t in sampled for r in t.responses if r.finish != "length")
    assert cut and len(lengths) > 2 and (np.asarray(batch.weight) > 0).sum() == whole
    assert metrics["train/term_format"] == pytest.approx(np.mean(boxes)) and 0 < np.mean(boxes) < 1
    assert metrics["train/term_length"] == pytest.approx(metrics["train/response_length"] / 40)
    graded = [r.reward for t in sampled for r in t.responses]
    assert metrics["train/avg_rate"] == pytest.approx(np.mean(graded))
    assert np.isfinite(metrics["train/loss"]) and 0 < metrics["train/truncation_rate"] < 1


def test_several_updates_on_the_same_trees(tiny_config, tmp_path, monkeypatch):
    """Two epochs of two minibatches: four updates of each step, and a ratio that is one in the first only."""
    config = tiny_config(
        train__steps=3, train__epochs=2, train__minibatches=2, loss__importance_cap=2.0, optimizer__learning_rate=1e-3
    )
    trainer = train_lib.Trainer(config)
    seen, apply_update = [], trainer.apply_update

    def record(state, batch, ref_log_probs, old_log_probs, *, steps):
        seen.append((batch, np.asarray(old_log_probs), int(steps)))
        return apply_update(state, batch, ref_log_probs, old_log_probs, steps=steps)

    monkeypatch.setattr(trainer, "apply_update", record)
    with trainer.grader:
        metrics = trainer.update()
    assert [steps for *_, steps in seen] == [0, 0, 0, 1]
    assert (int(trainer.state.step), int(trainer.state.policy_version)) == (1, 4)
    for batch, old, _ in seen:
        here = np.asarray(batch.weight) > 0
        np.testing.assert_allclose(old[here], np.asarray(batch.log_probs)[here], atol=1e-5)
    # Every epoch has every trained token once, and minibatches are weighted among themselves.
    tokens = [np.sort(np.asarray(batch.log_probs)[np.asarray(batch.weight) > 0]) for batch, *_ in seen]
    first, second = (np.sort(np.concatenate(pair)) for pair in (tokens[:2], tokens[2:]))
    np.testing.assert_array_equal(first, second)
    assert len(tokens[0]) < len(first)
    assert metrics["train/importance"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/ratio_max"] > 1.001
    assert metrics["train/sampler_gap"] < 1e-5  # of the first update: the others have another policy
    train_lib.train(config, str(tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert int(checkpoints.Checkpoints(tmp_path, keep=2).latest_step()) == 3


@pytest.fixture
def dapo(tiny_config, monkeypatch):
    """(a trainer that replaces uniform groups of two, the list of trees that each of its calls of `sample` gave)."""
    trainer = train_lib.Trainer(tiny_config(train__refills=3, method="grpo", tree__initial=2, tree__rounds=1))
    sampled, sample = [], trainer.sample

    def record(problems):
        trees, stats = sample(problems)
        sampled.append(trees)
        return trees, stats

    monkeypatch.setattr(trainer, "sample", record)
    return trainer, sampled


def test_questions_that_teach_nothing_are_replaced(dapo):
    trainer, sampled = dapo
    with trainer.grader:
        trees, replaced, stats = trainer.sample_batch()
    uniform = [[bool(group_is_uniform(t.tree)[0]) for t in trees] for trees in sampled]
    assert sum(uniform[0]) > 0
    assert [len(trees) for trees in sampled[1:]] == [sum(them) for them in uniform[: len(sampled) - 1]]
    kept = [t for trees, them in zip(sampled, uniform) for t, equal in zip(trees, them) if not equal]
    assert len(trees) == 4 and trees[: len(kept)] == kept
    ids = [t.question.id for trees in sampled for t in trees]
    assert ids == list(range(len(ids))) and stats.questions == len(ids)
    assert sorted(t.question.id for t in trees + replaced) == ids


def test_questions_that_are_replaced_count_in_what_is_reported(dapo):
    trainer, sampled = dapo
    with trainer.grader:
        first = trainer.update()
        trees = list(itertools.chain.from_iterable(sampled))
        assert first["train/graded_graded"] == 2 * len(trees) > 2 * 4
        rewards = np.array([[r.reward for r in t.responses] for t in trees])
        lengths = np.array([[len(r.tokens) for r in t.responses] for t in trees])
        assert first["train/refilled"] == len(trees) - 4
        assert first["train/eff_rate"] == pytest.approx((rewards[:, 0] != rewards[:, 1]).mean())
        assert first["train/avg_rate"] == pytest.approx(rewards.mean())
        assert first["train/response_length"] == pytest.approx(lengths.mean())
        sampled.clear()
        second = trainer.update()  # the counts are of the step
        assert second["train/graded_graded"] == 2 * sum(map(len, sampled))


def test_updates_that_are_not_finite_end_the_run_and_leave_their_batch(tiny_config, tmp_path, monkeypatch):
    """Updates 1, 3 and 4 of six have infinite weights, and two in a row are too many."""
    weights, calls = packing.token_weights, itertools.count(1)

    def broken(*args, **options):
        found = weights(*args, **options)
        return [np.full_like(x, np.inf) for x in found] if next(calls) in (1, 3, 4) else found

    monkeypatch.setattr(packing, "token_weights", broken)
    config = tiny_config(train__steps=6, train__max_skipped=2, loss__mask_uniform_groups=False)
    with pytest.raises(config_lib.ConfigError, match=r"the last 2 updates, up to step 4, .*skipped_4\.npz"):
        train_lib.train(config, str(tmp_path))
    assert [row["train/skipped_updates"] for row in rows(tmp_path)] == [1, 0, 1, 1]
    with np.load(tmp_path / "skipped_4.npz") as saved:
        assert saved["tokens"].shape == saved["ref_log_probs"].shape == saved["positive"].shape
        assert not np.isfinite(saved["weight"]).all() and np.isfinite(saved["log_probs"]).all()


def test_skipped_updates_are_counted_one_by_one(tiny_config, tmp_path, monkeypatch):
    """Of two minibatches a step the first is infinite, which is never two in a row; then both of the third step."""
    weights, calls = packing.token_weights, itertools.count(1)

    def broken(*args, **options):
        found = weights(*args, **options)
        return [np.full_like(x, np.inf) for x in found] if next(calls) in (1, 3, 5, 6) else found

    monkeypatch.setattr(packing, "token_weights", broken)
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
    identity, policy = evaluate_lib.identify(workdir), evaluate_lib.load_checkpoint(config, workdir)
    assert identity == {"path": str(workdir / "checkpoints"), "step": 4}
    benchmarks = evaluate_lib.load_benchmarks(config, policy.tokenizer)
    sampler = evaluate_lib.make_eval_sampler(policy, config)
    with Grader(workers=1) as grader:
        evaluate_lib.evaluate_benchmarks(policy, benchmarks, sampler, grader, config, identity, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["chained_arithmetic"]
    # The same policy, problems and random numbers.
    logged = [row for row in rows(workdir) if "eval/avg_at_k" in row][-1]
    assert {f"eval/{name}": value for name, value in summary.items()}.items() <= logged.items()
    assert {"eval/avg_at_k", "eval/avg_low", "eval/pass_at_k", "eval/maj_high", "eval/mean_length"} <= logged.keys()
    with pytest.raises(config_lib.ConfigError, match="neither a run"):
        evaluate_lib.load_checkpoint(config, tmp_path)


def test_exported_policy_loads_in_transformers_with_the_same_logits(finished_run, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    config, workdir = finished_run
    export_lib.export(config, str(workdir), str(tmp_path / "hf"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours, original = evaluate_lib.load_checkpoint(config, tmp_path / "hf"), load_policy(config)
    trained = evaluate_lib.load_checkpoint(config, workdir)
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


def test_a_mesh_of_eight_devices_trains_as_one_device_does(tiny_config, tmp_path, repo_root):
    """The command line, in a process of its own: same trees, same loss, whatever the mesh."""
    changes = {"train.steps": 1, "train.rows_per_step": 4, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "ibtpo.train", f"--config={tmp_path / 'config.json'}"]
    command += [f"--workdir={tmp_path / 'mesh'}", *(f"--config.{key}={value}" for key, value in changes.items())]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 cpu device(s)" in done.stdout
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


@pytest.mark.parametrize("name", list(REAL))
def test_real_problems_run_from_prompt_to_update(tiny_config, shared_data, tmp_path, name):
    config = tiny_config(
        **{key: value.format(folder=shared_data) for key, value in REAL[name].items()},
        data__files=str(shared_data),
        data__limit=8,
        data__max_prompt_tokens=400,
        train__steps=1,
        loss__mask_uniform_groups=False,
    )
    train_lib.train(config, str(tmp_path))
    row = rows(tmp_path)[-1]
    assert np.isfinite(row["train/loss"]) and row["train/skipped_updates"] == 0
    assert row["train/kv_pages_left"] == 0
    # Tokens of length-limited prompts of real text: the trainer still sees what the sampler saw.
    assert row["train/sampler_gap"] < 1e-5


def test_the_pool_of_evaluation_is_no_larger_than_that_of_training(tiny_config):
    policy = load_policy(tiny_config())
    trained = make_sampler(policy, tiny_config()).total_pages
    many = evaluate_lib.make_eval_sampler(policy, tiny_config(eval__samples=16))
    assert trained == many.total_pages > many.least_pages
    few = evaluate_lib.make_eval_sampler(policy, tiny_config(eval__samples=2))
    assert few.total_pages < trained
    # One question has to fit in any case.
    huge = evaluate_lib.make_eval_sampler(policy, tiny_config(eval__samples=64))
    assert huge.total_pages == huge.least_pages > trained
