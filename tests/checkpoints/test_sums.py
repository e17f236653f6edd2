"""The checksum of an array: of its content and nothing else."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp

from ibtpo.checkpoints.sums import sums

TYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]


def sum_of(x):
    return sums({"x": jnp.asarray(x)})["x"]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_changed_element_changes_it(dtype):
    rng = np.random.default_rng(0)
    x = (rng.integers(0, 2, (3, 5)) if dtype == "bool" else rng.integers(0, 100, (3, 5))).astype(jnp.dtype(dtype))
    found = {sum_of(x)}
    for place in np.ndindex(*x.shape):
        y = x.copy()
        y[place] = not y[place] if dtype == "bool" else y[place] + 1
        found.add(sum_of(y))
    assert len(found) == 1 + x.size


@given(st.integers(0, 2**32 - 1), st.integers(0, 31), st.integers(0, 999))
def test_every_flipped_bit_changes_it(seed, bit, place):
    bits = np.random.default_rng(seed).integers(0, 2**32, 1000, np.uint32)
    changed = bits.copy()
    changed[place] ^= np.uint32(1 << bit)
    # Whatever the bits mean as floats: NaN, infinity, -0.
    assert sum_of(bits.view(np.float32)) != sum_of(changed.view(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: np.roll(x, 1, axis=1),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, x[1, 2], x),
        lambda x: np.zeros_like(x),
        lambda x: np.where(np.arange(len(x))[:, None] < 2, 0, x),
        lambda x: -x,
    ],
)
def test_order_and_places_count(change):
    x = np.random.default_rng(1).standard_normal((8, 16)).astype(np.float32)
    assert sum_of(change(x)) != sum_of(x)


def oracle(x):
    """The definition in NumPy, in integers of 64 bits."""

    def mix(x):
        x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ (x >> 16)

    bits = np.frombuffer(x.tobytes(), {4: np.uint32, 2: np.uint16, 1: np.uint8}[x.itemsize]).astype(np.uint64)
    first = mix(bits ^ mix(np.arange(bits.size, dtype=np.uint64)))
    return "".join(f"{int(words.sum()) % 2**32:08x}" for words in (first, mix(first ^ np.uint64(0x9E3779B9))))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5)])
def test_it_is_what_its_definition_says(dtype, shape):
    x = np.asarray(np.random.default_rng(2).integers(0, 2, shape), jnp.dtype(dtype))
    assert sum_of(x) == oracle(x)


def test_it_is_the_same_number_for_ever():
    """What a checkpoint of long ago was saved with is what a later program must find."""
    assert sum_of(np.arange(12, dtype=np.float32).reshape(3, 4)) == "68738e60d9207f55"


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from ibtpo.checkpoints.sums import sums
x = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
found = [sums({"x": jax.numpy.asarray(x)})["x"]]
for shape, spec in (((8,), P("a")), ((4, 2), P("a", "b")), ((4, 2), P("b", "a")), ((4, 2), P(None, "a")), ((8,), P())):
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)])
    with jax.set_mesh(mesh):
        found.append(sums({"x": jax.device_put(x, NamedSharding(mesh, spec))})["x"])
print(len(found), len(set(found)))
"""


def test_it_does_not_depend_on_how_the_array_is_split(repo_root):
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=repo_root, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["6", "1"], done.stderr


def test_an_array_may_be_given_away_at_once():
    from ibtpo.checkpoints.sums import finish, start

    x = jnp.arange(1000.0)
    expected = sums({"x": x})
    started = start({"x": x})
    x = jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert finish(["x"], started) == expected != sums({"x": x})
