"""AdamW with a warm-up, a schedule, global-norm clipping and weight decay on matrices only."""

from typing import Any

import jax
import optax

from ibtpo.choices import SCHEDULES
from ibtpo.errors import UserError

UNDECAYED = ("norm", "bias", "embedding")


def make_optimizer(config: Any, total_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimizer of a run.

    The learning rate of update t = 0, 1, ... is learning_rate * (t + 1) / warmup_steps during the
    warm-up (so that the first update already moves), then constant, or falling to 0 at
    `total_steps` along a line or a half cosine.

    Args:
      config: the `optimizer` section: learning_rate, schedule, warmup_steps, b1, b2, eps,
        weight_decay, clip_norm (global norm; 0 turns clipping off), first_moment_dtype.
      total_steps: updates of the whole run.

    Returns:
      (transform, schedule); schedule(t) is the rate of update t, skipped updates not counted.

    Raises:
      UserError: unknown schedule, or a warm-up longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if not 0 <= warmup <= total_steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup} must lie between 0 and the {total_steps} updates of the run (train.steps)"
        )
    rest = max(total_steps - warmup, 1)
    if config.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        schedule = optax.linear_schedule(peak, 0.0, rest)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(peak, rest)
    else:
        raise UserError(f"optimizer.schedule={config.schedule!r} is none of {', '.join(SCHEDULES)}")
    if warmup:
        rise = optax.linear_schedule(peak / warmup, peak + peak / warmup, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])

    transform = optax.chain(
        # A link either way: with and without clipping a run's saved state looks the same.
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            mu_dtype=config.first_moment_dtype,
        ),
    )
    return transform, schedule


def decay_mask(params: Any) -> Any:
    """Same structure as `params`, True where weight decay applies.

    Norm scales, biases and the token embedding (also where it serves as the output projection) do
    not decay; projections and an untied output head do. Told apart by name: the layers are stacked,
    so a norm scale is no vector.
    """

    def decays(path, _):
        name = jax.tree_util.keystr(path)
        return not any(word in name for word in UNDECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)
