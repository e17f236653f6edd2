"""The method, as the paper tells it: sample and grade, select, score and pack, update, measure."""

import dataclasses
import itertools
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from ibtpo import checkpoints, memory, parallel
from ibtpo import config as config_lib
from ibtpo.advantages import AdvantageOptions, at_tokens, by_token, compute_advantages, group_is_uniform
from ibtpo.choices import TOKEN_ADVANTAGES
from ibtpo.data.datasets import load_training
from ibtpo.data.iterator import ProblemIterator
from ibtpo.data.problems import Problem, lengths_to_prefill, load_problems
from ibtpo.evaluation.run import evaluate, make_eval_sampler
from ibtpo.fingerprints import check_same, fingerprints
from ibtpo.interruption import GivenUp, Interruption
from ibtpo.metrics.cost import StepCost
from ibtpo.metrics.step import Sampled, Update, step_metrics
from ibtpo.packing import Layout, TokenBatch, fill, moved, place_weights, plan, unpack
from ibtpo.policy import load_policy, make_grade, make_grader, make_sampler
from ibtpo.precompiled import Program
from ibtpo.profiling import phase
from ibtpo.run_plan import RunPlan, initial_state, make_programs, run_optimizer
from ibtpo.sampling import SamplerStats
from ibtpo.sampling.logits import SamplingParams
from ibtpo.saved_trees import TreeFile
from ibtpo.saved_trees.shown import ShownTrees
from ibtpo.shaping import shape
from ibtpo.skipped import SkippedUpdates
from ibtpo.token_weights import sequence_weights, token_weights, whiten
from ibtpo.tree import Array, Tree, response_mask, stack_trees

OnSampled = Callable[[list[Tree], list[Problem]], None]


@dataclasses.dataclass
class Position:
    """Where a run is, besides its arrays; saved with every checkpoint.

    data: of the problem iterator. generated_tokens, questions: so far, over all updates.
    seconds: spent so far, over all invocations. owes_evaluation: the one of this step was given up.
    """

    data: dict
    generated_tokens: int = 0
    questions: int = 0
    seconds: float = 0.0
    owes_evaluation: bool = False


class Trainer:
    """One run: everything that is built once, and the three things it does (update, evaluate, save). Making it
    sets the program's mesh.

    The method is in `update`, which reads top to bottom like the paper's algorithm.
    """

    def __init__(self, config: Any, interruption: Interruption | None = None):
        self.interruption = interruption or Interruption()
        self.config, self.mesh = config, parallel.use_mesh(config.mesh)
        config_lib.check_split(config, parallel.num_row_shards())
        self.policy = load_policy(config, mesh=self.mesh, check=memory.check_training)
        self.problems = load_training(config.data, self.policy.tokenizer)
        self.held_out = load_held_out(config, self.policy.tokenizer)
        self.fingerprints = fingerprints(self.policy, self.problems, chat_template=config.data.chat_template)
        self.batches = ProblemIterator(self.problems, config.train.questions_per_step, config.train.seed)

        self.sampler = make_sampler(self.policy, config, questions=config.train.questions_per_step, training=True)
        self.eval_sampler = make_eval_sampler(self.policy, config, len(self.held_out), training=True)
        self.sampling = SamplingParams.from_config(config.sampling)
        self.grader = make_grader(config)

        self.plan = RunPlan.from_config(config)
        optimizer, self.schedule = run_optimizer(config, self.plan)
        key = jax.random.key(config.train.seed)
        assert self.policy.params is not None  # just loaded
        state = initial_state(config, self.plan, optimizer, self.policy.params, key)
        shardings = parallel.shardings(state, self.mesh)
        self.state = jax.device_put(state, shardings)
        self.programs = make_programs(config, self.plan, self.policy.graphdef, optimizer, shardings)
        self.policy = self.policy.with_params(None)  # the state owns them: an update donates their memory
        self.advantage_options = AdvantageOptions.from_config(config)
        self.position = Position(data=self.batches.state())
        self.skipped = SkippedUpdates()
        self.cost = StepCost.from_config(config, self.policy.model)
        self.shown = ShownTrees(config.log.trees)

    def programs_ahead(self, *, updates: bool) -> dict[str, list[Program]]:
        """What the run will call, for `precompiled.compile_all`. updates: whether any are left."""
        groups: dict[str, list[Program]] = {}
        if updates:
            # First what takes longest.
            groups["update"] = self.programs.ahead(self.plan, self.state, self.mesh)
            groups["sampler"] = self.sampler.ahead(self.state.policy, lengths_to_prefill(self.problems))
        if self.held_out:
            groups["evaluation"] = self.eval_sampler.ahead(self.state.policy, lengths_to_prefill(self.held_out))
        return groups

    # The algorithm.

    def update(self, on_sampled: OnSampled | None = None) -> dict[str, float]:
        """One step of the method: sample and grade, select, score and pack, update, measure. Returns its metrics.

        on_sampled: told of the trees that were sampled, before any is replaced or trained on.

        Raises GivenUp if the sampling is given up, with the run as it was before the step.
        """
        started, before = time.monotonic(), (dataclasses.replace(self.position), self.batches.state())
        try:
            with phase("sample and grade"):
                sampled = self.sample_batch(on_sampled)
        except GivenUp:
            self.position = before[0]
            self.batches.restore(before[1])
            raise
        sampled_at = time.monotonic()
        self.position.generated_tokens += sampled.stats.generated_tokens
        counted = select(sampled.tree, self.config.loss)
        updates = []
        with memory.enough(self.config, "updating", memory.UPDATE):
            for layout, batch in self.score_and_pack(sampled, counted):
                with phase("optimizer step"):
                    self.state, metrics = self.programs.update(self.state, batch)
                updates.append(Update(layout, batch, metrics))
        self.state = self.state.replace(step=self.state.step + 1)
        with phase("wait for the update"):
            self.skipped.count(updates)
        seconds = {"sample_s": sampled_at - started, "update_s": time.monotonic() - sampled_at}
        times = {f"time/{name}": value for name, value in seconds.items()}
        trained = np.any(counted, axis=1)
        cost = self.cost.metrics(sampled.tree, trained, sampled.stats.generated_tokens, seconds)
        return self.measure(sampled, updates) | times | cost

    def sample_batch(self, on_sampled: OnSampled | None = None) -> Sampled:
        """Graded trees of the next questions. Where the rewards of one are all equal, another question takes its place,
        up to train.refills times (DAPO's dynamic sampling)."""
        number, before = self.config.train.questions_per_step, self.grader.counts
        replaced: list[Tree] = []
        problems = self.batches.take(number)
        trees, stats = self.sample(problems)
        if on_sampled is not None:
            on_sampled(trees, problems)
        for _ in range(self.config.train.refills):
            uniform = [bool(group_is_uniform(tree)[0]) for tree in trees]
            if not any(uniform):
                break
            replaced += itertools.compress(trees, uniform)
            others = self.batches.take(sum(uniform))
            more, added = self.sample(others)
            kept = [not equal for equal in uniform]
            trees = [*itertools.compress(trees, kept), *more]
            problems = [*itertools.compress(problems, kept), *others]
            stats += added
        graded = {name: count - before[name] for name, count in self.grader.counts.items()}
        everything = stack_trees(trees + replaced)
        shaping, terms = shape(everything, self.config.reward, self.config.sampling.max_new_tokens, self.policy.text)
        return Sampled(
            tree=stack_trees(trees) if replaced else everything,
            problems=problems,
            everything=everything,
            shaping=shaping if shaping is None else shaping[: len(trees)],
            terms=terms,
            graded=graded,
            stats=stats,
        )

    def sample(self, problems: list[Problem]) -> tuple[list[Tree], SamplerStats]:
        """Grows a graded tree for each problem with the current policy."""
        # The position in the run is the question's id: the same problem draws anew in every epoch.
        first = self.position.questions
        self.position.questions += len(problems)
        by_id = {first + i: problem for i, problem in enumerate(problems)}
        questions = [self.policy.question(id, p, self.config.data) for id, p in by_id.items()]
        with memory.enough(self.config, "sampling", memory.SAMPLING):
            sampled, stats = self.sampler(
                self.state.policy,
                questions,
                make_grade(self.policy, self.grader, by_id),
                key=self.state.key,
                sampling=self.sampling,
                between_chunks=self.interruption.sampling,
            )
        return [each.tree for each in sampled], stats

    def score_and_pack(self, sampled: Sampled, counted: np.ndarray) -> Iterator[tuple[Layout, TokenBatch]]:
        """For each optimizer step, when its turn comes, the trees of it in rows on the devices, weighted among
        themselves: every batch is (its layout, its rows).

        counted: [Q, R], the responses that are trained on.
        """
        loss = self.config.loss
        tree = by_token(sampled.tree) if self.plan.by_token else sampled.tree
        layout, rows = self.pack(tree, counted)
        log_probs = {}
        if self.plan.keep_reference:
            log_probs["ref_log_probs"] = self.programs.log_probs(self.state.ref_params, rows)
        if self.plan.needs_old_log_probs:
            log_probs["old_log_probs"] = self.programs.log_probs(self.state.policy, rows)
        # A step is a step still where its tokens are weighted one by one.
        by_step = self.plan.by_token and loss.advantage not in TOKEN_ADVANTAGES
        scored = sampled.tree if by_step else tree
        if loss.ib_confidence == "reference":
            reference = unpack(parallel.to_host(log_probs["ref_log_probs"]), layout)
            scored = scored.replace(log_probs=np.where(scored.step > 0, reference, 0))
        advantages = compute_advantages(loss.advantage, scored, self.advantage_options, sampled.shaping)
        advantages = at_tokens(sampled.tree, advantages) if by_step else advantages
        trained = counted[:, :, None] & (advantages != 0) if loss.skip_zero_advantages else counted
        if loss.whiten_advantages:
            unique = loss.aggregation == "unique_mean"
            advantages = whiten(tree, advantages, trained, unique=unique, max_old_probability=loss.max_old_probability)
        self.shown.update(sampled, advantages)
        for part in self.minibatches(len(tree.tokens)):
            if part is None:
                yield layout, self.weigh(layout, rows, tree, advantages, trained).replace(**log_probs)
                continue
            of_part = jax.tree.map(operator.itemgetter(part), (tree, advantages, trained))
            own_layout, own_rows = self.pack(of_part[0], counted[part])
            own_log_probs = {name: moved(x, layout, own_layout, part) for name, x in log_probs.items()}
            yield own_layout, self.weigh(own_layout, own_rows, *of_part).replace(**own_log_probs)

    def pack(self, tree: Tree, counted: np.ndarray) -> tuple[Layout, TokenBatch]:
        """The trees with a response that counts, in rows on the devices that weigh nothing yet."""
        trained = np.any(counted, axis=1)
        longest = int((tree.step >= 0).sum(axis=1).max(where=trained, initial=0))
        with phase("pack"):
            layout = plan(
                tree,
                row_tokens=self.plan.row_tokens(longest),
                rows_per_step=self.plan.rows_per_step,
                num_rows=self.plan.num_rows,
                select=trained,
            )
            return layout, parallel.shard_batch(fill(layout, tree), self.mesh)

    def weigh(self, layout: Layout, rows: TokenBatch, tree: Tree, advantages: Array, trained: np.ndarray) -> TokenBatch:
        """The rows with each token's weights in the loss. trained: the responses of these trees, [Q, R], or their nodes
        [Q, R, N], that are."""
        loss = self.config.loss
        options = dict(
            aggregation=loss.aggregation,
            shared_tokens=loss.shared_tokens,
            max_new_tokens=self.config.sampling.max_new_tokens,
            max_old_probability=loss.max_old_probability,
            mask=trained,
        )
        if self.plan.needs_own_log_probs:
            own = unpack(parallel.to_host(self.programs.log_probs(self.state.policy, rows)), layout)
            options |= dict(clip_low=loss.clip_low, clip_high=loss.clip_high)
            weights = sequence_weights(tree, advantages, own, **options)
        else:
            weights = token_weights(tree, advantages, **options)
        return rows.replace(**parallel.shard_batch(place_weights(layout, tree, weights), self.mesh))

    def minibatches(self, num_trees: int) -> list[np.ndarray | None]:
        """The trees of each of the step's updates: all of them (None) in every epoch, or random minibatches."""
        train = self.config.train
        if train.minibatches == 1:
            return [None] * train.epochs
        rng = np.random.default_rng((train.seed, self.position.questions))
        return [
            np.sort(part)
            for _ in range(train.epochs)
            for part in np.array_split(rng.permutation(num_trees), train.minibatches)
        ]

    def measure(self, sampled: Sampled, updates: list[Update]) -> dict[str, float]:
        """The metrics of a step that is done."""
        masked = group_is_uniform(sampled.tree) & self.config.loss.mask_uniform_groups
        return step_metrics(
            sampled,
            updates,
            self.advantage_options,
            learning_rate=float(self.schedule(max(int(self.state.policy_version) - 1, 0))),
            generated_tokens=self.position.generated_tokens,
            masked_groups=float(masked.mean()),
        )

    def evaluate(self) -> dict[str, float]:
        """Held-out accuracy of the current policy, as metrics. Raises GivenUp if it is given up."""
        started = time.monotonic()
        summary = evaluate(
            self.policy,
            self.state.policy,
            self.held_out,
            self.eval_sampler,
            self.grader,
            self.config,
            on_finished=self.shown.evaluated(self.held_out),
            between_chunks=self.interruption.evaluating,
        ).summary()
        return {f"eval/{name}": value for name, value in summary.items()} | {
            "train/generated_tokens": self.position.generated_tokens,
            "time/eval_s": time.monotonic() - started,
        }

    def shown_of_update(self, step: int) -> TreeFile | None:
        """The trees of the last update that are kept for people to look at; None: none are."""
        return self.shown.of_update(step, self.policy, self.config, self.plan.by_token)

    def shown_of_evaluation(self, step: int) -> TreeFile | None:
        """Those of the last evaluation."""
        return self.shown.of_evaluation(step, self.policy, self.config)

    # Beginning and end.

    def restore(self, store: checkpoints.Checkpoints) -> bool:
        """Continues from the newest good checkpoint; False if there is none.

        Raises:
          ConfigError: it is of another run's configuration; the workdir may be new where checkpoint.dir is not.
          UserError: it is of a run on other problems, or another model; see also `Checkpoints.restore`.
        """
        if store.latest_step() is None:
            return False
        data, model = f"data.source={self.config.data.source}", f"model.path={self.config.model.path}"

        def check(saved: dict) -> None:
            # First: a checkpoint of another configuration holds other arrays, which is no news about them.
            way_out = "choose a new --config.checkpoint.dir"
            config_lib.check_same(str(store.path), saved["config"], self.config.to_dict(), way_out)
            names = dict(data=data, model=model, tokenizer=model)
            check_same(store.path, saved["fingerprints"], self.fingerprints, names)

        self.state, position = store.restore(self.state, check=check)
        self.position = Position(**position)
        self.batches.restore(self.position.data)
        return True

    def save(self, store: checkpoints.Checkpoints) -> None:
        """Saves everything of the run."""
        self.position.data = self.batches.state()
        store.save(self.state, dataclasses.asdict(self.position), self.config.to_dict(), self.fingerprints)


def select(tree: Tree, loss: Any) -> np.ndarray:
    """The responses that are trained on, [Q, R] bool: not those of groups whose rewards are all equal
    (loss.mask_uniform_groups), nor those that were cut off (loss.mask_truncated).

    loss: the `loss` section of a config.
    """
    counted = response_mask(tree)
    if loss.mask_uniform_groups:
        counted = counted & ~group_is_uniform(tree)[:, None]
    return np.asarray(counted & ~tree.truncated if loss.mask_truncated else counted)


def load_held_out(config: Any, tokenizer: Any) -> list[Problem]:
    """The first eval.questions problems of data.eval_split; none with eval.every=0."""
    data = config.data
    if not config.eval.every:
        return []
    if data.source.partition(":")[0] in ("jsonl", "parquet") and "{split}" not in data.source:
        logging.warning(
            "data.source=%r has no {split}: the training problems are evaluated. Set eval.every=0, or name "
            "two files in one, e.g. jsonl:problems_{split}.jsonl",
            data.source,
        )
    return load_problems(data, data.eval_split, tokenizer)[: config.eval.questions or None]
