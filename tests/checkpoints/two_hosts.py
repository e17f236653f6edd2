"""Run by test_hosts.py as two connected processes: they save together, fall back from a damaged checkpoint together,
and both end where one of them cannot write.

Argument: the folder of the run. Prints one line for each thing that is done.
"""

import os
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ibtpo import parallel
from ibtpo.checkpoints import Checkpoints, arrays
from ibtpo.errors import RunFailure, UserError
from ibtpo.state import TrainState


def make_state(mesh, step):
    """Parameters split over both processes; their numbers are those of the step."""

    def put(x, *names):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, PartitionSpec(*names)), lambda index: x[index])

    rng = np.random.default_rng(step)
    params = {"w": put(rng.standard_normal((8, 6)).astype(np.float32), "all"), "b": put(np.full(3, step, np.float32))}
    count = put(np.int32(step))
    key = jax.device_put(jax.random.key(step), NamedSharding(mesh, PartitionSpec()))
    return TrainState(count, params, {"mu": params["w"] * 2}, None, key, count)


def equal(one, other):
    flat = [arrays.items(state) for state in (one, other)]
    return all(
        np.array_equal(a.data, b.data)
        for name in flat[0]
        for x, y in zip(flat[0][name].values(), flat[1][name].values(), strict=True)
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )


wait = arrays.Writer.wait


def fail(writer):
    wait(writer)
    raise OSError(28, "No space left on device")


def main(folder):
    parallel.initialize()
    me = jax.process_index()
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    jax.set_mesh(mesh)
    states = {step: make_state(mesh, step) for step in (0, 1, 2, 3)}
    with Checkpoints(folder, keep=3) as store:
        for step in (1, 2):
            store.save(states[step], {"at": step}, {})
            store.check()
    if me == 0:
        files = [path for path in pathlib.Path(store.path / "2").rglob("*") if path.is_file()]
        data = max(files, key=lambda path: path.stat().st_size)
        content = data.read_bytes()
        data.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with Checkpoints(folder, keep=3) as store:
        state, position = store.restore(states[0])
        print(f"restored: {position} {equal(state, states[1])} {store.latest_step()}")
        for process in (0, 1):
            if me == process:
                arrays.Writer.wait = fail
            try:
                store.save(states[3], {}, {})
                store.wait()
            except RunFailure as error:
                print(f"failed on {process}: {error}")
            arrays.Writer.wait = wait

        def check(_):
            if me == 1:
                raise UserError("the problems differ here")

        try:
            store.restore(states[0], check=check)
        except UserError as error:
            print(f"refused: {error}")
        store.save(states[3], {"at": 3}, {})
    print(f"left: {sorted(os.listdir(store.path))}")


if __name__ == "__main__":
    main(sys.argv[1])
