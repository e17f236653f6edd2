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
  share of the bfloat16 peak: 0.45 is the goal. By model.remat; the first, "elementwise", is the one of the goal.
  benchmarks/gpu_compiled.py says without a GPU what the same programs compute and need.
- attention: one layer's in that update, forwards and backwards: our kernels against XLA's loop on the trees, and
  against cuDNN on chains as long as a row. Milliseconds.

Medians of --repeats runs after an untimed one. A model that the device's memory does not hold is skipped, with the
reason. Peaks are known for some GPUs; --bandwidth (bytes/s) and --flops (of bfloat16) give those of another. --quick: a
tiny model on whatever device there is, without peaks.
"""

import argparse
import json
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B")
PARTS = ("decode", "prefill", "trees", "attention", "update")
GOAL, UPDATE_GOAL = 0.6, 0.45


def run(
    *, quick=False, models=MODELS, parts=PARTS, repeats=3, bandwidth=None, flops=None, log=print, show=print
) -> dict:
    """The figures of the benchmark, `goals` among them."""
    import jax

    from benchmarks.goals import make_goal
    from benchmarks.gpu_sizes import TINY, peaks, share
    from ibtpo.models.config import ModelConfig
    from ibtpo.models.presets import PRESETS
    from ibtpo.report import summary_table

    device = jax.devices()[0]
    known = (None, None) if quick else peaks(device.device_kind)
    bandwidth, flops = (None, None) if quick else (bandwidth or known[0], flops or known[1])
    configs = {name: PRESETS[name] for name in models}
    if quick:
        configs = {"tiny": ModelConfig(family="qwen3", qk_norm=True, tie_embeddings=True, **TINY)}
    log(f"{device.device_kind} ({device.platform}), peaks {bandwidth} B/s and {flops} FLOP/s, JAX {jax.__version__}")
    limit = None if quick else (device.memory_stats() or {}).get("bytes_limit")
    results, goals = {}, []
    for name, config in configs.items():
        found = results[name] = measure(name, config, parts, 1 if quick else repeats, quick=quick, limit=limit, log=log)
        if "decode" in found:
            found["decode"]["bandwidth_share"] = share(found["decode"]["bytes_per_second"], bandwidth)
        if "prefill" in found:
            found["prefill"]["flops_share"] = share(found["prefill"]["flops_per_second"], flops)
        if "update" in found:
            found["update"]["flops_share"] = share(found["update"]["flops_per_second"], flops)
        for part, key, what, goal in (
            ("decode", "bandwidth_share", "share of memory bandwidth", GOAL),
            ("update", "flops_share", "model FLOP utilisation", UPDATE_GOAL),
        ):
            if part in parts:
                goals.append(make_goal(f"{name}: {part}, {what}", found.get(part, {}).get(key), goal, at_least=True))
    show(summary_table(table(results)))
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


def measure(name: str, model, parts, repeats: int, *, quick: bool, limit: int | None, log) -> dict:
    """{part: its figures} of one model, and "skipped", the reason, where the device's `limit` bytes do not hold it.

    The weights are gone when this returns, to make room for the next model's.
    """
    import jax

    from benchmarks.gpu_bench import Bench
    from benchmarks.gpu_sizes import FULL, QUICK, SLACK, TRAINING_BYTES, memory_needed

    sizes, found = QUICK if quick else FULL, {}
    needed = memory_needed(model, sizes)
    if limit and needed > limit:
        found["skipped"] = f"needs about {needed / 1e9:.0f} GB, and the device offers {limit / 1e9:.0f}"
    else:
        try:
            log(f"{name}: making {2 * model.num_params / 1e9:.2f} GB of weights")
            bench = Bench(model, sizes, repeats, limit)
            for part in parts:
                log(f"{name}: {part}")
                training = TRAINING_BYTES * model.num_params + SLACK
                if part == "update" and limit and training > limit:
                    log(f"  skipped: needs about {training / 1e9:.0f} GB, and the device offers {limit / 1e9:.0f}")
                else:
                    found[part] = getattr(bench, part)()
                    log(f"  {found[part]}")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found["skipped"] = f"out of memory: {str(error).splitlines()[0]}"
    if "skipped" in found:
        log(f"{name}: skipped, {found['skipped']}")
    return found


def table(results: dict[str, dict]) -> list[dict]:
    """One row for each model."""
    from benchmarks.gpu_sizes import TREES, share

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
    return rows


def main() -> None:
    from benchmarks.output import streams

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
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
