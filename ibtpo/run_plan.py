"""The programs and parameters that a config needs: said once, for the trainer, compile_check and the benchmarks alike.

The programs of training are `update` and, where a method needs them, `log_probs` of the reference's parameters, of the
policy's own, or of both. Each is compiled once for each of `row_lengths`, which are known before the run: the rows are
a buffer of `num_rows`, the most there can be, and how many of them are used is known to the program at run time only.
"""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx
from jax import numpy as jnp

from ibtpo import parallel
from ibtpo.choices import TOKEN_ADVANTAGES
from ibtpo.losses import LossOptions
from ibtpo.models import lora
from ibtpo.optimizer import make_optimizer
from ibtpo.packing import TokenBatch, row_length
from ibtpo.precompiled import Precompiled, Program
from ibtpo.sampling.strategies import TreeOptions, most_responses
from ibtpo.state import TrainState, create_state, make_log_probs, make_update

# A row as long as the largest tree there can be, and these shares of it, for steps of shorter trees.
ROW_SHARES = (1 / 4, 1 / 2, 1)


@dataclass(frozen=True)
class RunPlan:
    """The programs and parameters of a run of a config.

    keep_reference: the frozen reference's parameters, and their log-probabilities in every step.
    needs_old_log_probs: the policy's own log-probabilities before the first of a step's updates: a weight of truncated
      importance sampling is to them (before the first update they are what the update itself computes).
    needs_own_log_probs: the policy's own before each update: the ratio of gspo is that of whole responses.
    by_token: tokens are weighted one by one, in trees with a node for each.
    updates_per_step: optimizer steps on each batch of trees.
    row_lengths: T of the rows, ascending; one program each.
    pieces_per_tree: the most pieces that a tree is cut into.
    num_trees: trees of a step. rows_per_step: rows of a microbatch.
    adapters: what is trained instead of all parameters, whose base is kept then whatever `keep_reference` says; None:
      all parameters.
    """

    keep_reference: bool
    needs_old_log_probs: bool
    needs_own_log_probs: bool
    by_token: bool
    updates_per_step: int
    row_lengths: tuple[int, ...]
    pieces_per_tree: int
    num_trees: int
    rows_per_step: int
    adapters: lora.LoraOptions | None = None

    @classmethod
    def from_config(cls, config: Any) -> "RunPlan":
        """Of a resolved configuration."""
        loss, train, sampling = config.loss, config.train, config.sampling
        updates = train.epochs * train.minibatches
        group = most_responses(TreeOptions.from_config(config))
        longest = config.data.max_prompt_tokens + sampling.max_new_tokens
        largest = config.data.max_prompt_tokens + group * sampling.max_new_tokens
        if train.row_tokens:
            row_lengths: tuple[int, ...] = (train.row_tokens,)
        else:
            row_lengths = tuple(sorted({row_length(max(longest, int(share * largest))) for share in ROW_SHARES}))
        return cls(
            keep_reference=loss.kl > 0 or loss.ib_confidence == "reference",
            needs_old_log_probs=loss.importance_cap > 0 and updates > 1,
            needs_own_log_probs=loss.objective == "gspo",
            by_token=loss.advantage in TOKEN_ADVANTAGES or loss.shared_tokens == "once",
            updates_per_step=updates,
            row_lengths=row_lengths,
            # Every piece has the end of a response (`packing.plan`).
            pieces_per_tree=1 if row_lengths[-1] >= largest else group,
            num_trees=train.questions_per_step,
            rows_per_step=train.rows_per_step,
            adapters=lora.LoraOptions.from_config(config.model),
        )

    def row_tokens(self, longest_tree: int) -> int:
        """T of rows for trees of at most `longest_tree` tokens: the least of `row_lengths` that holds them whole, or
        the greatest."""
        return next((length for length in self.row_lengths if length >= longest_tree), self.row_lengths[-1])

    @property
    def num_rows(self) -> int:
        """B of the rows: the most that a step's trees can need, whole or in pieces."""
        return -(-self.num_trees * self.pieces_per_tree // self.rows_per_step) * self.rows_per_step

    def abstract_batch(self, row_tokens: int, mesh: jax.sharding.Mesh, *, filled: bool = False) -> TokenBatch:
        """The rows of one update, of `row_tokens` tokens, as they lie on the devices; `filled`: with the
        log-probabilities that the plan asks for."""
        shape = (self.num_rows, row_tokens)
        sharding = jax.NamedSharding(mesh, parallel.partition_spec(("rows", None), shape, mesh))
        integers, floats = (jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for kind in (jnp.int32, jnp.float32))
        fields: dict[str, Any] = dict.fromkeys(("tokens", "positions", "subtree_end", "parent_token"), integers)
        fields |= dict.fromkeys(("log_probs", "positive", "negative", "weight"), floats)
        fields["ref_log_probs"] = floats if filled and self.keep_reference else None
        fields["old_log_probs"] = floats if filled and self.needs_old_log_probs else None
        return TokenBatch(**fields)

    @property
    def log_probs_of(self) -> tuple[str, ...]:
        """Whose log-probabilities are asked for: "reference", "policy", or both; a program each, where their types
        differ."""
        own = self.needs_old_log_probs or self.needs_own_log_probs
        return ("reference",) * self.keep_reference + ("policy",) * own


@dataclass(frozen=True)
class Programs:
    """The jitted programs of training.

    update(state, batch) -> (state, metrics), see `state.make_update`. log_probs(params, batch) -> [B, T], see
    `state.make_log_probs`.
    """

    update: Precompiled
    log_probs: Precompiled

    def ahead(self, plan: RunPlan, state: TrainState, mesh: jax.sharding.Mesh) -> list[Program]:
        """All that a run of the plan can call with such a state, for `precompiled.compile_all`, the longest to compile
        first. Which lengths of rows the trees will need is not known before, so it is all of them."""
        whose = {"reference": state.ref_params, "policy": state.policy}
        lengths = plan.row_lengths[::-1]
        updates = [self.update.program(state, plan.abstract_batch(n, mesh, filled=True)) for n in lengths]
        return updates + [
            self.log_probs.program(whose[name], plan.abstract_batch(n, mesh))
            for n in lengths
            for name in plan.log_probs_of
        ]


def run_optimizer(config: Any, plan: RunPlan) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run, and its learning rate by update; see `optimizer.make_optimizer`."""
    return make_optimizer(config.optimizer, config.train.steps * plan.updates_per_step)


def initial_state(
    config: Any, plan: RunPlan, optimizer: optax.GradientTransformation, params: nnx.State, key: jax.Array
) -> TrainState:
    """The state before the first update, with the parameters that the plan keeps, or adapters of them."""
    adapters = None
    if plan.adapters is not None:
        adapters = lora.create(params, plan.adapters, key, config.model.param_dtype)
    return create_state(
        params,
        optimizer,
        key,
        keep_reference=plan.keep_reference,
        reference_dtype=config.model.dtype,
        adapters=adapters,
    )


def make_programs(
    config: Any,
    plan: RunPlan,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state_shardings: Any = None,
) -> Programs:
    """graphdef: of the policy's decoder. state_shardings: see `state.make_update`."""
    forward = dict(
        temperature=config.sampling.temperature,
        rows_per_step=plan.rows_per_step,
        token_block=config.train.token_block,
    )
    update = make_update(
        graphdef,
        optimizer,
        LossOptions.from_config(config.loss),
        remat=config.model.remat,
        state_shardings=state_shardings,
        **forward,
    )
    return Programs(
        update=Precompiled(update, key=lambda state, batch: batch.tokens.shape),
        # The reference's parameters may have another type than the policy's, or be the base of its adapters.
        log_probs=Precompiled(
            make_log_probs(graphdef, **forward),
            key=lambda params, batch: (batch.tokens.shape, type(params), jax.tree.leaves(params)[0].dtype),
        ),
    )
