"""The policy that a run has saved, with its adapters merged into the model that they belong to."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ibtpo import checkpoints, parallel
from ibtpo.config import EARLIER
from ibtpo.errors import UserError
from ibtpo.fingerprints import of_model
from ibtpo.models import lora
from ibtpo.models.config import ModelConfig
from ibtpo.policy import Policy, load_policy
from ibtpo.precompiled import abstract

# The base is given up: a matrix and its sum take one place.
_merged = jax.jit(
    lambda base, adapters, dtype: lora.merged(lora.Adapted(base, adapters), dtype),
    static_argnames="dtype",
    donate_argnames="base",
)


def load_saved(
    config: Any,
    run: str | os.PathLike,
    step: int,
    *,
    mesh: Mesh,
    check: Callable[[Any, ModelConfig], None] | None = None,
) -> tuple[Policy, lora.Adapters | None]:
    """(the policy saved at `step` of a run, with plain parameters; its adapters, None where it has none).

    Merged parameters are the sums that were sampled from and trained, in model.dtype. On several hosts all call this.

    Args:
      run: workdir of the training run, or the folder of its checkpoints.
      check: see `load_policy`.

    Raises:
      UserError: as `load_policy` and `checkpoints.load_params`; the checkpoint is of other adapters than the config
        says, or of adapters of another model than model.path holds.
    """
    with parallel.together():
        policy = load_policy(config, mesh=mesh, check=check)
    options, base, now = lora.LoraOptions.from_config(config.model), policy.params, ""
    like: Any = base
    if options is not None:
        now = of_model(policy)
        like = jax.eval_shape(
            lambda base: lora.create(base, options, jax.random.key(0), config.model.param_dtype), base
        )
        like = abstract(like, parallel.shardings(like, mesh))

    def agrees(saved: dict) -> None:
        _check_adapters(run, step, saved["config"].get("model", {}), config)
        if options is not None and saved["fingerprints"].get("model") != now:
            raise UserError(
                f"step {step} of {run}: its adapters belong to another model than the one in model.path="
                f"{config.model.path} ({saved['fingerprints'].get('model', 'not recorded')} then, {now} now): bring "
                "back the weights that the run began from"
            )

    with parallel.together():
        found = checkpoints.load_params(run, like, step, check=agrees)
    if options is None:
        return policy.with_params(found), None
    return policy.with_params(_merged(base, found, dtype=config.model.dtype)), found


def _check_adapters(run: Any, step: int, saved: Mapping[str, Any], config: Any) -> None:
    """Refuses a config that would make another policy of the same arrays. saved: the `model` section of the run."""
    names = [key.split(".")[1] for key in EARLIER if key.startswith("model.lora_")]
    if config.model.lora_rank:
        names.append("dtype")  # in which the sums are, and the base is compared
    for name in names:
        given = config.model[name]
        trained = saved.get(name, EARLIER.get(f"model.{name}", given))
        # Without adapters the other keys say nothing.
        if trained != given and (name == "lora_rank" or config.model.lora_rank):
            raise UserError(
                f"step {step} of {run} was trained with model.{name}={trained!r}, not {given!r}: set "
                f"--config.model.{name}={trained}"
            )
