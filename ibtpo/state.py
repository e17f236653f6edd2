"""The state that a run carries from one update to the next, and the update itself."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ibtpo.losses import LossOptions, Metrics, add_metrics, policy_loss, token_log_probs
from ibtpo.models import lora
from ibtpo.packing import TokenBatch
from ibtpo.parallel import constrain, constrain_params, replicate


class TrainState(flax.struct.PyTreeNode):
    """All of a run but the position of its data iterator, which is saved beside it.

    Attributes:
      step: int32 [], batches of trees trained on so far, those of skipped updates included; the loop's counter.
      params: what is trained: parameters of the policy, `nnx.split(decoder, nnx.Param)[1]`, or its adapters.
      opt_state: state of the optax transform.
      ref_params: parameters of the frozen reference, or None where nothing needs one; with adapters, their base.
      key: typed PRNG key of the run; constant, every draw folds its own place into it.
      policy_version: int32 [], updates that changed the parameters.
    """

    step: jax.Array
    params: nnx.State | lora.Adapters
    opt_state: optax.OptState
    ref_params: nnx.State | None
    key: jax.Array
    policy_version: jax.Array

    @property
    def policy(self) -> Any:
        """All parameters of the policy: `params`, or base and adapters, as `lora.decoder_of` and samplers take them."""
        return _policy(self.params, self.ref_params)

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained, and `ref_params`, which come from the model's folder, are not saved."""
        return isinstance(self.params, lora.Adapters)


def _policy(params: Any, base: nnx.State | None) -> Any:
    if not isinstance(params, lora.Adapters):
        return params
    assert base is not None
    return lora.Adapted(base, params)


def create_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    keep_reference: bool,
    reference_dtype: Any = None,
    adapters: lora.Adapters | None = None,
) -> TrainState:
    """The state before the first update; the reference, if kept, is a copy of `params` in `reference_dtype` (default:
    theirs). In the type of the computation it is exact: every weight is cast to that where it is used.

    With `adapters` these are trained, and `params` themselves are kept, as their base and the reference.

    Under a mesh, shard `params` first: the optimizer's moments and the reference follow them.
    """
    reference: nnx.State | None = params
    if adapters is None:
        # A copy, because the update gives the memory of the parameters away.
        reference = jax.tree.map(lambda p: jnp.array(p, reference_dtype), params) if keep_reference else None
    trained = params if adapters is None else adapters
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=trained,
        opt_state=optimizer.init(trained),
        ref_params=reference,
        key=key,
        policy_version=jnp.zeros((), jnp.int32),
    )


class _Microbatches:
    """The rows of a batch [B, T], some at a time, inside jit: microbatch m is every row m, m + M, ... of the M =
    B / rows_per_step, so that a mesh that splits B into contiguous shards finds some of its rows in each.

    count: int32 [], how many there are to visit, known at run time only: those behind the last with a token are
    padding. At least one.
    """

    def __init__(self, batch: TokenBatch, rows_per_step: int):
        num_rows = batch.tokens.shape[0]
        if num_rows % rows_per_step:
            raise ValueError(
                f"{num_rows} rows do not divide into microbatches of train.rows_per_step={rows_per_step}: plan them "
                f"with rows_per_step={rows_per_step}"
            )
        self._apart = num_rows // rows_per_step
        self._rows = jax.tree.map(self._split, batch)
        padding = jnp.arange(1, batch.tokens.shape[1] + 1)  # subtree_end of a token that nobody else sees
        used = jnp.any(self._rows.subtree_end != padding, axis=(0, 2))
        self.count = jnp.maximum(jnp.max(jnp.where(used, jnp.arange(1, self._apart + 1), 0)), 1)

    def _split(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(x).reshape(-1, self._apart, *x.shape[1:])

    def __getitem__(self, index: int | jax.Array) -> TokenBatch:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False), self._rows)


def make_log_probs(
    graphdef: nnx.GraphDef,
    *,
    temperature: float,
    rows_per_step: int,
    token_block: int = 128,
) -> Callable[[Any, TokenBatch], jax.Array]:
    """Jitted (params, batch [B, T]) -> log-probabilities [B, T], without gradients, split over devices as the rows are.

    params: plain ones, or `lora.Adapted`.

    `rows_per_step` rows at a time, see `losses.token_log_probs`; 0 in microbatches of padding, which are not visited.
    """

    @jax.jit
    def log_probs(params: Any, batch: TokenBatch) -> jax.Array:
        microbatches = _Microbatches(batch, rows_per_step)
        decoder = lora.decoder_of(graphdef, params)

        def some_rows(index, result):
            rows = microbatches[index]
            found, _ = token_log_probs(decoder, rows, temperature=temperature, token_block=token_block)
            return jax.lax.dynamic_update_index_in_dim(result, found, index, axis=1)

        num_rows, num_tokens = batch.tokens.shape
        nothing = jnp.zeros((rows_per_step, num_rows // rows_per_step, num_tokens), jnp.float32)
        result = jax.lax.fori_loop(0, microbatches.count, some_rows, constrain(nothing, "rows", None, None))
        return constrain(result.reshape(num_rows, num_tokens), "rows", None)

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
    state_shardings: Any = None,
) -> Callable[[TrainState, TokenBatch], tuple[TrainState, Metrics]]:
    """Jitted update(state, batch) -> (state, metrics): one optimizer step. `state.step` is the caller's to count.

    The gradient is that of the whole batch: microbatches of `rows_per_step` rows are visited in
    turn and their gradients added, in float32 at least; the loss weights are normalised already,
    so the sum is exact. How many hold anything is known at run time only: rows of padding at the end of a batch cost
    memory and no FLOPs, and batches of one shape are one compiled program, however much of them is used.

    If the loss or the gradient's norm is not finite, or the gradient is zero
    (no group told its responses apart), the parameters and the optimizer's state stay as they are:
    momentum and weight decay of earlier updates are no reason to move.

    Args:
      graphdef: static part of the decoder, `nnx.split(decoder, nnx.Param)[0]`.
      optimizer: of `optimizer.make_optimizer`.
      options: constants of the loss.
      temperature: of the sampling policy.
      rows_per_step: rows of one microbatch; must divide the batch's rows.
      token_block, remat: see `losses.token_log_probs`.
      donate: the caller gives up the state passed in (its memory is reused).
      state_shardings: of the state passed in (`parallel.shardings`), which the one that comes out is given too: another
        way of writing the same placement would compile the next update again.

    The metrics are those of `losses.policy_loss` and `loss`, `grad_norm` (before clipping),
    `skipped_updates` (not finite) and `empty_updates` (no gradient), each (sum, weight). A skipped
    update reports its non-finite loss as it is.
    """

    def loss_fn(params: Any, base: nnx.State | None, batch: TokenBatch) -> tuple[jax.Array, Metrics]:
        log_probs, entropy = token_log_probs(
            lora.decoder_of(graphdef, _policy(params, base)),
            batch,
            temperature=temperature,
            token_block=token_block,
            remat=remat,
            entropy_gradient=options.needs_entropy,
        )
        return policy_loss(log_probs, batch, entropy=entropy, options=options)

    def update(state: TrainState, batch: TokenBatch) -> tuple[TrainState, Metrics]:
        dtype = lora.decoder_of(graphdef, state.policy).dtype
        microbatches = _Microbatches(batch, rows_per_step)
        loss, gradient, metrics = _sum_of_gradients(loss_fn, state, dtype, microbatches)
        state, of_step = _step(optimizer, state, loss, gradient)
        return state, replicate(metrics | of_step)

    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(update, donate_argnums=0 if donate else (), out_shardings=out_shardings)


def _sum_of_gradients(
    loss_fn: Callable, state: TrainState, dtype: Any, microbatches: _Microbatches
) -> tuple[jax.Array, Any, Metrics]:
    """(loss, gradient, metrics) of all microbatches, one after the other. dtype: of the computation.

    With adapters the gradient is theirs alone: that of a layer's sum is there while the layer is visited."""
    params = weights = state.params
    if not state.has_adapters:
        # The layers' weights in the type they are used in, cast once and not in every microbatch. Their gradients arise
        # in that type, so nothing is lost and a microbatch's need no more memory. (Those of the vocabulary add up over
        # blocks of tokens, in float32.)
        weights = constrain_params(
            jax.tree.map_with_path(lambda path, p: p.astype(dtype) if path[0].key == "layers" else p, params)
        )

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def add_microbatch(index, total):
        loss, gradient, metrics = total
        (more_loss, more_metrics), more = gradient_fn(weights, state.ref_params, microbatches[index])
        gradient = jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradient, more)
        return loss + more_loss, constrain_params(gradient), add_metrics(metrics, more_metrics)

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params)
    shapes = jax.eval_shape(loss_fn, weights, state.ref_params, microbatches[0])[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = (jnp.zeros((), jnp.float32), constrain_params(zeros), nothing)
    return jax.lax.fori_loop(0, microbatches.count, add_microbatch, start)


def _step(
    optimizer: optax.GradientTransformation, state: TrainState, loss: jax.Array, gradient: Any
) -> tuple[TrainState, Metrics]:
    """The optimizer's step, unless the loss or the gradient is not finite or the gradient is zero; and its metrics."""
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
    metrics = {
        "loss": (loss, one),
        "grad_norm": (norm, one),
        "skipped_updates": ((~finite).astype(jnp.float32), one),
        "empty_updates": ((finite & ~moves).astype(jnp.float32), one),
    }
    state = state.replace(
        params=constrain_params(params),
        opt_state=constrain_params(opt_state),
        policy_version=state.policy_version + moves.astype(jnp.int32),
    )
    return state, metrics
