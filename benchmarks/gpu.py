"""One GPU: how much of the memory bandwidth decoding reaches, and of the arithmetic, prefilling and training.

    python benchmarks/gpu.py [--quick] [--json] [--models=Qwen/Qwen3-1.7B,Qwen/Qwen3-8B] [--parts=decode,prefill]

Random bfloat16 weights and KV cache. For each model:

- decode: 256 sequences of 512 tokens after prompts of 256. A step must read every weight it multiplies by and the keys
  and values of every live token; these bytes over the time, as a share of the device's bandwidth, is the goal: 0.6. The
  time is that of the call less that of the same call with one new token, which prefills as much.
- prefill: prompts of 1,024 tokens less prompts of 32, one new token each: tokens per second, and their matrix
  products and causal attention as a share of the device's bfloat16 peak.
- trees: (4,9,1,1) of strategy "ib" against flat groups of 12 on 256 questions, at most 512 new tokens; lengths are
  log-normal, with a median of 213 and a standard deviation of 0.5 of the logarithm. A tree keeps the keys and values of
  all its responses until it is done, and decodes one of them at a time: the pool is as large as the memory allows.
- update: 16 trees (4,9,1,1) of responses of 512 tokens after prompts of 256, packed into rows; float32 parameters and
  moments, bfloat16 computation. The FLOPs that the model itself needs for their unique tokens, over the time, as a
  share of the bfloat16 peak: 0.45 is the goal.

Medians of --repeats runs after an untimed one. A model that the device's memory does not hold is skipped, with the
reason. Peaks are known for some GPUs; --bandwidth (bytes/s) and --flops (of bfloat16) give those of another. --quick: a
tiny model on whatever device there is, without peaks.
"""

import argparse
import json
import pathlib
import platform
import re
import statistics
import sys
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B")
PARTS = ("decode", "prefill", "trees", "update")
GOAL, UPDATE_GOAL = 0.6, 0.45
# Words of device_kind: (bytes/s of memory, dense bfloat16 FLOP/s), from the vendor's data sheets.
PEAKS = {
    ("H100", "HBM3"): (3.35e12, 989e12),
    ("H200",): (4.8e12, 989e12),
    ("A100", "80GB"): (2.039e12, 312e12),
    ("L4",): (0.3e12, 121e12),
}
TINY = dict(vocab_size=512, embed_dim=64, mlp_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
PAGE_SIZE = 16
CHUNK = 32
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
    """Bytes that the steps behind the first of `new` tokens must read for `slots` sequences after prompts so long."""
    # The step that draws token i + 1 attends to the prompt and i tokens.
    tokens = sum(prompt + i for i in range(1, new))
    return (new - 1) * weight_bytes_per_step(model) + slots * tokens * kv_bytes_per_token(model)


class Bench:
    """One model on the device."""

    def __init__(self, model, sizes: dict[str, int], repeats: int, limit: int | None = None):
        from flax import nnx
        from jax import numpy as jnp

        from benchmarks.lengths import timed_decoder
        from ibtpo.models.decoder import Decoder

        self.model, self.sizes, self.repeats, self.limit = model, sizes, repeats, limit
        self.stops = range(0, model.vocab_size, 256)
        lengths = dict(prompt_tokens=sizes["prompt"], median=sizes["median"], longest=sizes["tree_new"])
        types = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        # The same parameters; for trees the logits are bent so that responses end.
        self.timed, self.params = timed_decoder(model, stops=self.stops, **lengths, **types)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0), **types)), nnx.Param)

    def sampler(self, *, slots, prompt, new, tree, pool_tokens, questions_in_flight=0, stops=False):
        import numpy as np
        from jax import numpy as jnp

        from ibtpo.sampling.engine import SamplerOptions, TreeSampler
        from ibtpo.sampling.strategies import TreeOptions

        vocab = self.model.vocab_size
        separator = np.arange(vocab) % 16 == 1

        def step_ends(tokens):
            ends = (separator[tokens].nonzero()[0] + 1).tolist()
            return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)]

        return TreeSampler(
            self.timed if stops else self.graphdef,
            self.model,
            SamplerOptions(
                slots=slots,
                pages=-(-pool_tokens // PAGE_SIZE),
                page_size=PAGE_SIZE,
                chunk=CHUNK,
                max_prompt_tokens=prompt,
                questions_in_flight=questions_in_flight,
            ),
            TreeOptions(**dict(top_k=1, branch=1, max_new_tokens=new) | tree),
            stop_ids=self.stops if stops else [],
            step_ends=step_ends,
            dtype=jnp.bfloat16,
        )

    def questions(self, number: int, length: int) -> list:
        import numpy as np

        from ibtpo.sampling.engine import Question

        tokens = np.random.default_rng(0).integers(1, self.model.vocab_size, (number, length)).tolist()
        return [Question(i, prompt) for i, prompt in enumerate(tokens)]

    def seconds(self, sampler, questions) -> tuple[float, object]:
        """(median seconds, statistics of the last run) of a call, after an untimed one."""
        import jax

        from ibtpo.sampling.logits import SamplingParams

        def grade(question, tokens):
            return float(zlib.crc32(tokens.tobytes(), question.id) % 10 < 3)

        seconds = []
        for _ in range(1 + self.repeats):
            start = time.perf_counter()
            _, stats = sampler(self.params, questions, grade, key=jax.random.key(0), sampling=SamplingParams())
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:]), stats

    def decode(self) -> dict:
        slots, prompt, new = (self.sizes[name] for name in ("slots", "prompt", "new"))
        # The same pool in both calls, so that what it costs to make it cancels.
        options = dict(
            slots=slots,
            prompt=prompt,
            tree=dict(strategy="independent", initial=1, rounds=1),
            pool_tokens=self.pool_tokens(),
            questions_in_flight=slots,
        )
        questions = self.questions(slots, prompt)
        whole, stats = self.seconds(self.sampler(new=new, **options), questions)
        first, _ = self.seconds(self.sampler(new=1, **options), questions)
        tokens, seconds = slots * (new - 1), whole - first
        if seconds <= 0:  # a tiny model, where the difference drowns
            return dict(tokens_per_second=None, bytes_per_second=None, stall_share=None)
        return dict(
            tokens_per_second=tokens / seconds,
            bytes_per_second=decode_bytes(self.model, slots, prompt, new) / seconds,
            stall_share=stats.stall_seconds / whole,
        )

    def prefill(self) -> dict:
        prompts, long, short = self.sizes["prompts"], self.sizes["long"], min(32, self.sizes["long"] // 2)
        sampler = self.sampler(
            slots=prompts,
            prompt=long,
            new=1,
            tree=dict(strategy="independent", initial=1, rounds=1),
            pool_tokens=prompts * (long + 2 * PAGE_SIZE),
            questions_in_flight=prompts,
        )
        whole, _ = self.seconds(sampler, self.questions(prompts, long))
        rest, _ = self.seconds(sampler, self.questions(prompts, short))
        flops = prompts * (prefill_flops(self.model, long) - prefill_flops(self.model, short))
        if whole <= rest:
            return dict(tokens_per_second=None, flops_per_second=None)
        seconds = whole - rest
        return dict(tokens_per_second=prompts * (long - short) / seconds, flops_per_second=flops / seconds)

    def trees(self) -> dict[str, dict]:
        sizes, found = self.sizes, {}
        questions = self.questions(sizes["questions"], sizes["prompt"])
        for name, tree in TREES.items():
            sampler = self.sampler(
                slots=sizes["slots"],
                prompt=sizes["prompt"],
                new=sizes["tree_new"],
                tree=tree,
                pool_tokens=tree_pool_tokens(self.model, sizes, self.limit),
                stops=True,
            )
            seconds, stats = self.seconds(sampler, questions)
            found[name] = dict(
                tokens_per_second=stats.generated_tokens / seconds,
                responses_per_second=stats.responses / seconds,
                mean_length=stats.response_tokens / stats.responses,
                useful_share=stats.generated_tokens / stats.slot_steps,
                stall_share=stats.stall_seconds / seconds,
                pool_tokens=sampler.total_pages * PAGE_SIZE,
                preemptions=stats.preemptions,
            )
        return found

    def update(self) -> dict:
        import jax
        import numpy as np
        from flax import nnx
        from jax import numpy as jnp

        from configs import base
        from ibtpo.compile_check import own_flops, representative_tree, visible_pairs
        from ibtpo.losses import LossOptions
        from ibtpo.models.decoder import Decoder
        from ibtpo.optimizer import make_optimizer
        from ibtpo.packing import pack, row_length
        from ibtpo.sampling.strategies import TreeOptions
        from ibtpo.state import create_state, make_update
        from ibtpo.tree import stack_trees

        options = TreeOptions(**TREES["ib (4,9,1,1)"], max_new_tokens=self.sizes["tree_new"])
        trees = [representative_tree(options, self.sizes["prompt"], seed) for seed in range(self.sizes["trees"])]
        tree, rng = stack_trees(trees), np.random.default_rng(0)
        tree = tree.replace(tokens=rng.integers(0, self.model.vocab_size, tree.tokens.shape).astype(np.int32))
        weights = np.where(tree.node_parent >= 0, 1e-4, 0).astype(np.float32)
        longest = max(trees, key=lambda tree: tree.tokens.shape[1]).tokens.shape[1]
        rows = 2
        batch, _ = pack(tree, weights, weights, weights, row_tokens=row_length(longest), row_multiple=rows)
        flops = sum(own_flops(self.model, t.tokens.shape[1], visible_pairs(t.subtree_end[0])) for t in trees)

        self.params = None  # training needs the memory
        graphdef, params = nnx.split(
            nnx.jit(lambda: Decoder(self.model, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))(), nnx.Param
        )
        config = base.get_config()
        optimizer, _ = make_optimizer(config.optimizer, 100)
        forward = dict(temperature=1.0, rows_per_step=rows, token_block=1024, remat="attention")
        update = make_update(graphdef, optimizer, LossOptions(kl=0.0), **forward)
        state = create_state(params, optimizer, jax.random.key(0), keep_reference=False)
        del params
        batch, seconds = jax.device_put(batch), []
        for _ in range(1 + self.repeats):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(update(state, batch))
            seconds.append(time.perf_counter() - start)
        seconds = statistics.median(seconds[1:])
        tokens = sum(t.tokens.shape[1] for t in trees)
        return dict(tokens_per_second=tokens / seconds, flops_per_second=flops / seconds)

    def pool_tokens(self) -> int:
        return pool_tokens(self.sizes)


def pool_tokens(sizes: dict[str, int]) -> int:
    """Tokens of the KV pool: the decode batch at its end, or one tree at its worst if that is more."""
    batch = sizes["slots"] * (sizes["prompt"] + sizes["new"] + 2 * PAGE_SIZE)
    return max(batch, (GROUP + 1) * (sizes["prompt"] + sizes["tree_new"] + 2 * PAGE_SIZE))


def tree_pool_tokens(model, sizes: dict[str, int], limit: int | None) -> int:
    """Tokens of the KV pool for trees: what the device's memory, of `limit` bytes, holds beside the weights, at most
    what all questions at once can need; without a limit, `pool_tokens`."""
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


def run(
    *, quick=False, models=MODELS, parts=PARTS, repeats=3, bandwidth=None, flops=None, log=print, show=print
) -> dict:
    """The figures of the benchmark, `goals` among them."""
    import jax

    from benchmarks.sampler import make_goal
    from ibtpo.models.config import ModelConfig
    from ibtpo.models.presets import PRESETS
    from ibtpo.report import summary_table

    device = jax.devices()[0]
    known = (None, None) if quick else peaks(device.device_kind)
    bandwidth, flops = (None, None) if quick else (bandwidth or known[0], flops or known[1])
    sizes = QUICK if quick else FULL
    configs = {name: PRESETS[name] for name in models}
    if quick:
        configs = {"tiny": ModelConfig(family="qwen3", qk_norm=True, tie_embeddings=True, **TINY)}
    log(f"{device.device_kind} ({device.platform}), peaks {bandwidth} B/s and {flops} FLOP/s, JAX {jax.__version__}")
    limit = (device.memory_stats() or {}).get("bytes_limit")
    results, goals = {}, []
    for name, config in configs.items():
        found, needed = {}, memory_needed(config, sizes)
        if not quick and limit and needed > limit:
            found["skipped"] = f"needs about {needed / 1e9:.0f} GB, and the device offers {limit / 1e9:.0f}"
        else:
            try:
                log(f"{name}: making {2 * config.num_params / 1e9:.2f} GB of weights")
                bench = Bench(config, sizes, 1 if quick else repeats, None if quick else limit)
                for part in parts:
                    log(f"{name}: {part}")
                    training = TRAINING_BYTES * config.num_params + SLACK
                    if part == "update" and not quick and limit and training > limit:
                        log(f"  skipped: needs about {training / 1e9:.0f} GB, and the device offers {limit / 1e9:.0f}")
                    else:
                        found[part] = getattr(bench, part)()
                        log(f"  {found[part]}")
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                found["skipped"] = f"out of memory: {str(error).splitlines()[0]}"
            bench = None  # its weights make room for the next model's
        if "skipped" in found:
            log(f"{name}: skipped, {found['skipped']}")
        if "decode" in found:
            found["decode"]["bandwidth_share"] = share(found["decode"]["bytes_per_second"], bandwidth)
        if "prefill" in found:
            found["prefill"]["flops_share"] = share(found["prefill"]["flops_per_second"], flops)
        if "update" in found:
            found["update"]["flops_share"] = share(found["update"]["flops_per_second"], flops)
        results[name] = found
        for part, key, what, goal in (
            ("decode", "bandwidth_share", "share of memory bandwidth", GOAL),
            ("update", "flops_share", "model FLOP utilisation", UPDATE_GOAL),
        ):
            if part not in parts:
                continue
            goals.append(make_goal(f"{name}: {part}, {what}", found.get(part, {}).get(key), goal, at_least=True))
    rows = []
    for name, found in results.items():
        decode, prefill = found.get("decode", {}), found.get("prefill", {})
        trees = found.get("trees", {})
        rate = {tree: trees.get(tree, {}).get("responses_per_second") for tree in TREES}
        rows.append(
            {
                "model": name,
                "decode tokens/s": decode.get("tokens_per_second"),
                "GB/s": share(decode.get("bytes_per_second"), 1e9),
                "of bandwidth": decode.get("bandwidth_share"),
                "prefill tokens/s": prefill.get("tokens_per_second"),
                "TFLOP/s": share(prefill.get("flops_per_second"), 1e12),
                "of peak": prefill.get("flops_share"),
                "update tokens/s": found.get("update", {}).get("tokens_per_second"),
                "MFU": found.get("update", {}).get("flops_share"),
                **{f"{tree} responses/s": value for tree, value in rate.items()},
                "note": found.get("skipped", ""),
            }
        )
    show(summary_table(rows))
    return dict(
        quick=quick,
        device=device.device_kind,
        platform=device.platform,
        bandwidth=bandwidth,
        flops=flops,
        versions=dict(python=platform.python_version(), jax=jax.__version__),
        results=results,
        goals=goals,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model on any device")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the table goes to stderr")
    parser.add_argument("--models", default=",".join(MODELS), help="presets, separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each call")
    parser.add_argument("--bandwidth", type=float, help="bytes/s of the device's memory")
    parser.add_argument("--flops", type=float, help="bfloat16 FLOP/s of the device")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    figures = run(
        quick=arguments.quick,
        models=arguments.models.split(","),
        parts=[part for part in PARTS if part in parts],
        repeats=arguments.repeats,
        bandwidth=arguments.bandwidth,
        flops=arguments.flops,
        log=lambda text: print(text, file=sys.stderr, flush=True),
        show=lambda text: print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
