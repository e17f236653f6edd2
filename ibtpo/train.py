"""IB-TPO training: sample trees, grade, score, update.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny

The workdir gets config.json, metrics.jsonl, TensorBoard event files, checkpoints and, at the end,
learning_curve.png. Running the same command again continues from the newest checkpoint, or says that
the run is finished. On several hosts every one runs this command (docs/tpu.md); checkpoint.dir must then be storage
that all of them see, and the first writes the other files to its own workdir.
"""

import dataclasses
import itertools
import pathlib
import time

import jax
import numpy as np
from absl import logging

from ibtpo import checkpoints, packing, parallel, report
from ibtpo import config as config_lib
from ibtpo import metrics as metrics_lib
from ibtpo.advantages import (
    AdvantageOptions,
    compute_advantages,
    diagnostics,
    group_is_uniform,
    overlong_penalty,
    whiten,
)
from ibtpo.data.datasets import load_training
from ibtpo.data.iterator import ProblemIterator
from ibtpo.data.problems import Problem, load_problems
from ibtpo.evaluate import evaluate, make_eval_sampler
from ibtpo.losses import LossOptions, reduce_metrics
from ibtpo.optimizer import make_optimizer
from ibtpo.policy import load_policy, make_grade, make_grader, make_sampler
from ibtpo.rewards.terms import TERMS, parse_terms
from ibtpo.sampling.engine import SampledTree
from ibtpo.sampling.logits import SamplingParams
from ibtpo.state import create_state, make_log_probs, make_update
from ibtpo.tree import Tree, stack_trees


@dataclasses.dataclass
class Position:
    """Where a run is, besides its arrays; saved with every checkpoint.

    data: of the problem iterator. generated_tokens, questions: so far, over all updates.
    seconds: spent so far, over all invocations.
    """

    data: dict
    generated_tokens: int = 0
    questions: int = 0
    seconds: float = 0.0


class Trainer:
    """One run: everything that is built once, and the three things it does (update, evaluate, save). Making it
    sets the program's mesh.

    The method is in `update`, which reads top to bottom like the paper's algorithm.
    """

    def __init__(self, config):
        self.config, self.mesh = config, parallel.use_mesh(config.mesh)
        config_lib.check_split(config, parallel.num_row_shards())
        self.policy = load_policy(config, mesh=self.mesh)
        tokenizer = self.policy.tokenizer
        self.problems = load_training(config.data, tokenizer)
        self.held_out = []
        if config.eval.every:
            if config.data.source.partition(":")[0] in ("jsonl", "parquet") and "{split}" not in config.data.source:
                logging.warning(
                    "data.source=%r has no {split}: what is evaluated is what is trained on. Set eval.every=0, or name "
                    "two files in one, e.g. jsonl:problems_{split}.jsonl",
                    config.data.source,
                )
            held_out = load_problems(config.data, config.data.eval_split, tokenizer)
            self.held_out = held_out[: config.eval.questions or None]
        self.batches = ProblemIterator(self.problems, config.train.questions_per_step, config.train.seed)

        self.sampler = make_sampler(self.policy, config)
        self.eval_sampler = make_eval_sampler(self.policy, config)
        self.sampling = SamplingParams.from_config(config.sampling)
        self.grader = make_grader(config)

        loss, tree = config.loss, config.tree
        self.needs_reference = loss.kl > 0 or loss.ib_confidence == "reference"
        self.advantage_options = AdvantageOptions(
            beta=tree.beta,
            ib_weight=loss.ib_weight,
            ratio_power=tree.ratio_power,
            confidence=tree.confidence,
            value=tree.value,
            root=tree.root,
        )
        updates = config.train.epochs * config.train.minibatches  # of each batch of trees
        # Before the first of them the policy's own log-probabilities are the old ones.
        self.needs_old_log_probs = loss.importance_cap > 0 and updates > 1
        optimizer, self.schedule = make_optimizer(config.optimizer, config.train.steps * updates)
        forward = dict(
            temperature=config.sampling.temperature,
            rows_per_step=config.train.rows_per_step,
            token_block=config.train.token_block,
        )
        self.apply_update = make_update(
            self.policy.graphdef,
            optimizer,
            LossOptions.from_config(loss),
            remat=config.model.remat,
            **forward,
        )
        self.log_probs = make_log_probs(self.policy.graphdef, **forward)
        state = create_state(
            self.policy.params,
            optimizer,
            jax.random.key(config.train.seed),
            keep_reference=self.needs_reference,
            reference_dtype=config.model.dtype,
        )
        self.state = parallel.shard_params(state, self.mesh)
        self.policy = self.policy.with_params(None)  # the state owns them: an update donates their memory
        self.position = Position(data=self.batches.state())
        self.skipped = 0  # updates in a row whose loss or gradient was not finite
        self.trained_on: tuple = ()  # what the last update was given, of a step the last that was skipped

    # The algorithm.

    def update(self) -> dict[str, float]:
        """One step of the method: sample, grade, score, update. Returns its metrics."""
        config, started = self.config, time.monotonic()
        graded = dict(self.grader.counts)
        trees, replaced, stats = self.sample_batch()
        graded = {name: count - graded[name] for name, count in self.grader.counts.items()}
        # All of them count in what is reported, the first `len(trees)` are trained on.
        everything = stack_trees([t.tree for t in trees + replaced])
        tree = stack_trees([t.tree for t in trees]) if replaced else everything
        sampled = time.monotonic()

        trained = np.ones(len(trees), bool)
        if config.loss.mask_uniform_groups:
            trained = ~group_is_uniform(tree)
        truncated = np.zeros(everything.rewards.shape, bool)
        for q, sampled_tree in enumerate(trees + replaced):
            for response in sampled_tree.responses:
                truncated[q, response.index] = response.finish == "length"
        left_out = truncated[: len(trees)] & config.loss.mask_truncated
        counted = trained[:, None] & (tree.response_node >= 0) & ~left_out
        shaping, term_metrics = self.shape(everything, trees + replaced)
        advantages, log_probs = self.score(tree, trained, shaping if shaping is None else shaping[: len(trees)])
        if config.loss.whiten_advantages:
            advantages = whiten(tree, advantages, counted)
        parts = self.minibatches(len(trees))
        results, packings, batches = [], [], []
        for number, part in enumerate(parts, 1):
            batch, extra, packing_metrics = self.pack(tree, advantages, log_probs, counted, part)
            batches.append((batch, *extra))
            rows = [x if x is None else parallel.shard_batch(x, self.mesh) for x in (batch, *extra)]
            # Of one update, no argument: one program less.
            steps = {} if len(parts) == 1 else dict(steps=np.int32(number == len(parts)))
            self.state, loss_metrics = self.apply_update(self.state, *rows, **steps)
            results.append(loss_metrics)
            packings.append(packing_metrics)
        results = jax.device_get(results)
        self.trained_on = batches[-1]
        for batch, result in zip(batches, results):
            failed = bool(result["skipped_updates"][0])
            self.skipped = self.skipped + 1 if failed else 0
            self.trained_on = batch if failed else self.trained_on
        loss_metrics = reduce_metrics(jax.tree.map(lambda *x: np.stack(x), *results))
        # Later updates have another policy than the one that drew the tokens.
        loss_metrics["sampler_gap"] = results[0]["sampler_gap"]
        packing_metrics = {name: float(np.mean([p[name] for p in packings])) for name in packings[0]}
        updated = time.monotonic()

        self.position.generated_tokens += stats.generated_tokens
        lengths = everything.response_length[everything.response_node >= 0]
        result = metrics_lib.reduce(loss_metrics | diagnostics(everything, self.advantage_options))
        result |= term_metrics
        result |= packing_metrics | {
            "learning_rate": float(self.schedule(max(int(self.state.policy_version) - 1, 0))),
            "generated_tokens": self.position.generated_tokens,
            "tokens_per_question": stats.generated_tokens / stats.questions,
            "responses_per_1k_tokens": 1000 * stats.responses / stats.generated_tokens,
            "response_length": float(lengths.mean()),
            # Unguided responses are what independent sampling would give: their length prices it.
            "response_length_initial": float(everything.response_length[everything.response_round == 0].mean()),
            "truncation_rate": float(truncated[everything.response_node >= 0].mean()),
            "masked_groups": 1 - float(trained.mean()),
            "refilled": len(replaced),
            "slot_use": stats.generated_tokens / stats.slot_steps,
            "slot_tail": stats.tail_slot_steps / stats.slot_steps,
            "preemptions": stats.preemptions,
            "kv_pages_peak": stats.peak_pages,
            "kv_pages_left": stats.pages_left,
            **{f"graded_{name}": count for name, count in graded.items()},
        }
        result = {f"train/{name}": value for name, value in result.items()}
        result |= {"time/sample_s": sampled - started, "time/update_s": updated - sampled}
        result["time/sampler_stall_s"] = stats.stall_seconds
        return result

    def sample_batch(self):
        """(trees of the next questions, those they replaced, what both cost): where the rewards of one are all equal,
        another question takes its place, up to train.refills times (DAPO's dynamic sampling)."""
        number, replaced = self.config.train.questions_per_step, []
        trees, stats = self.sample(self.batches.take(number))
        for _ in range(self.config.train.refills):
            uniform = [bool(group_is_uniform(t.tree)[0]) for t in trees]
            if not any(uniform):
                break
            replaced += itertools.compress(trees, uniform)
            more, added = self.sample(self.batches.take(sum(uniform)))
            trees = [t for t, equal in zip(trees, uniform) if not equal] + more
            stats += added
        return trees, replaced, stats

    def sample(self, problems: list[Problem]):
        """Grows a graded tree for each problem with the current policy."""
        # The position in the run is the question's id: the same problem draws anew in every epoch.
        first = self.position.questions
        self.position.questions += len(problems)
        by_id = {first + i: problem for i, problem in enumerate(problems)}
        questions = [self.policy.question(id, p, self.config.data) for id, p in by_id.items()]
        return self.sampler(
            self.state.params,
            questions,
            make_grade(self.policy, self.grader, by_id),
            key=self.state.key,
            sampling=self.sampling,
        )

    def shape(self, tree: Tree, trees: list[SampledTree]):
        """(what is added to the rewards in the advantages, [Q, R], or None; the mean of each term as metrics): the
        terms of reward.terms by their weights, and the overlong penalty."""
        reward, longest = self.config.reward, self.config.sampling.max_new_tokens
        weights = parse_terms(reward.terms)
        shaping, metrics = np.zeros_like(tree.rewards), {}
        for name, weight in weights.items():
            values = np.zeros_like(shaping)
            for q, sampled in enumerate(trees):
                for r in sampled.responses:
                    values[q, r.index] = TERMS[name](self.policy.text(r.tokens), len(r.tokens) / longest)
            shaping += weight * values
            metrics[f"term_{name}"] = float(values[tree.response_node >= 0].mean())
        if reward.overlong_share:
            tokens = reward.overlong_share * longest
            shaping += overlong_penalty(tree, max_new_tokens=longest, tokens=tokens, penalty=reward.overlong_penalty)
        return (shaping if weights or reward.overlong_share else None), metrics

    def score(self, tree: Tree, trained: np.ndarray, shaping: np.ndarray | None):
        """(advantages [Q, R, N] of every response at every step, log-probabilities of the tokens [Q, T] by the
        reference and by the trainer before the first update, each None where nothing needs it)."""
        config, ref_log_probs, old_log_probs = self.config, None, None
        if self.needs_reference:
            ref_log_probs = self.of_tokens(tree, trained, self.state.ref_params)
        if self.needs_old_log_probs:
            old_log_probs = self.of_tokens(tree, trained, self.state.params)
        scored = tree
        if config.loss.ib_confidence == "reference":
            scored = tree.replace(log_probs=np.where(tree.step > 0, ref_log_probs, 0))
        advantages = compute_advantages(config.loss.advantage, scored, self.advantage_options, shaping)
        return advantages, (ref_log_probs, old_log_probs)

    def of_tokens(self, tree: Tree, trained: np.ndarray, params) -> np.ndarray:
        """Log-probabilities [Q, T] by the model with `params` of the tokens of the trees to train on; 0 of others."""
        batch, layout = self.pack_rows(tree, [np.zeros(tree.node_parent.shape, np.float32)] * 3, trained)
        return packing.unpack(
            self.log_probs(params, parallel.shard_batch(batch, self.mesh)), layout, *tree.tokens.shape
        )

    def minibatches(self, num_trees: int) -> list[np.ndarray]:
        """The trees of each of the step's updates: all of them in every epoch, cut into random minibatches."""
        train = self.config.train
        if train.minibatches == 1:
            return [np.arange(num_trees)] * train.epochs
        rng = np.random.default_rng((train.seed, self.position.questions))
        return [
            np.sort(part)
            for _ in range(train.epochs)
            for part in np.array_split(rng.permutation(num_trees), train.minibatches)
        ]

    def pack(self, tree: Tree, advantages: np.ndarray, log_probs: tuple, counted: np.ndarray, part: np.ndarray):
        """Rows of the trees `part`, weighted among themselves, with the responses `counted` [Q, R]: (TokenBatch,
        (reference, old) log-probabilities of its tokens or None, metrics)."""
        config = self.config
        tree, advantages, counted = jax.tree.map(lambda x: np.asarray(x)[part], (tree, advantages, counted))
        trained = counted.any(axis=1)
        options = dict(aggregation=config.loss.aggregation, max_new_tokens=config.sampling.max_new_tokens, mask=counted)
        if config.loss.objective == "gspo":
            options |= dict(clip_low=config.loss.clip_low, clip_high=config.loss.clip_high)
            now = self.of_tokens(tree, trained, self.state.params)
            weights = packing.sequence_weights(tree, advantages, now, **options)
        else:
            weights = packing.token_weights(tree, advantages, **options)
        batch, layout = self.pack_rows(tree, weights, trained)
        placed = [x if x is None else packing.place(x[part], layout, batch.tokens.shape) for x in log_probs]
        return batch, placed, {"row_use": layout.useful_share, "row_repeats": layout.repeated_share}

    def pack_rows(self, tree: Tree, weights, trained: np.ndarray):
        """`packing.pack` of the trees to train on, in rows of the configured length or as long as the longest tree."""
        train = self.config.train
        row_tokens = train.row_tokens or packing.row_length(int((tree.step >= 0).sum(axis=1).max()))
        return packing.pack(tree, *weights, row_tokens=row_tokens, row_multiple=train.rows_per_step, select=trained)

    def evaluate(self) -> dict[str, float]:
        """Held-out accuracy of the current policy, as metrics."""
        started = time.monotonic()
        summary = evaluate(
            self.policy, self.state.params, self.held_out, self.eval_sampler, self.grader, self.config
        ).summary()
        return {f"eval/{name}": value for name, value in summary.items()} | {
            "train/generated_tokens": self.position.generated_tokens,
            "time/eval_s": time.monotonic() - started,
        }

    # Beginning and end.

    def restore(self, store: checkpoints.Checkpoints) -> bool:
        """Continues from the newest checkpoint; False if there is none.

        Raises:
          ConfigError: it is of another run's configuration; the workdir may be new where checkpoint.dir is not.
        """
        restored = store.restore(self.state)
        if restored is None:
            return False
        self.state, position, saved = restored
        config_lib.check_same(str(store.path), saved, self.config.to_dict(), "choose a new --config.checkpoint.dir")
        self.position = Position(**position)
        self.batches.restore(self.position.data)
        return True

    def save(self, store: checkpoints.Checkpoints) -> None:
        self.position.data = self.batches.state()
        store.save(self.state, dataclasses.asdict(self.position), self.config.to_dict())

    def save_batch(self, path: pathlib.Path) -> None:
        """Writes what the last update trained on: the fields of `TokenBatch`, and ref_log_probs and old_log_probs where
        there are any."""
        batch, *log_probs = self.trained_on
        names = ("ref_log_probs", "old_log_probs")
        arrays = vars(batch) | {name: x for name, x in zip(names, log_probs) if x is not None}
        np.savez_compressed(path, **arrays)


def train(config, workdir: str) -> None:
    """Runs `config` in `workdir` to its last update, from the newest checkpoint if there is one."""
    config_lib.save(config, workdir, write=False)  # refuses another run's workdir before anything is loaded
    with config_lib.user_errors():
        parallel.initialize()
        trainer = Trainer(config)
    first_host = jax.process_index() == 0
    total = config.train.steps
    with config_lib.user_errors():
        store = checkpoints.Checkpoints(workdir, folder=config.checkpoint.dir, keep=config.checkpoint.keep)
    with trainer.grader, store:
        with config_lib.user_errors():
            resumed = trainer.restore(store)
            if not resumed and checkpoints.has_any(workdir):
                raise config_lib.ConfigError(
                    f"checkpoint.dir={config.checkpoint.dir!r} has no checkpoint, and the run in {workdir} kept its "
                    f"own in {checkpoints.find(workdir)}: give that one to continue it, or choose a new --workdir"
                )
        config_lib.save(config, workdir, write=first_host)
        first = int(trainer.state.step)
        if first >= total:
            # A schedule that ends with the run fixes its length (`config.diff`).
            go_on = "Raise --config.train.steps to continue, or choose" * (config.optimizer.schedule == "constant")
            print(f"{workdir} is finished: {first} of {total} updates are done. {go_on or 'Choose'} another --workdir.")
            if first_host and metrics_lib.exist(workdir):  # not in the new workdir of an old checkpoint.dir
                finish(config, workdir)
            return
        print(
            f"{'Continuing' if resumed else 'Starting'} at update {first} of {total} in {workdir}: "
            f"{len(trainer.problems)} problems, {len(trainer.held_out)} held out, "
            f"{jax.device_count()} {jax.default_backend()} device(s)"
        )
        clock = time.monotonic() - trainer.position.seconds
        with (
            metrics_lib.MetricWriter(
                workdir, config.log.tensorboard, resume_step=first if resumed else -1, active=first_host
            ) as writer,
            metrics_lib.Progress(total, first, "updates") as progress,
        ):
            if trainer.held_out and not resumed:
                writer.write(0, trainer.evaluate())
            for step in range(first + 1, total + 1):
                metrics = trainer.update()
                trainer.position.seconds = time.monotonic() - clock
                metrics["time/elapsed_s"] = trainer.position.seconds
                if step % config.log.every == 0 or step == total:
                    writer.write(step, metrics)
                if 0 < config.train.max_skipped <= trainer.skipped:
                    path = pathlib.Path(workdir) / f"skipped_{step}.npz"
                    if first_host:
                        trainer.save_batch(path)
                    raise config_lib.ConfigError(
                        f"the last {trainer.skipped} updates, up to step {step}, had no finite loss and gradient, and "
                        f"were skipped (train.max_skipped={config.train.max_skipped}); the last one's batch is in "
                        f"{path}. Run again to continue from the newest checkpoint; if the policy had diverged, start "
                        "anew in another --workdir with a lower optimizer.learning_rate or loss.kl."
                    )
                shown = {"reward": "avg_rate_initial", "eff-rate": "eff_rate", "entropy": "entropy"}
                progress.update(
                    step,
                    {short: metrics[f"train/{name}"] for short, name in shown.items() if f"train/{name}" in metrics},
                )
                if trainer.held_out and (step % config.eval.every == 0 or step == total):
                    evaluated = trainer.evaluate()
                    writer.write(step, evaluated)
                    progress.print(
                        f"update {step}: held-out avg@{evaluated['eval/k']} = {100 * evaluated['eval/avg_at_k']:.1f} %"
                    )
                if step % config.checkpoint.every == 0 or step == total:
                    trainer.position.seconds = time.monotonic() - clock
                    trainer.save(store)
    if first_host:
        finish(config, workdir)


def finish(config, workdir: str) -> None:
    """The learning curve and the summary tables of a run that is done."""
    curve = report.learning_curve(workdir, pathlib.Path(workdir) / "learning_curve.png")
    run = report.read_run(workdir)
    tree, group_size = config.tree, config_lib.responses_per_question(config.tree)
    sampled = float(np.nanmean(run["train/tokens_per_question"][1]))
    length = float(np.nanmean(run["train/response_length_initial"][1]))
    shape = f"{tree.strategy} ({tree.initial},{tree.rounds},{tree.top_k},{tree.branch})"
    costs = [(f"{shape}: {group_size} responses", group_size, sampled)]
    costs += [(f"{n} independent responses", n, n * length) for n in (8, 12)]
    print("\n" + report.summary_table([report.summarize(workdir, config.method)]))
    print("\nTokens generated per question, mean over the run (independent: from the unguided responses' length)")
    print(
        report.summary_table(
            [
                {"sampling": name, "tokens": round(tokens), "responses per 1,000 tokens": 1000 * count / tokens}
                for name, count, tokens in costs
            ]
        )
    )
    print(f"\nlearning curve: {curve}")


if __name__ == "__main__":
    config_lib.run(train)
