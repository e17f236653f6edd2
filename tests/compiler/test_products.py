"""FLOPs of products against their closed form, XLA's own count, and enumeration."""

import functools

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo.compiler.costs import analyse
from ibtpo.compiler.products import valid_positions
from tests.compiler.programs import compiled, module


@pytest.mark.parametrize(
    ("equation", "a", "b", "expected"),
    [
        ("ij,jk->ik", (32, 64), (64, 48), 2 * 32 * 64 * 48),
        ("bij,bjk->bik", (4, 32, 64), (4, 64, 48), 4 * 2 * 32 * 64 * 48),
        ("bhid,bhjd->bhij", (2, 3, 32, 16), (2, 3, 40, 16), 2 * 3 * 2 * 32 * 16 * 40),
        ("bthx,hxd->btd", (2, 24, 4, 16), (4, 16, 32), 2 * 2 * 24 * 4 * 16 * 32),
    ],
)
def test_products_equal_their_closed_form_and_xlas_count(equation, a, b, expected):
    program = compiled(functools.partial(jnp.einsum, equation), a, b)
    total = analyse(program.as_text()).total
    assert total.flops == expected
    assert total.flops == pytest.approx(program.cost_analysis()["flops"], rel=0.02)


def test_matrix_products_as_convolutions():
    plain = module(
        """%a = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
        %b = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(1)
        ROOT %c = bf16[256,512]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf"""
    )
    total = analyse(plain).total
    assert total.flops == 2 * 256 * 1024 * 512
    assert total.bytes == 2 * (256 * 1024 + 1024 * 512 + 256 * 512)
    # Batches become spatial dimensions whose window meets one element at every position.
    batched = module(
        """%a = bf16[4,1024,128]{2,1,0} parameter(0)
        %b = bf16[4,1024,128]{2,1,0} parameter(1)
        ROOT %c = bf16[4,1024,1024]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, \
dim_labels=0bf_0oi->0bf"""
    )
    assert analyse(batched).total.flops == 4 * 2 * 1024 * 1024 * 128
    # A contraction over two dimensions: one of them is a window that covers all of it.
    contracted = module(
        """%a = bf16[1024,4,128]{2,1,0} parameter(0)
        %b = bf16[4,128,256]{2,1,0} parameter(1)
        ROOT %c = bf16[1024,256,1]{1,0,2} convolution(%a, %b), window={size=4}, dim_labels=b0f_0io->bf0"""
    )
    assert analyse(contracted).total.flops == 2 * 1024 * 4 * 128 * 256


@given(
    st.integers(1, 9), st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(0, 6), st.integers(1, 5),
    st.integers(1, 4),
)  # fmt: skip
def test_valid_positions_are_those_of_enumeration(size, window, out, stride, low, dilate, spread):
    expected = 0
    for o in range(out):
        for w in range(window):
            at = o * stride + w * spread - low
            expected += 0 <= at <= dilate * (size - 1) and at % dilate == 0
    assert valid_positions(size, window, out, stride, low, dilate, spread) == expected
