"""What a run carries from one update to the next, and the update itself."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ibtpo.losses import LossOptions, Metrics, policy_loss, reduce_metrics, token_log_probs
from ibtpo.packing import TokenBatch
from ibtpo.parallel import constrain_params, replicate


@flax.struct.dataclass
class TrainState:
    """All of a run but the position of its data iterator, which is saved beside it.

    Attributes:
      step: int32 [], batches of trees trained on so far, those of skipped updates included; the loop's counter.
      params: parameters of the policy, `nnx.split(decoder, nnx.Param)[1]`.
      opt_state: state of the optax transform.
      ref_params: parameters of the frozen reference, or None where nothing needs one.
      key: typed PRNG key of the run; constant, every draw folds its own place into it.
      policy_version: int32 [], updates that changed the parameters.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    ref_params: nnx.State | None
    key: jax.Array
    policy_version: jax.Array


def create_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    keep_reference: bool,
    reference_dtype: Any = None,
) -> TrainState:
    """The state before the first update; the reference, if kept, is a copy of `params` in `reference_dtype` (default:
    theirs). In the type of the computation it is exact: every weight is cast to that where it is used.

    Under a mesh, shard `params` first: the optimizer's moments and the reference follow them.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy, because the update gives the memory of the parameters away.
        ref_params=jax.tree.map(lambda p: jnp.array(p, reference_dtype), params) if keep_reference else None,
        key=key,
        policy_version=jnp.zeros((), jnp.int32),
    )


def _microbatches(batch: Any, rows: int) -> Any:
    """[B, ...] -> [B / rows, rows, ...]; each takes every (B / rows)-th row, so that a mesh that
    splits B into contiguous shards finds some of its rows in every microbatch."""

    def split(x):
        return jnp.asarray(x).reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def _check_rows(num_rows: int, rows: int) -> None:
    if num_rows % rows:
        raise ValueError(
            f"{num_rows} rows do not divide into microbatches of train.rows_per_step={rows}: pack "
            f"with row_multiple={rows}"
        )


def make_log_probs(
    graphdef: nnx.GraphDef,
    *,
    temperature: float,
    rows_per_step: int,
    token_block: int = 128,
) -> Callable[[nnx.State, TokenBatch], jax.Array]:
    """Jitted (params, batch [B, T]) -> log-probabilities [B, T], without gradients.

    For the frozen reference: `rows_per_step` rows at a time; see `losses.token_log_probs`.
    """

    @jax.jit
    def log_probs(params: nnx.State, batch: TokenBatch) -> jax.Array:
        num_rows = batch.tokens.shape[0]
        _check_rows(num_rows, rows_per_step)

        def some_rows(rows):
            decoder = nnx.merge(graphdef, params)
            return token_log_probs(decoder, rows, temperature=temperature, token_block=token_block)[0]

        result = jax.lax.map(some_rows, _microbatches(batch, rows_per_step))
        return replicate(result.swapaxes(0, 1).reshape(num_rows, -1))

    return log_probs


def make_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    options: LossOptions,
    *,
    temperature: float,
    rows_per_step: int,
    token_block: int = 128,
    remat: str = "none",
    donate: bool = True,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jitted update(state, batch, ref_log_probs=None, old_log_probs=None, *, steps=1) -> (state, metrics): one
    optimizer step. `steps`, 1 or 0, is added to state.step: 0 where more updates on the same trees follow.

    The gradient is that of the whole batch: microbatches of `rows_per_step` rows are visited in
    turn and their gradients added, in float32 at least; the loss weights are normalised already,
    so the sum is exact. If the loss or the gradient's norm is not finite, or the gradient is zero
    (no group told its responses apart), the parameters and the optimizer's state stay as they are,
    and only `step` moves on: momentum and weight decay of earlier updates are no reason to move.

    Args:
      graphdef: static part of the decoder, `nnx.split(decoder, nnx.Param)[0]`.
      optimizer: of `optimizer.make_optimizer`.
      options: constants of the loss.
      temperature: of the sampling policy.
      rows_per_step: rows of one microbatch; must divide the batch's rows.
      token_block, remat: see `losses.token_log_probs`.
      donate: the caller gives up the state passed in (its memory is reused).

    The metrics are those of `losses.policy_loss` and `loss`, `grad_norm` (before clipping),
    `skipped_updates` (not finite) and `empty_updates` (no gradient), each (sum, weight). A skipped
    update reports its non-finite loss as it is.
    """

    def loss_fn(params, batch, ref_log_probs, old_log_probs):
        log_probs, entropy = token_log_probs(
            nnx.merge(graphdef, params),
            batch,
            temperature=temperature,
            token_block=token_block,
            remat=remat,
            entropy_gradient=options.needs_entropy,
        )
        return policy_loss(
            log_probs, batch, ref_log_probs, old_log_probs=old_log_probs, entropy=entropy, options=options
        )

    def update(
        state: TrainState,
        batch: TokenBatch,
        ref_log_probs: jax.Array | None = None,
        old_log_probs: jax.Array | None = None,
        *,
        steps: jax.Array | int = 1,
    ) -> tuple[TrainState, Metrics]:
        _check_rows(batch.tokens.shape[0], rows_per_step)

        # The layers' weights in the type they are used in, cast once and not in every microbatch. Their gradients arise
        # in that type, so nothing is lost and a microbatch's need no more memory. (Those of the vocabulary add up over
        # blocks of tokens, in float32.)
        dtype = nnx.merge(graphdef, state.params).dtype
        weights = constrain_params(
            jax.tree.map_with_path(lambda path, p: p.astype(dtype) if path[0].key == "layers" else p, state.params)
        )

        def add_microbatch(carry, microbatch):
            loss, gradient = carry
            (more_loss, metrics), more = jax.value_and_grad(loss_fn, has_aux=True)(weights, *microbatch)
            gradient = jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradient, more)
            return (loss + more_loss, constrain_params(gradient)), metrics

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), state.params)
        (loss, gradient), stacked = jax.lax.scan(
            add_microbatch,
            (jnp.zeros((), jnp.float32), constrain_params(zeros)),
            _microbatches((batch, ref_log_probs, old_log_probs), rows_per_step),
        )
        norm = optax.global_norm(gradient)
        # The moments have the parameters' type, and must keep it from update to update.
        gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        moves = finite & (norm > 0)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(moves, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        one = jnp.ones((), jnp.float32)
        metrics = reduce_metrics(stacked) | {
            "loss": (loss, one),
            "grad_norm": (norm, one),
            "skipped_updates": ((~finite).astype(jnp.float32), one),
            "empty_updates": ((finite & ~moves).astype(jnp.float32), one),
        }
        state = state.replace(
            step=state.step + steps,
            params=constrain_params(params),
            opt_state=constrain_params(opt_state),
            policy_version=state.policy_version + moves.astype(jnp.int32),
        )
        return state, replicate(metrics)

    return jax.jit(update, donate_argnums=0 if donate else ())
