"""TRL's GRPO losses on given arrays, in its own environment.

    python trl_losses.py IN.npz OUT.npz

Reads, for every type of `dtypes`, every case i and every method of `settings` (JSON: {method: fields of GRPOConfig}),

    i/log_probs, i/old, i/ref, i/importance     [B, T]
    i/METHOD/mask, /advantages                  [B, T], [B]

and writes i/METHOD/DTYPE/loss and /gradient [B, T], with respect to the log-probabilities, and versions (JSON).

The loss is GRPOTrainer._compute_loss with the settings of a real GRPOConfig. What stands in is the trainer around it:
the attributes that the method reads, set as GRPOTrainer.__init__ does from that config, and the model's
log-probabilities, which are those given.
"""

import collections
import importlib.metadata
import json
import sys
import tempfile

import numpy as np
import torch
from accelerate import Accelerator
from trl import GRPOConfig, GRPOTrainer


class Trainer:
    """The trainer's attributes that `GRPOTrainer._compute_loss` reads: one process, one accumulation step, training."""

    current_gradient_accumulation_steps = 1
    aux_loss_enabled = False
    use_adaptive_entropy = False
    _entropy_bonus_enabled = False

    def __init__(self, config: GRPOConfig, log_probs: torch.Tensor, accelerator: Accelerator):
        self.args, self.accelerator, self.log_probs = config, accelerator, log_probs
        for name in (
            "beta", "loss_type", "importance_sampling_level", "max_completion_length", "top_entropy_quantile",
            "off_policy_mask_threshold", "use_vllm", "vllm_importance_sampling_correction",
        ):  # fmt: skip
            setattr(self, name, getattr(config, name))
        self.epsilon_low = config.epsilon
        self.epsilon_high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        self.model = torch.nn.Identity().train()
        self._metrics = {"train": collections.defaultdict(list)}

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        return self.log_probs, torch.zeros_like(self.log_probs), None


def main() -> None:
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    result = {}
    number = 1 + max(int(name.split("/")[0]) for name in arrays if "/" in name)
    for method, settings in json.loads(str(arrays["settings"])).items():
        width = arrays["0/log_probs"].shape[1]
        common = dict(use_cpu=True, bf16=False, report_to="none", use_bias_correction_kl=False, beta=0.0)
        common |= dict(max_completion_length=width, output_dir=tempfile.gettempdir())
        config = GRPOConfig(**common | settings)
        accelerator = Accelerator(cpu=True)  # a new config resets the state of the one before
        for dtype in map(str, arrays["dtypes"]):
            kind = getattr(torch, dtype)
            for i in range(number):

                def tensor(name, i=i, kind=kind):
                    return torch.tensor(arrays[f"{i}/{name}"], dtype=kind)

                log_probs = tensor("log_probs").requires_grad_()
                mask = torch.tensor(arrays[f"{i}/{method}/mask"]).long()
                tokens = torch.ones_like(mask)
                inputs = dict(
                    prompt_ids=tokens[:, :1],
                    prompt_mask=tokens[:, :1],
                    completion_ids=tokens,
                    completion_mask=mask,
                    advantages=tensor(f"{method}/advantages"),
                    old_per_token_logps=tensor("old"),
                    ref_per_token_logps=tensor("ref"),
                    importance_sampling_ratio=tensor("importance"),
                    num_items_in_batch=mask.sum(),
                )
                loss = GRPOTrainer._compute_loss(Trainer(config, log_probs, accelerator), None, inputs)
                loss.backward()
                key = f"{i}/{method}/{dtype}"
                result |= {f"{key}/loss": loss.detach().numpy(), f"{key}/gradient": log_probs.grad.numpy()}
    versions = dict(trl=importlib.metadata.version("trl"), torch=torch.__version__)
    np.savez(sys.argv[2], versions=np.array(json.dumps(versions)), **result)


if __name__ == "__main__":
    main()
