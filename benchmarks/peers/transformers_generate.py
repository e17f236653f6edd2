"""Hugging Face transformers' generate as a peer of the sampler; `benchmarks/sampler.py` runs it in its own environment.

    echo '[{...}]' | python transformers_generate.py

Reads a JSON list of jobs: {name, model (sizes), prompts, responses (of each prompt), prompt_tokens, new_tokens,
repeats, budget_s}. Prints one JSON line per job: {name, seconds: [...], tokens, peak_rss_mb, variant, versions}.

Random float32 weights, scaled-dot-product attention, all cores, temperature 1 without truncation, no end of sequence,
and each token's log-probability from the logits that generate returns. Each way of using it is run once to warm up, and
the fastest of them is timed:

    dynamic  generate as it is; num_return_sequences prefills the prompt once for each response
    static   the same with a cache allocated once
    shared   a shared prompt is prefilled once, its cache repeated, and generate continues from that

The peak of the resident memory is that of the timed runs.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import transformers
from measure import repeat

VARIANTS = ("dynamic", "static", "shared")


def make_model(sizes: dict[str, int]) -> transformers.Qwen3ForCausalLM:
    config = transformers.Qwen3Config(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["embed_dim"],
        intermediate_size=sizes["mlp_dim"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_kv_heads"],
        head_dim=sizes["head_dim"],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(config).eval()


@torch.inference_mode()
def generate(model, prompts: torch.Tensor, job: dict, variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, log-probabilities), each [prompts * responses, new_tokens]."""
    options = dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=job["new_tokens"],
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=True,
    )
    if variant == "shared":
        cache = transformers.DynamicCache(config=model.config)
        model(prompts[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(job["responses"])
        prompts = prompts.repeat_interleave(job["responses"], dim=0)
        options |= dict(past_key_values=cache)
    else:
        options |= dict(num_return_sequences=job["responses"])
        options |= dict(cache_implementation="static") if variant == "static" else {}
    output = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    tokens = output.sequences[:, -job["new_tokens"] :]
    steps = zip(output.logits, tokens.T)
    return tokens, torch.stack([x.log_softmax(-1).gather(-1, t[:, None])[:, 0] for x, t in steps], dim=1)


def run(job: dict) -> dict:
    model = make_model(job["model"])
    rng = np.random.default_rng(0)
    prompts = torch.from_numpy(rng.integers(1, job["model"]["vocab_size"], (job["prompts"], job["prompt_tokens"])))

    def timed(variant: str, seed: int) -> float:
        torch.manual_seed(seed)
        start = time.perf_counter()
        tokens, log_probs = generate(model, prompts, job, variant)
        seconds = time.perf_counter() - start
        assert tokens.shape == log_probs.shape == (job["prompts"] * job["responses"], job["new_tokens"])
        assert bool(torch.isfinite(log_probs).all()) and bool((log_probs < 0).all())
        return seconds

    variants = VARIANTS if job["responses"] > 1 else VARIANTS[:2]
    timed(variants[0], 0)
    warm = {variant: timed(variant, 0) for variant in variants}
    variant = min(warm, key=warm.get)
    measured = repeat(lambda seed: timed(variant, seed), job)
    return measured | dict(
        name=job["name"],
        tokens=job["prompts"] * job["responses"] * job["new_tokens"],
        variant=variant,
        warm_seconds=warm,
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
    )


def main() -> None:
    torch.set_num_threads(os.cpu_count())
    transformers.logging.set_verbosity_error()
    for job in json.load(sys.stdin):
        print(json.dumps(run(job)), flush=True)


if __name__ == "__main__":
    main()
