"""One step of the method: sampling, selection, the update and its metrics."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from ibtpo import checkpoints, metrics
from ibtpo import config as config_lib
from ibtpo import train as train_lib
from ibtpo import trainer as trainer_lib
from ibtpo.advantages import group_is_uniform
from ibtpo.precompiled import compile_all
from ibtpo.token_weights import kept_tokens
from ibtpo.trainer import Trainer
from ibtpo.tree import stack_trees
from tests.compilations import compilations


def rows(workdir):
    return list(metrics.read(workdir))


def test_training_on_what_is_evaluated_is_said(tiny_config, shared_data, caplog):
    source = f"jsonl:{shared_data / 'math500_test.jsonl'}"
    fields = dict(data__question_field="problem", data__answer_field="answer", data__limit=8)
    for every, count in ((0, 0), (1, 1)):
        caplog.clear()
        with Trainer(tiny_config(data__source=source, eval__every=every, **fields)).grader:
            assert sum("has no {split}" in record.getMessage() for record in caplog.records) == count


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
        pytest.param(
            dict(method="treepo", tree__top_k=1, tree__segment_tokens=12, loss__max_old_probability=0.9),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(method="spo_tree", tree__top_k=1, tree__segment_tokens=12), marks=pytest.mark.slow),
        dict(method="tempo", tree__initial=4),
        dict(loss__shared_tokens="once", loss__ib_confidence="reference"),
        pytest.param(
            dict(method="lambda_grpo", tree__initial=4, train__epochs=2, train__minibatches=2, loss__kl=0.01),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(tree__strategy="uucb", tree__extra_rounds=1, loss__mask_uniform_groups=False), marks=pytest.mark.slow
        ),
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
    config, weights, token_weights = tiny_config(train__steps=1, **changes), [], trainer_lib.token_weights

    def record(tree, *args, **options):
        found = token_weights(tree, *args, **options)
        kept = kept_tokens(tree, config.loss.max_old_probability)
        weights.append((np.asarray(kept), *found))
        return found

    monkeypatch.setattr(trainer_lib, "token_weights", record)
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
    trainer = Trainer(config)
    sampled, packed, sampler, weigh = [], [], trainer.sampler, trainer.weigh

    def record_sampled(*arguments, **options):
        trees, stats = sampler(*arguments, **options)
        sampled.extend(trees)
        return trees, stats

    def record_weighed(layout, rows, tree, advantages, counted):
        packed.append((advantages, weigh(layout, rows, tree, advantages, counted)))
        return packed[-1][1]

    monkeypatch.setattr(trainer, "sampler", record_sampled)
    monkeypatch.setattr(trainer, "weigh", record_weighed)
    with trainer.grader:
        metrics = trainer.update()
    (advantages, batch), lengths, cut, boxes = packed[0], set(), 0, []
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
        expected = (shaped - shaped.mean()) / (shaped.std(ddof=1) + 1e-6)
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
    trainer = Trainer(config)
    seen, programs = [], trainer.programs

    def record(state, batch):
        seen.append(batch)
        return programs.update(state, batch)

    monkeypatch.setattr(trainer, "programs", dataclasses.replace(programs, update=record))
    with trainer.grader:
        metrics = trainer.update()
    assert (int(trainer.state.step), int(trainer.state.policy_version)) == (1, 4) and len(seen) == 4
    for batch in seen:
        here = np.asarray(batch.weight) > 0
        old, drawn = np.asarray(batch.old_log_probs)[here], np.asarray(batch.log_probs)[here]
        np.testing.assert_allclose(old, drawn, atol=1e-5)
        # Before the first update the policy is the reference.
        np.testing.assert_allclose(np.asarray(batch.ref_log_probs)[here], old, atol=1e-5)
    # Every epoch has every trained token once, and minibatches are weighted among themselves.
    tokens = [np.sort(np.asarray(batch.log_probs)[np.asarray(batch.weight) > 0]) for batch in seen]
    first, second = (np.sort(np.concatenate(pair)) for pair in (tokens[:2], tokens[2:]))
    np.testing.assert_array_equal(first, second)
    assert len(tokens[0]) < len(first)
    assert metrics["train/importance"] == pytest.approx(1, abs=1e-4)
    assert metrics["train/ratio_max"] > 1.001
    assert metrics["train/sampler_gap"] < 1e-5  # of the first update: the others have another policy
    train_lib.train(config, str(tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert int(checkpoints.Checkpoints(tmp_path, keep=2).latest_step()) == 3


@pytest.mark.parametrize(
    "changes",
    [{}, {"reward__terms": "format:0.5"}, pytest.param({"method": "treepo"}, marks=pytest.mark.slow),
     pytest.param({"method": "tempo"}, marks=pytest.mark.slow), {"method": "lambda_grpo"},
     {"loss__ib_confidence": "reference", "loss__ib_weight": 2.0}],
    ids=lambda changes: ",".join(f"{key}={x}" for key, x in changes.items()) or "ibtpo",
)  # fmt: skip
def test_the_advantages_that_are_shown_are_those_of_the_loss(tiny_config, monkeypatch, changes):
    """Shaped, whitened, of tokens or of the reference's confidence: whatever the update took."""
    trainer = Trainer(tiny_config(log__trees=3, **changes))
    taken, weigh = [], trainer.weigh

    def record(layout, rows, tree, advantages, trained):
        taken.append((tree, np.asarray(advantages)))
        return weigh(layout, rows, tree, advantages, trained)

    monkeypatch.setattr(trainer, "weigh", record)
    with trainer.grader:
        trainer.update()
    [(tree, advantages)] = taken
    found = trainer.shown_of_update(1)
    assert len(found.trees) == 3 and any(np.ptp(shown["reward"]) for shown in found.trees)
    for q, shown in enumerate(found.trees):
        prompt, ends = len(shown["prompt"]), np.cumsum(shown["length"])
        for node in range(1, len(shown["parent"])):
            first = ends[node] - shown["length"][node]
            columns = tree.step[q, prompt + first : prompt + ends[node]]  # the nodes of its tokens: one, or one each
            through = [r for r, leaf in enumerate(shown["leaf"]) if on_path_of(shown, leaf, node)]
            expected = advantages[q][np.ix_(through, columns)].mean()
            np.testing.assert_allclose(shown["A"][node], expected, rtol=1e-4, atol=1e-5)


def on_path_of(shown, leaf, node):
    while leaf > node:
        leaf = shown["parent"][leaf]
    return leaf == node


@pytest.fixture
def dapo(tiny_config, monkeypatch):
    """(a trainer that replaces uniform groups of two, the list of trees that each of its calls of `sample` gave)."""
    trainer = Trainer(tiny_config(train__refills=3, method="grpo", tree__initial=2, tree__rounds=1))
    sampled, sampler = [], trainer.sampler

    def record(*arguments, **options):
        trees, stats = sampler(*arguments, **options)
        sampled.append(trees)
        return trees, stats

    monkeypatch.setattr(trainer, "sampler", record)
    return trainer, sampled


def test_questions_that_teach_nothing_are_replaced(dapo):
    trainer, sampled = dapo
    with trainer.grader:
        found = trainer.sample_batch()
    uniform = [[bool(group_is_uniform(t.tree)[0]) for t in trees] for trees in sampled]
    assert sum(uniform[0]) > 0
    assert [len(trees) for trees in sampled[1:]] == [sum(them) for them in uniform[: len(sampled) - 1]]
    kept = [t for trees, them in zip(sampled, uniform) for t, equal in zip(trees, them) if not equal]
    replaced = [t for trees, them in zip(sampled, uniform) for t, equal in zip(trees, them) if equal][: found.replaced]
    last = [t for t in sampled[-1] if t not in kept + replaced]
    expected = stack_trees([t.tree for t in (kept + last)[:4] + replaced])
    jax.tree.map(np.testing.assert_array_equal, found.everything, expected)
    assert len(found.tree.tokens) == 4 and found.tree.rewards.tolist() == expected.rewards[:4].tolist()
    for place, problem in enumerate(found.problems):
        prompt = found.tree.tokens[place, : found.tree.prompt_length[place]]
        assert problem.question in trainer.policy.tokenizer.decode(prompt)
    ids = [t.question.id for trees in sampled for t in trees]
    assert ids == list(range(len(ids))) and found.stats.questions == len(ids) == 4 + found.replaced


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


@pytest.mark.parametrize(
    "changes",
    [dict(method="ibtpo"), pytest.param(dict(method="gspo", loss__kl=0.001), marks=pytest.mark.slow)],
    ids=["ibtpo", "gspo"],
)
def test_thirty_updates_of_changing_sizes_compile_two_programs_once_each(tiny_config, monkeypatch, changes):
    config = tiny_config(
        train__steps=30,
        train__row_tokens=256,
        train__questions_per_step=3,
        train__rows_per_step=1,
        tree__rounds=1,
        **changes,
    )
    trainer, layouts, plan = Trainer(config), [], trainer_lib.plan
    monkeypatch.setattr(trainer_lib, "plan", lambda *args, **sizes: layouts.append(plan(*args, **sizes)) or layouts[-1])
    with trainer.grader:
        for _ in range(30):
            trainer.update()
    assert len({len({piece.row for piece in layout.pieces}) for layout in layouts}) > 1
    assert trainer.programs.update.jitted._cache_size() == 1
    # The reference and the policy have parameters of the same type here.
    assert trainer.programs.log_probs.jitted._cache_size() == 1


@pytest.mark.slow
def test_a_run_compiles_its_programs_before_its_first_update(tiny_config):
    """Those of the update, of its sampler and of the evaluation's; also where two kinds of log-probabilities are asked
    for, in another type than the parameters'."""
    config = tiny_config(
        loss__kl=0.001, train__minibatches=2, loss__importance_cap=2.0, model__dtype="bfloat16", eval__every=1,
        sampling__pages=40,
    )  # fmt: skip
    trainer = Trainer(config)
    with trainer.grader:
        with compilations() as found:
            line = compile_all(trainer.programs_ahead(updates=True))
        count = int(re.search(r"compiling (\d+) programs \(update 3, sampler \d+, evaluation \d+\): \d+ s", line)[1])
        ours = set(found)
        assert len(found) == count and {"update", "log_probs", "prefill", "decode_chunk", "recompute"} <= ours
        with compilations() as first:
            trainer.update()
            trainer.evaluate()
        assert not ours & set(first)
        with compilations() as later:
            trainer.update()
            trainer.evaluate()
        assert later == []


def test_a_checkpoint_of_another_configuration_is_refused_before_its_arrays_are_read(tiny_config, tmp_path):
    """They may have other shapes, which is no news about the configuration."""

    class Store:
        path = tmp_path

        def latest_step(self):
            return 3

        def restore(self, like, *, check):
            check({"config": tiny_config(tree__beta=7.0).to_dict()})

    trainer = Trainer(tiny_config())
    with trainer.grader, pytest.raises(config_lib.ConfigError, match=r"tree\.beta: 7\.0 -> 5\.0"):
        trainer.restore(Store())
