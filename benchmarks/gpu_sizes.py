"""The capacity and speed of one GPU: peaks, and the bytes and FLOPs that a model needs; sizes of the jobs of gpu.py."""

import re

# Words of device_kind: (bytes/s of memory, dense bfloat16 FLOP/s), from the vendor's data sheets.
PEAKS = {
    ("H100", "HBM3"): (3.35e12, 989e12),
    ("H200",): (4.8e12, 989e12),
    ("A100", "80GB"): (2.039e12, 312e12),
    ("L4",): (0.3e12, 121e12),
}
TINY = dict(vocab_size=512, embed_dim=64, mlp_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
PAGE_SIZE = 16
SLACK = 4e9  # bytes for the programs' temporaries
TRAINING_BYTES = 16  # per parameter: itself, two moments and the gradient, float32
FULL = dict(slots=256, prompt=256, new=512, long=1024, prompts=64, questions=256, tree_new=512, median=213, trees=16)
QUICK = dict(slots=2, prompt=32, new=16, long=64, prompts=2, questions=3, tree_new=16, median=7, trees=2)
TREES = {
    "flat 12": dict(strategy="independent", initial=12, rounds=1),
    "ib (4,9,1,1)": dict(strategy="ib", initial=4, rounds=9),
}
GROUP = max(tree["initial"] + tree["rounds"] - 1 for tree in TREES.values())  # most responses of a question


def peaks(device_kind: str) -> tuple[float | None, float | None]:
    """(bytes/s, FLOP/s) of a known device, else (None, None)."""
    words = set(re.split(r"[\s-]+", device_kind))
    return next((peak for known, peak in PEAKS.items() if words.issuperset(known)), (None, None))


def weight_bytes_per_step(model) -> int:
    """Bytes of the bfloat16 weights that one decode step multiplies by: all, but for an input table of its own."""
    return 2 * (model.num_params - (0 if model.tie_embeddings else model.vocab_size * model.embed_dim))


def kv_bytes_per_token(model) -> int:
    return 2 * 2 * model.num_layers * model.num_kv_heads * model.head_dim


def prefill_flops(model, tokens: int) -> float:
    """Of one prompt: two for each weight and token, the tables aside (no logits are computed), and causal attention."""
    tables = model.vocab_size * model.embed_dim * (2 - model.tie_embeddings)
    attention = 2 * model.num_layers * model.num_heads * model.head_dim * tokens * (tokens + 1)
    return 2.0 * (model.num_params - tables) * tokens + attention


def decode_bytes(model, slots: int, prompt: int, new: int) -> float:
    """Bytes that the steps behind the first of `new` tokens must read, for `slots` prompts of `prompt` tokens."""
    # The step that draws token i + 1 attends to the prompt and i tokens.
    tokens = sum(prompt + i for i in range(1, new))
    return (new - 1) * weight_bytes_per_step(model) + slots * tokens * kv_bytes_per_token(model)


def pool_tokens(sizes: dict[str, int]) -> int:
    """Tokens of the KV pool: the decode batch at its end, or one tree at its worst if that is more."""
    batch = sizes["slots"] * (sizes["prompt"] + sizes["new"] + 2 * PAGE_SIZE)
    return max(batch, (GROUP + 1) * (sizes["prompt"] + sizes["tree_new"] + 2 * PAGE_SIZE))


def tree_pool_tokens(model, sizes: dict[str, int], limit: int | None) -> int:
    """Tokens of the KV pool for trees: as many as the device's memory, of `limit` bytes, holds beside the weights, at
    most the need of all questions at once; without a limit, `pool_tokens`."""
    if limit is None:
        return pool_tokens(sizes)
    worst = sizes["questions"] * (sizes["prompt"] + GROUP * (sizes["tree_new"] + PAGE_SIZE))
    held = (limit - memory_beside_pool(model)) / kv_bytes_per_token(model)
    return max(pool_tokens(sizes), min(worst, int(held)))


def memory_beside_pool(model) -> float:
    # The sampler decodes with a copy of the weights, layer by layer.
    return 4 * model.num_params + SLACK


def memory_needed(model, sizes: dict[str, int]) -> float:
    return memory_beside_pool(model) + pool_tokens(sizes) * kv_bytes_per_token(model)


def share(value: float | None, peak: float | None) -> float | None:
    return None if value is None or peak is None else value / peak
