"""Host memory that the import of a checkpoint needs beyond the parameters themselves.

    python benchmarks/import_memory.py [--quick] [--json]

Writes a synthetic checkpoint of 2 GB (random bfloat16 weights in the Hugging Face layout, several safetensors files;
--quick: 0.4 GB) to a temporary folder and imports it into float32 parameters in a fresh process each: on one CPU
device, and split over eight (fsdp 4 x tensor 2). A thread samples the process's own resident memory (RssAnon and
RssShmem of /proc/self/status, so Linux only; the pages of mapped files are the system's and do not count). Reported:

    (peak during the import - before it - bytes of the parameters) / bytes of the checkpoint's largest tensor

On the CPU the devices' memory is the host's, so the devices' copies during the insertion of a tensor count as well, and
so does the compilation of the programs that insert. The fixed cost of a process's first import (JAX starts
its compiler) is measured by a model of a few kilobytes before, and reported by itself. The largest tensor,
the output projection, is imported last, when all else is in place. Goal: at most 1.2.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOAL = 1.2
# The vocabulary of a Qwen model: the largest tensor is its embedding, as in every model that people train.
FULL = dict(vocab_size=151_936, embed_dim=1280, mlp_dim=4864, num_layers=28, num_heads=10, num_kv_heads=2, head_dim=128)
QUICK = dict(vocab_size=98_304, embed_dim=1024, mlp_dim=3072, num_layers=1, num_heads=8, num_kv_heads=4, head_dim=128)
FIRST = dict(vocab_size=64, embed_dim=32, mlp_dim=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
DEVICES = (1, 8)


def write_checkpoint(path: pathlib.Path, sizes: dict[str, int], *, num_files: int = 4) -> dict[str, int]:
    """Writes config.json and random bfloat16 weights, one tensor in memory at a time.

    Returns: bytes of each tensor.
    """
    import numpy as np

    from ibtpo.models import hf
    from ibtpo.models.config import ModelConfig

    config = ModelConfig(family="qwen3", qk_norm=True, tie_embeddings=False, **sizes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_hf()))
    _, params = hf.abstract(config)
    shapes = hf.tensor_shapes(params)
    num_bytes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    # Dealt out in turn, so that the layers of one parameter lie in different files.
    names = [f"model-{i + 1:05d}-of-{num_files:05d}.safetensors" for i in range(num_files)]
    files = {file: list(shapes)[i::num_files] for i, file in enumerate(names)}
    rng = np.random.default_rng(0)
    for file, tensors in files.items():
        header, offset = {}, 0
        for name in tensors:
            header[name] = dict(dtype="BF16", shape=shapes[name], data_offsets=[offset, offset + num_bytes[name]])
            offset += num_bytes[name]
        text = json.dumps(header).encode()
        with open(path / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in tensors:
                # Random bits of sign and mantissa under exponents near 1: every value is finite.
                bits = rng.integers(0, 1 << 16, math.prod(shapes[name]), np.uint16)
                out.write((bits & 0x80FF | 0x3F00).tobytes())
    index = {"weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return num_bytes


class PeakMemory:
    """Within it, a thread keeps the largest resident memory seen, in bytes, in `peak`; `start` is the one at entry."""

    def __enter__(self):
        self.start = self.peak = self._sample()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.001):
            self.peak = max(self.peak, self._sample())

    @staticmethod
    def _sample() -> int:
        with open("/proc/self/status") as file:
            return sum(1024 * int(line.split()[1]) for line in file if line.startswith(("RssAnon", "RssShmem")))


def measure(folder: pathlib.Path) -> dict[str, float]:
    """Imports folder/first, then folder/model on this process's devices: bytes of the model's parameters, of the peak
    beyond them and of the first import's cost, and the seconds of the second."""
    import jax
    from flax import nnx
    from ml_collections import ConfigDict

    from ibtpo import parallel
    from ibtpo.models import hf

    shardings = None
    if jax.device_count() > 1:
        mesh = parallel.make_mesh(ConfigDict(dict(data=1, fsdp=-1, tensor=2)))

        def shardings(params):
            return parallel.shardings(params, mesh)

    with PeakMemory() as first:
        hf.load(folder / "first", shardings=shardings)
    start = time.perf_counter()
    with PeakMemory() as memory:
        params = nnx.state(hf.load(folder / "model", shardings=shardings))
    seconds = time.perf_counter() - start
    size = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
    return dict(
        devices=jax.device_count(),
        parameters=size,
        beyond=memory.peak - memory.start - size,
        first_import=first.peak - first.start,
        seconds=seconds,
    )


def measure_in_new_process(folder: pathlib.Path, devices: int) -> dict[str, float]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    result = subprocess.run(
        [sys.executable, __file__, f"--measure={folder}"],
        env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def run(*, quick: bool = False, log=print) -> dict:
    """The figures of the benchmark, `goals` among them."""
    results, goals = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        log("writing the checkpoint")
        write_checkpoint(folder / "first", FIRST)
        num_bytes = write_checkpoint(folder / "model", QUICK if quick else FULL)
        total, largest = sum(num_bytes.values()), max(num_bytes.values())
        log(f"{total / 1e9:.2f} GB in {len(num_bytes)} tensors, the largest {largest / 1e6:.0f} MB")
        for devices in DEVICES:
            log(f"importing it on {devices} device(s)")
            result = measure_in_new_process(folder, devices)
            ratio = result["beyond"] / largest
            results.append(result | dict(ratio=ratio))
            name = f"import on {devices} device(s): peak host memory beyond the parameters / largest tensor"
            goals.append(dict(name=name, value=round(ratio, 3), goal=GOAL, met=ratio <= GOAL))
            log(
                f"  parameters {result['parameters'] / 1e9:.2f} GB, peak beyond them {result['beyond'] / 1e6:.0f} MB = "
                f"{ratio:.2f} of the largest tensor (goal {GOAL}), {result['seconds']:.1f} s; first import of the "
                f"process {result['first_import'] / 1e6:.0f} MB"
            )
    return dict(checkpoint_bytes=total, largest_tensor_bytes=largest, results=results, goals=goals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a checkpoint of 0.4 GB")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    figures = run(quick=arguments.quick, log=lambda text: print(text, file=sys.stderr, flush=True))
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
