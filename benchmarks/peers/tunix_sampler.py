"""Tunix's own sampler as a peer of the sampler; `benchmarks/sampler.py` runs it in its own environment.

    echo '[{...}]' | python tunix_sampler.py

Reads a JSON list of jobs: {name, model (sizes), prompts, responses (of each prompt), prompt_tokens, new_tokens,
repeats, budget_s}. Prints one JSON line per job: {name, seconds: [...], tokens, peak_rss_mb, versions}.

Tunix's Qwen3 with random float32 weights and tunix.generate.sampler.Sampler: one jitted prefill and one jitted loop
over a cache of exactly the length needed, temperature 1 without truncation, no end of sequence, log-probabilities
on. It has no notion of several responses to one prompt: the prompt is given once per response, as its rollouts do.
The peak of the resident memory is that of the timed runs.
"""

import importlib.metadata
import importlib.util
import json
import sys
import time
import types

import numpy as np
from measure import repeat


def import_without_package_init() -> None:
    """Makes `tunix` importable without running its __init__, which imports all trainers and what they depend on."""
    package = types.ModuleType("tunix")
    package.__path__ = list(importlib.util.find_spec("tunix").submodule_search_locations)
    sys.modules["tunix"] = package


import_without_package_init()

import jax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.generate import sampler as sampler_lib  # noqa: E402
from tunix.models.qwen3 import model as model_lib  # noqa: E402


class Numbers:
    """A tokenizer of texts that are token ids already; no id ends a sequence or pads."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return ""

    def bos_id(self):
        return None

    def eos_id(self):
        return -1

    def pad_id(self):
        return -2


def make_sampler(job: dict) -> sampler_lib.Sampler:
    sizes = job["model"]
    config = model_lib.ModelConfig(
        num_layers=sizes["num_layers"],
        vocab_size=sizes["vocab_size"],
        embed_dim=sizes["embed_dim"],
        hidden_dim=sizes["mlp_dim"],
        num_heads=sizes["num_heads"],
        head_dim=sizes["head_dim"],
        num_kv_heads=sizes["num_kv_heads"],
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    cache = sampler_lib.CacheConfig(
        cache_size=job["prompt_tokens"] + job["new_tokens"],
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    return sampler_lib.Sampler(model_lib.Qwen3(config, rngs=nnx.Rngs(0)), Numbers(), cache)


def run(job: dict) -> dict:
    sampler = make_sampler(job)
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, job["model"]["vocab_size"], (job["prompts"], job["prompt_tokens"]))
    texts = [" ".join(map(str, prompt)) for prompt in prompts for _ in range(job["responses"])]

    def timed(seed: int) -> float:
        start = time.perf_counter()
        output = sampler(
            texts,
            max_generation_steps=job["new_tokens"],
            max_prompt_length=job["prompt_tokens"],
            temperature=1.0,
            top_p=1.0,
            return_logprobs=True,
            seed=seed,
        )
        seconds = time.perf_counter() - start
        log_probs = np.asarray(output.logprobs)
        assert log_probs.shape == np.shape(output.tokens) == (len(texts), job["new_tokens"])
        assert np.isfinite(log_probs).all() and (log_probs < 0).all()
        return seconds

    timed(0)
    measured = repeat(timed, job)
    return measured | dict(
        name=job["name"],
        tokens=len(texts) * job["new_tokens"],
        versions=dict(tunix=importlib.metadata.version("google-tunix"), tunix_jax=jax.__version__),
    )


def main() -> None:
    for job in json.load(sys.stdin):
        print(json.dumps(run(job)), flush=True)


if __name__ == "__main__":
    main()
