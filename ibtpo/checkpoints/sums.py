"""Checksums of arrays, the same whatever devices and hosts they are split over.

Element i with the bits b_i counts as h_i = mix(b_i ^ mix(i)), i its place in the whole array in row-major order. The
sum is two words of 32 bits, sum_i h_i and sum_i mix(h_i ^ c), both modulo 2^32. `mix` is the last step of MurmurHash3
(A. Appleby, public domain), a bijection: another value of one element always changes the first word; other changes, of
many elements or of their order, go unnoticed with probability 2^-64. A sum does not depend on the order of its parts,
so every device adds up what it holds; a run may be saved by four hosts and checked by one. The host sees two words per
array.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax import numpy as jnp

from ibtpo.parallel import replicate

_SECOND = 0x9E3779B9
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def start(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """The sums of arrays as an array that the devices may still be at work on; for `finish`. On several hosts all call
    this alike. An array may be given away (donated) right after.

    Returns: uint32 [arrays, 2].
    """
    return _sums(list(arrays.values()))


def finish(names: Sequence[str] | Mapping[str, object], started: jax.Array) -> dict[str, str]:
    """{name: sum in hexadecimal digits} of the arrays with these names, in the order of `start`."""
    words = np.asarray(started).tolist()
    return {name: f"{first:08x}{second:08x}" for name, (first, second) in zip(names, words, strict=True)}


def sums(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """{name: sum} of arrays, waited for."""
    return finish(arrays, start(arrays)) if arrays else {}


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    return replicate(jnp.stack([_sum(x) for x in arrays]))


def _sum(x: jax.Array) -> jax.Array:
    first = _mix(_bits(x) ^ _mix(_places(x.shape)))
    second = _mix(first ^ jnp.uint32(_SECOND))
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


def _bits(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32, those of a wider one as several."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = _UNSIGNED[min(x.dtype.itemsize, 4)]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).reshape(*x.shape, -1)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of each element, modulo 2^32; an axis of size 1 behind them."""
    place, stride = jnp.zeros((*shape, 1), jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis)
        place = place + index * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return place


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
