"""Bytes read and written, of programs compiled for this machine."""

import jax
import jax.numpy as jnp
import pytest

from ibtpo.compiler.costs import analyse
from tests.compiler.programs import analysed, compiled


def test_bytes_of_a_product_are_its_operands_and_result():
    program = compiled(jnp.matmul, (256, 512), (512, 128))
    total = analyse(program.as_text()).total
    assert total.bytes == 4 * (256 * 512 + 512 * 128 + 256 * 128)
    assert total.bytes == program.cost_analysis()["bytes accessed"]


def test_of_slices_gathers_and_updates_only_the_part_counts():
    big, small = (4096, 256), 8 * 256 * 4

    def slice_(x, i):
        return jax.lax.dynamic_slice(x, (i, 0), (8, 256)) * 2

    def update(x, i):
        return jax.lax.dynamic_update_slice(x, jnp.full((8, 256), 3.0), (i, 0))

    def count(fn, donate=()):
        arguments = jax.ShapeDtypeStruct(big, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        return analyse(jax.jit(fn, donate_argnums=donate).lower(*arguments).compile().as_text()).total

    assert count(slice_).bytes == pytest.approx(2 * small, rel=0.01)
    assert count(update, (0,)).bytes <= 3 * small
    whole = 4096 * 256 * 4
    # Without donation the array is copied first, and that copy is reported.
    kept = count(update)
    assert kept.bytes >= 2 * whole
    assert max(copy.bytes for copy in kept.copies) == whole

    gathered = compiled(lambda x: x[jnp.arange(8) * 7], big)
    assert analyse(gathered.as_text()).total.bytes <= 3 * small + 1000


def test_an_update_in_a_loop_costs_its_slices():
    def fill(x):
        def step(i, x):
            row = jax.lax.dynamic_slice(x, (i, 0), (1, 256)) + 1
            return jax.lax.dynamic_update_slice(x, row, (i, 0))

        return jax.lax.fori_loop(0, 64, step, x)

    (loop,) = analysed(fill, (64, 256)).loops
    row = 256 * 4
    assert 2 * row <= loop.body.bytes <= 5 * row
