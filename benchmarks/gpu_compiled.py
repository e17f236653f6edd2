"""An update on one H100, through the compiler for GPUs and without a GPU: FLOPs, bytes, memory.

    python benchmarks/gpu_compiled.py [--quick] [--json] [--models=Qwen/Qwen3-1.7B] [--remat=elementwise,attention]
        [--lora_rank=16]

The update of gpu.py (16 trees (4,9,1,1) of responses of 512 tokens behind prompts of 256, `Bench.update`), compiled for
each kind of model.remat. FLOPs are those of the compiled program, every loop as often as it runs, and those of our
attention kernels by the block pairs that they visit; "of own" is over the FLOPs that the model itself needs for the
trees' tokens (1.35 is the goal), as if all parameters were trained. --lora_rank: adapters of a bfloat16 model are
trained instead. Bytes are what the program's instructions read and write, which caches make fewer.
Needs the packages of requirements-gpu.txt. --quick: two layers of the first model, rows for two trees.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOAL = 1.35
MEMORY = 80e9  # bytes of the card
REMATS = ("elementwise", "attention")


def attention_flops(model, subtree_end) -> float:
    """FLOPs of the kernels' visits in one layer, forwards and backwards, for rows [B, T]."""
    import jax.numpy as jnp
    import numpy as np

    from ibtpo.kernels import tree_attention_gpu as gpu

    heads = gpu.heads_of(model.num_heads // model.num_kv_heads)
    tiles, total = gpu.tiles_of(model.head_dim, jnp.bfloat16, gpu.SHARED_MEMORY), 0.0
    block = np.lcm.reduce([size for tile in tiles for size in (tile.rows // heads, tile.keys)])
    ends = np.pad(subtree_end, ((0, 0), (0, -subtree_end.shape[1] % block)))
    for tile, products in zip(tiles, (2, 3, 4)):  # matrix products of a visit
        visits = gpu.visits(jnp.asarray(ends), tile.rows // heads, tile.keys, by_key=False)
        pairs = int(np.asarray(visits.counts)[..., 1].sum()) * (tile.rows // heads) * tile.keys
        total += 2.0 * products * pairs * model.head_dim * model.num_heads
    return total


def squares(text: str, num_tokens: int) -> list[str]:
    """Arrays of a program with two axes of `num_tokens` or more."""
    found = set(re.findall(r"\b[a-z]\w*\[[\d,]+\]", text))
    sizes = {array: [int(n) for n in re.search(r"\[(.*)\]", array)[1].split(",")] for array in found}
    return sorted(array for array, dims in sizes.items() if sum(n >= num_tokens for n in dims) > 1)


def abstract_update(model, job, *, remat: str, moments: str, param_dtype: str, lora_rank: int):
    """The lowered update of `job` (`gpu_bench.update_job`) on a described H100."""
    import jax
    from flax import nnx
    from jax import numpy as jnp

    from benchmarks.gpu_bench import update_program
    from benchmarks.gpu_target import mesh
    from ibtpo.models.decoder import Decoder

    sharding = jax.NamedSharding(mesh(), jax.P())

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    types = dict(dtype=jnp.bfloat16, param_dtype=jnp.dtype(param_dtype))
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0), **types)), nnx.Param)
    with jax.set_mesh(mesh()):
        make_state, update = update_program(graphdef, job, remat=remat, moments=moments, lora_rank=lora_rank)
        return update.lower(abstract(jax.eval_shape(make_state, params)), abstract(job.batch))


def measure(model, job, *, remat="elementwise", moments="float32", param_dtype="float32", lora_rank=0) -> dict:
    """The figures of one update."""
    import jax

    from benchmarks.gpu_target import mesh
    from ibtpo.compiler.costs import analyse

    started = time.perf_counter()
    with jax.set_mesh(mesh()):
        types = dict(moments=moments, param_dtype="bfloat16" if lora_rank else param_dtype)
        lowered = abstract_update(model, job, remat=remat, lora_rank=lora_rank, **types)
        compiled = lowered.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    microbatches = len(job.batch.tokens) // job.rows
    total = analyse(text, unknown_trips=microbatches).total
    calls = {name: kernel.calls / (microbatches * model.num_layers) for name, kernel in total.kernels.items()}
    kernels = model.num_layers * attention_flops(model, job.batch.subtree_end)
    return dict(
        remat=remat,
        moments=moments,
        lora_rank=lora_rank,
        row_tokens=job.batch.tokens.shape[1],
        useful_share=job.useful_share,
        tflop=(total.flops + kernels) / 1e12,
        own_tflop=job.flops / 1e12,
        of_own=(total.flops + kernels) / job.flops,
        attention_of_own=kernels / job.flops,
        hbm_gb=total.bytes / 1e9,
        memory_gb=(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9,
        kernel_calls_per_layer=calls,
        square_arrays=squares(text, job.batch.tokens.shape[1]),
        seconds=time.perf_counter() - started,
    )


def run(
    *,
    quick=False,
    models=("Qwen/Qwen3-1.7B",),
    remats=REMATS,
    moments="float32",
    lora_rank=0,
    log=print,
    show=print,
) -> dict:
    """The figures of the benchmark, `goals` among them."""
    from benchmarks.goals import make_goal
    from benchmarks.gpu_bench import update_job
    from benchmarks.gpu_sizes import FULL
    from ibtpo.models.presets import PRESETS
    from ibtpo.report import summary_table

    results, goals = [], []
    for name in models:
        model = PRESETS[name]
        if quick:
            model = dataclasses.replace(model, num_layers=2, vocab_size=4096)
        job = update_job(model, FULL | (dict(trees=2) if quick else {}))
        for remat in remats:
            log(f"{name}: remat {remat}")
            found = measure(model, job, remat=remat, moments=moments, lora_rank=lora_rank)
            results.append(dict(model=name) | found)
            for key, what, goal in (("of_own", "FLOPs over the model's own", GOAL), ("memory_gb", "GB", MEMORY / 1e9)):
                goals.append(make_goal(f"{name}, {remat}: {what}", found[key], goal, at_least=False))
    columns = ("model", "remat", "tflop", "of_own", "attention_of_own", "hbm_gb", "memory_gb", "useful_share")
    show(summary_table([{key: row[key] for key in columns} for row in results]))
    return dict(quick=quick, results=results, goals=goals)


def main() -> None:
    import jax

    from benchmarks.output import streams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, two trees")
    parser.add_argument("--json", action="store_true", help="end with one JSON object; the table goes to stderr")
    parser.add_argument("--models", default="Qwen/Qwen3-1.7B", help="presets, separated by commas")
    parser.add_argument("--remat", default=",".join(REMATS), help="kinds of model.remat, separated by commas")
    parser.add_argument("--moments", default="float32", help="optimizer.first_moment_dtype")
    parser.add_argument("--lora_rank", type=int, default=0, help="rank of adapters that are trained; 0: everything is")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # nothing here may look for a GPU
    jax.config.update("jax_enable_compilation_cache", False)  # it keeps such programs, and cannot read them
    figures = run(
        quick=arguments.quick,
        models=arguments.models.split(","),
        remats=arguments.remat.split(","),
        moments=arguments.moments,
        lora_rank=arguments.lora_rank,
        **streams(arguments.json),
    )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
