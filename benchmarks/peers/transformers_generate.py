"""Hugging Face transformers' generate as a peer of the sampler; `benchmarks/sampler.py` runs it in its own environment.

    echo '[{...}]' | python transformers_generate.py

Reads a JSON list of jobs: {name, model (sizes), prompts, responses (of each prompt), prompt_tokens, new_tokens,
repeats, prefix}. Prints one JSON line per job: {name, seconds: [...], tokens, peak_rss_mb, versions}.

Random float32 weights, scaled-dot-product attention, all cores, temperature 1 without truncation, no end of sequence,
and each token's log-probability from the logits that generate returns. The cache grows with the sequence: on the CPU the
static one, which attends to its whole length at every step, is slower. prefix: "generate" gives generate every prompt
once and num_return_sequences, which prefills each response's copy; "cache" prefills a shared prompt once, repeats its
cache and generates from that.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import transformers


def peak_rss_mb() -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


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
def generate(model, prompts: torch.Tensor, job: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, log-probabilities), each [prompts * responses, new_tokens]."""
    options = dict(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=job["new_tokens"],
        min_new_tokens=None,
        return_dict_in_generate=True,
        output_logits=True,
        use_cache=True,
    )
    if job.get("prefix", "generate") == "cache":
        cache = transformers.DynamicCache(config=model.config)
        model(prompts[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(job["responses"])
        prompts = prompts.repeat_interleave(job["responses"], dim=0)
        options |= dict(past_key_values=cache)
    else:
        options |= dict(num_return_sequences=job["responses"])
    output = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    tokens = output.sequences[:, -job["new_tokens"] :]
    steps = zip(output.logits, tokens.T)
    return tokens, torch.stack([x.log_softmax(-1).gather(-1, t[:, None])[:, 0] for x, t in steps], dim=1)


def run(job: dict) -> dict:
    model = make_model(job["model"])
    rng = np.random.default_rng(0)
    prompts = torch.from_numpy(rng.integers(1, job["model"]["vocab_size"], (job["prompts"], job["prompt_tokens"])))
    seconds = []
    for repeat in range(1 + job["repeats"]):
        torch.manual_seed(repeat)
        start = time.perf_counter()
        tokens, log_probs = generate(model, prompts, job)
        seconds.append(time.perf_counter() - start)
        assert tokens.shape == log_probs.shape == (job["prompts"] * job["responses"], job["new_tokens"])
        assert bool(torch.isfinite(log_probs).all()) and bool((log_probs < 0).all())
    return dict(
        name=job["name"],
        seconds=seconds[1:],
        tokens=tokens.numel(),
        peak_rss_mb=round(peak_rss_mb(), 1),
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
    )


def main() -> None:
    torch.set_num_threads(os.cpu_count())
    transformers.logging.set_verbosity_error()
    for job in json.load(sys.stdin):
        print(json.dumps(run(job)), flush=True)


if __name__ == "__main__":
    main()
