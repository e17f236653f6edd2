"""Tunix's policy loss and advantages on given arrays, in its own environment.

    python tunix_losses.py IN.npz OUT.npz

Reads, for every case i and every method of `settings` (JSON: {method: fields of the algorithm config}),

    i/log_probs, i/old, i/ref, i/importance     [B, T]
    i/rewards                                   [questions, responses]
    i/METHOD/mask, /advantages, /use_importance [B, T], [B], scalar

and writes i/METHOD/float32/loss and /gradient [B, T], with respect to the log-probabilities, i/advantages/ESTIMATOR and
versions (JSON). Loss, aggregation and estimators are Tunix's own, found by name in its registry. What stands in is the
model, whose logits are such that Tunix reads the given log-probabilities from them.
"""

import importlib.metadata
import importlib.util
import json
import sys
import types

import numpy as np


def import_without_package_init() -> None:
    """Makes `tunix` importable without running its __init__, which imports all trainers and what they depend on."""
    package = types.ModuleType("tunix")
    package.__path__ = list(importlib.util.find_spec("tunix").submodule_search_locations)
    sys.modules["tunix"] = package


import_without_package_init()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.rl import algo_core, common, function_registry  # noqa: E402

PAD, TOKEN = 0, 1
DEFAULTS = dict(
    epsilon=0.2, beta=0.0, loss_algo="grpo", temperature=1.0, kl_loss_mode="low_var_kl", kl_clamp_value=None
)


class Given(nnx.Module):
    """A vocabulary of two, behind a prompt of one token: TOKEN has the given log-probability, PAD the rest."""

    def __init__(self, log_probs: jax.Array):
        self.log_probs = nnx.Param(log_probs)

    def __call__(self, tokens, positions, cache, attention_mask):
        log_probs = self.log_probs[...]
        logits = jnp.stack([jnp.log1p(-jnp.exp(log_probs)), log_probs], axis=-1)
        return jnp.pad(logits, ((0, 0), (0, 1), (0, 0))), None  # the last token's predict nothing


def make_loss(config: dict):
    """jitted (log_probs, example) -> (loss, gradient)."""
    options = types.SimpleNamespace(**DEFAULTS | config)
    loss_fn = function_registry.get_policy_loss_fn("grpo")
    assert loss_fn is algo_core.grpo_loss_fn

    def loss(log_probs, example):
        return loss_fn(Given(log_probs), example, options, pad_id=PAD, eos_id=-1)[0]

    return jax.jit(jax.value_and_grad(loss))


def main() -> None:
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    result = {}
    number = 1 + max(int(name.split("/")[0]) for name in arrays if "/" in name)
    for method, config in json.loads(str(arrays["settings"])).items():
        value_and_grad = make_loss(config)
        for i in range(number):
            log_probs, old, ref, importance = (
                jnp.asarray(arrays[f"{i}/{name}"], jnp.float32) for name in ("log_probs", "old", "ref", "importance")
            )
            tokens = jnp.full(log_probs.shape, TOKEN)
            example = common.TrainExample(
                prompt_ids=tokens[:, :1],
                prompt_mask=tokens[:, :1],
                completion_ids=tokens,
                completion_mask=jnp.asarray(arrays[f"{i}/{method}/mask"], jnp.int32),
                advantages=jnp.asarray(arrays[f"{i}/{method}/advantages"], jnp.float32),
                ref_per_token_logps=ref if config.get("beta") else None,
                old_per_token_logps=old,
                sampler_is_weights=importance if arrays[f"{i}/{method}/use_importance"] else None,
            )
            loss, gradient = value_and_grad(log_probs, example)
            result |= {f"{i}/{method}/float32/loss": loss, f"{i}/{method}/float32/gradient": gradient}
    for i in range(number):
        rewards = arrays[f"{i}/rewards"]
        for name in ("grpo", "rloo", "drgrpo"):
            estimate = function_registry.get_advantage_estimator(name)
            result[f"{i}/advantages/{name}"] = np.asarray(estimate(rewards.reshape(-1), rewards.shape[1]))
    versions = dict(tunix=importlib.metadata.version("google-tunix"), tunix_jax=jax.__version__)
    np.savez(sys.argv[2], versions=np.array(json.dumps(versions)), **{k: np.asarray(v) for k, v in result.items()})


if __name__ == "__main__":
    main()
