"""What the checksums of checkpoints cost: time of saving and restoring with them over the time without them.

    python benchmarks/checkpoints.py [--quick] [--json]

A state of random numbers with the arrays of a run (parameters, Adam's two moments, a reference in bfloat16) is saved
and restored in turn with and without checksums: without them it is Orbax alone that writes and reads the same arrays to
the same file system. With them come the sums of the arrays, computed on the devices, before and after; the manifest;
and the checksums of the files (`ibtpo/checkpoints/manifest.py`). Medians over rounds that alternate the order. Also
reported: bytes on disk per checkpoint and per parameter, and how fast the devices add up arrays, from which
docs/reliability.md computes the cost for a model of 7 billion parameters.

--quick: 8 million parameters and three rounds, not 64 million and seven.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOAL = 1.5  # on a CPU, where the sums are computed by the cores that also compress and write
LAYERS = 4
FULL, QUICK = (64_000_000, 7), (8_000_000, 3)  # parameters, rounds


def make_items(parameters: int) -> dict:
    """{item: {name: array}} of about so many parameters, in LAYERS layers and an embedding."""
    import jax
    from jax import numpy as jnp

    width = int((parameters / 2 / LAYERS / 12) ** 0.5) // 64 * 64
    shapes = {
        "embedding": (parameters // 2 // width, width),
        "layers.qkvo": (LAYERS, 4, width, width),
        "layers.mlp": (LAYERS, 8, width, width),
        "layers.norm": (LAYERS, width),
    }

    def draw(seed: int, dtype: type = jnp.float32) -> dict:
        keys = jax.random.split(jax.random.key(seed), len(shapes))
        return {name: jax.random.normal(key, shape, dtype) for key, (name, shape) in zip(keys, shapes.items())}

    moments = {f"{moment}.{name}": x for moment, seed in (("mu", 1), ("nu", 2)) for name, x in draw(seed).items()}
    return {"params": draw(0), "optimizer": moments, "reference": draw(3, jnp.bfloat16)}


def save_with(path, items: dict) -> None:
    from ibtpo.checkpoints.saving import Saving

    Saving(path, 1, items, {"config": {}}, None).wait()


def restore_with(path, items: dict) -> dict:
    import jax

    from ibtpo.checkpoints import reading

    return jax.block_until_ready(reading.read(path / "1", items)[0])


def save_without(path, items: dict) -> None:
    from ibtpo.checkpoints import arrays

    writers = []
    for name, flat in items.items():
        (path / "plain" / name).mkdir(parents=True)
        writers.append(arrays.Writer(path / "plain" / name, flat))
    for writer in writers:
        writer.wait()
        writer.finish()


def restore_without(path, items: dict) -> dict:
    import jax

    from ibtpo.checkpoints import arrays

    return jax.block_until_ready({name: arrays.read(path / "plain" / name, flat) for name, flat in items.items()})


def seconds(act: Callable, *arguments) -> float:
    began = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - began


def run(*, quick: bool = False, log: Callable[[str], None] = print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    import jax
    from etils import epath

    from benchmarks.goals import make_goal
    from ibtpo.checkpoints import manifest, sums

    wanted, rounds = QUICK if quick else FULL
    items = make_items(wanted)
    jax.block_until_ready(items)
    parameters = sum(x.size for x in items["params"].values())
    size = sum(x.nbytes for flat in items.values() for x in flat.values())
    log(f"{parameters / 1e6:.0f} million parameters, {size / 1e6:.0f} MB of arrays")
    times: dict[str, list[float]] = {}
    steps = {
        "with": {"save": save_with, "restore": restore_with},
        "without": {"save": save_without, "restore": restore_without},
    }
    with tempfile.TemporaryDirectory() as name:
        for number in range(-1, rounds):  # the first compiles
            path = epath.Path(name) / str(number)
            path.mkdir()
            for how in ("with", "without") if number % 2 else ("without", "with"):
                for what, act in steps[how].items():
                    spent = seconds(act, path, items)
                    if number >= 0:
                        times.setdefault(f"{what} {how}", []).append(spent)
            on_disk = manifest.size_of(manifest.read(path / "1"))
            shutil.rmtree(path)
            if number >= 0:
                log(", ".join(f"{what} {spent[-1]:.2f} s" for what, spent in times.items()))
    adding = min(seconds(lambda: [sums.sums(flat) for flat in items.values()]) for _ in range(3))
    medians = {what: statistics.median(spent) for what, spent in times.items()}
    goals = [
        make_goal(
            f"{what} with checksums / without, {jax.default_backend()}",
            statistics.median(a / b for a, b in zip(times[f"{what} with"], times[f"{what} without"])),
            GOAL,
            at_least=False,
        )
        for what in ("save", "restore")
    ]
    return dict(
        parameters=parameters,
        array_bytes=size,
        checkpoint_bytes=on_disk,
        bytes_per_parameter=round(on_disk / parameters, 2),
        seconds={what: round(spent, 3) for what, spent in medians.items()},
        sums_gigabytes_per_second=round(size / adding / 1e9, 2),
        device=jax.devices()[0].device_kind,
        goals=goals,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 million parameters, three rounds")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    figures = run(quick=arguments.quick, log=lambda text: print(text, file=sys.stderr, flush=True))
    if arguments.json:
        print(json.dumps(figures))
        return
    for goal in figures.pop("goals"):
        print(f"{'met' if goal['met'] else 'MISSED':6}  {goal['name']}: {goal['value']} (goal {goal['goal']})")
    for name, value in figures.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
