"""Costs read off compiled programs, against closed forms and XLA's own count; TPU syntax from small modules."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibtpo import hlo


def compiled(fn, *shapes, dtype=jnp.float32):
    return jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile()


def analyse(fn, *shapes, **options):
    return hlo.analyse(compiled(fn, *shapes).as_text(), **options)


# --- programs compiled for this machine -----------------------------------------------------------------------------


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_scan_costs_its_trips():
    program = analyse(scanned, (32, 64), (5, 64, 64))
    expected = 5 * 2 * 32 * 64 * 64
    assert program.total.flops == expected
    assert program.total.flops_by_depth == {1: expected}
    (loop,) = program.loops
    assert (loop.trips, loop.depth) == (5, 0)
    assert loop.body.flops == expected / 5


def test_trips_are_found_without_the_compiler_saying_them():
    """TPU programs carry no trip counts; the same module without them must give the same."""
    text = compiled(scanned, (32, 64), (5, 64, 64)).as_text()
    start = text.index("backend_config", text.index(" while("))
    stripped = text[:start].rstrip(", ") + text[text.index("\n", start) :]
    assert "known_trip_count" in text and "known_trip_count" not in stripped
    assert hlo.analyse(stripped).total == hlo.analyse(text).total


def test_nested_loops_multiply():
    def outer(x, weights):
        return jax.lax.fori_loop(0, 3, lambda i, x: scanned(x, weights), x)

    total = analyse(outer, (32, 64), (5, 64, 64)).total
    assert total.flops_by_depth == {2: 3 * 5 * 2 * 32 * 64 * 64}


def test_a_loop_that_ends_on_data_counts_as_often_as_told():
    def until_small(x, w):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: x @ w, x)

    shapes = (32, 64), (64, 64)
    (loop,) = analyse(until_small, *shapes).loops
    assert loop.trips is None
    assert analyse(until_small, *shapes).total.flops == 2 * 32 * 64 * 64
    assert analyse(until_small, *shapes, unknown_trips=7).total.flops == 7 * 2 * 32 * 64 * 64


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
    total = hlo.analyse(program.as_text()).total
    assert total.flops == expected
    assert total.flops == pytest.approx(program.cost_analysis()["flops"], rel=0.02)


def test_bytes_of_a_product_are_its_operands_and_result():
    program = compiled(jnp.matmul, (256, 512), (512, 128))
    total = hlo.analyse(program.as_text()).total
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
        return hlo.analyse(jax.jit(fn, donate_argnums=donate).lower(*arguments).compile().as_text()).total

    assert count(slice_).bytes == pytest.approx(2 * small, rel=0.01)
    assert count(update, (0,)).bytes <= 3 * small
    whole = 4096 * 256 * 4
    # Without donation the array is copied first, and that copy is reported.
    kept = count(update)
    assert kept.bytes >= 2 * whole
    assert max(copy.bytes for copy in kept.copies) == whole

    gathered = compiled(lambda x: x[jnp.arange(8) * 7], big)
    assert hlo.analyse(gathered.as_text()).total.bytes <= 3 * small + 1000


def test_an_update_in_a_loop_costs_its_slices():
    def fill(x):
        def step(i, x):
            row = jax.lax.dynamic_slice(x, (i, 0), (1, 256)) + 1
            return jax.lax.dynamic_update_slice(x, row, (i, 0))

        return jax.lax.fori_loop(0, 64, step, x)

    (loop,) = analyse(fill, (64, 256)).loops
    row = 256 * 4
    assert 2 * row <= loop.body.bytes <= 5 * row


def test_the_costlier_branch_of_a_conditional_counts():
    def choose(flag, x):
        return jax.lax.cond(flag[0] > 0, lambda x: (x @ x) @ x, lambda x: x, x)

    assert analyse(choose, (1,), (64, 64)).total.flops == 2 * 2 * 64**3


# --- TPU syntax -----------------------------------------------------------------------------------------------------


def module(entry: str, *computations: str) -> str:
    body = "\n".join("  " + line.strip() for line in entry.strip().splitlines())
    return "HloModule m, is_scheduled=true\n\n" + "\n\n".join(
        [*computations, "ENTRY %main (p: f32[]) -> f32[] {\n" + body + "\n}"]
    )


def test_matrix_products_as_convolutions():
    plain = module(
        """%a = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
        %b = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(1)
        ROOT %c = bf16[256,512]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf"""
    )
    total = hlo.analyse(plain).total
    assert total.flops == 2 * 256 * 1024 * 512
    assert total.bytes == 2 * (256 * 1024 + 1024 * 512 + 256 * 512)
    # Batches become spatial dimensions whose window meets one element at every position.
    batched = module(
        """%a = bf16[4,1024,128]{2,1,0} parameter(0)
        %b = bf16[4,1024,128]{2,1,0} parameter(1)
        ROOT %c = bf16[4,1024,1024]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, \
dim_labels=0bf_0oi->0bf"""
    )
    assert hlo.analyse(batched).total.flops == 4 * 2 * 1024 * 1024 * 128
    # A contraction over two dimensions: one of them is a window that covers all of it.
    contracted = module(
        """%a = bf16[1024,4,128]{2,1,0} parameter(0)
        %b = bf16[4,128,256]{2,1,0} parameter(1)
        ROOT %c = bf16[1024,256,1]{1,0,2} convolution(%a, %b), window={size=4}, dim_labels=b0f_0io->bf0"""
    )
    assert hlo.analyse(contracted).total.flops == 2 * 1024 * 4 * 128 * 256


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
    assert hlo._valid_positions(size, window, out, stride, low, dilate, spread) == expected


LOOP = (
    """%fused (p0: bf16[6,512,2048], p1: s32[]) -> bf16[1,512,2048] {
  %p0 = bf16[6,512,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %ds = bf16[1,512,2048]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%p0, %p1, %zero, %zero), \
dynamic_slice_sizes={1,512,2048}
}""",
    """%body (arg: (s32[], bf16[6,512,2048], s32[])) -> (s32[], bf16[6,512,2048], s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %arg = (s32[]{:T(128)}, bf16[6,512,2048]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %w = bf16[6,512,2048]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %slice = bf16[1,512,2048]{2,1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%fused
  %whole = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%slice), channel_id=3, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  %next = s32[]{:T(128)} add(%i, %one)
  %limit = s32[]{:T(128)} get-tuple-element(%arg), index=2
  ROOT %out = (s32[]{:T(128)}, bf16[6,512,2048]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%next, %w, %limit)
}""",
    """%condition (arg.1: (s32[], bf16[6,512,2048], s32[])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[6,512,2048]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=2
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
}""",
)
ENTRY = """%w.1 = bf16[6,512,2048]{2,1,0:T(8,128)(2,1)} parameter(0)
    %zero.1 = s32[]{:T(128)} constant(0)
    %six = s32[]{:T(128)} constant(6)
    %start = s32[]{:T(128)} copy(%zero.1)
    %tuple = (s32[]{:T(128)}, bf16[6,512,2048]{2,1,0}, s32[]{:T(128)}) tuple(%start, %w.1, %six)
    %while = (s32[]{:T(128)}, bf16[6,512,2048]{2,1,0}, s32[]{:T(128)}) while(%tuple), condition=%condition, body=%body
    ROOT %last = bf16[6,512,2048]{2,1,0} get-tuple-element(%while), index=1"""


def test_a_gather_in_a_loop_and_what_stays_on_the_chip():
    program = hlo.analyse(module(ENTRY, *LOOP))
    (loop,) = program.loops
    assert loop.trips == 6
    shard, whole = 512 * 2048 * 2, 2048 * 2048 * 2
    gathered = program.total.collectives["all-gather", 4]
    assert gathered == hlo.Collective(calls=6, bytes=6 * whole, sent=6 * whole * 3 / 4)
    # Space S(1) is memory on the chip: of the slice HBM gives one shard, and the gathered array never touches it.
    assert loop.body.bytes == pytest.approx(shard, abs=100)


def test_trips_of_a_counter_that_nothing_bounds_are_unknown():
    unbounded = [part.replace("constant(1)", "parameter(1)") for part in LOOP]
    (loop,) = hlo.analyse(module(ENTRY, *unbounded)).loops
    assert loop.trips is None


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=4,'tensor'=2] {'fsdp','tensor'}", 8),
        ("replica_groups=mesh['a'=16] {'a':(1)4}", 4),
    ],
)
def test_group_sizes(attributes, size):
    text = module(
        f"""%a = f32[128]{{0}} parameter(0)
        ROOT %b = f32[128]{{0}} all-reduce(%a), channel_id=1, {attributes}, to_apply=%add"""
    )
    (key,) = hlo.analyse(text).total.collectives
    assert key == ("all-reduce", size)


def test_asynchronous_pairs_count_once():
    text = module(
        """%a = f32[1024]{0} parameter(0)
        %s = (f32[1024]{0}, f32[1024]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=1, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
        %d = f32[1024]{0} collective-permute-done(%s)
        %cs = (f32[1024]{0:S(1)}, f32[1024]{0}, u32[]{:S(2)}) copy-start(%d)
        ROOT %cd = f32[1024]{0:S(1)} copy-done(%cs)"""
    )
    total = hlo.analyse(text).total
    assert total.collectives == {("collective-permute", 4): hlo.Collective(1, 4096, 4096)}
    assert total.bytes == 4096 + 4096 + 4096  # sent, received, and fetched onto the chip
    assert total.copies == []


def test_a_fused_asynchronous_gather_counts_once_and_its_product_too():
    config = 'backend_config={"async_collective_fusion_config":{"flag_start":"%s","flag_end":"15"}}'
    gather = "all-gather(%p), channel_id=8, replica_groups={{0,1,2,3}}, dimensions={0}, "
    parts = (
        f"""%begin (p: bf16[512,2048]) -> (bf16[512,2048], bf16[2048,2048], s32[2]) {{
  %p = bf16[512,2048]{{1,0}} parameter(0)
  %g = bf16[2048,2048]{{1,0}} {gather}{config % -1}
  ROOT %start = (bf16[512,2048]{{1,0}}, bf16[2048,2048]{{1,0}}, s32[2]{{0:S(4)}}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}""",
        f"""%middle (p: bf16[512,2048], q: bf16[2048,2048], x: bf16[256,2048]) -> (bf16[256,2048], bf16[2048,2048]) {{
  %p = bf16[512,2048]{{1,0}} parameter(0)
  %q = bf16[2048,2048]{{1,0}} parameter(1)
  %x = bf16[256,2048]{{1,0}} parameter(2)
  %y = bf16[2048,2048]{{1,0}} parameter(3)
  %product = bf16[256,2048]{{1,0}} convolution(%x, %y), dim_labels=bf_io->bf
  %g = bf16[2048,2048]{{1,0}} {gather}{config % 2}
  ROOT %t = (bf16[256,2048]{{1,0}}, bf16[2048,2048]{{1,0}}) tuple(%product, %g)
}}""",
        f"""%end (p: bf16[512,2048], q: bf16[2048,2048]) -> bf16[2048,2048] {{
  %p = bf16[512,2048]{{1,0}} parameter(0)
  %q = bf16[2048,2048]{{1,0}} parameter(1)
  %g = bf16[2048,2048]{{1,0}} {gather}{config % 2}
  ROOT %done = bf16[2048,2048]{{1,0}} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}}""",
    )
    text = module(
        """%shard = bf16[512,2048]{1,0} parameter(0)
        %x.1 = bf16[256,2048]{1,0} parameter(1)
        %y.1 = bf16[2048,2048]{1,0} parameter(2)
        %s = (bf16[512,2048]{1,0}, bf16[2048,2048]{1,0}, s32[2]{0:S(4)}) fusion(%shard), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%begin
        %s0 = bf16[512,2048]{1,0} get-tuple-element(%s), index=0
        %s1 = bf16[2048,2048]{1,0} get-tuple-element(%s), index=1
        %m = (bf16[256,2048]{1,0}, bf16[2048,2048]{1,0}) fusion(%s0, %s1, %x.1, %y.1), kind=kOutput, \
output_to_operand_aliasing={{1}: (1, {})}, calls=%middle
        %m1 = bf16[2048,2048]{1,0} get-tuple-element(%m), index=1
        ROOT %d = bf16[2048,2048]{1,0} fusion(%s0, %m1), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, \
calls=%end""",
        *parts,
    )
    total = hlo.analyse(text).total
    whole = 2048 * 2048 * 2
    assert total.collectives == {("all-gather", 4): hlo.Collective(1, whole, whole * 3 / 4)}
    assert total.flops == 2 * 256 * 2048 * 2048
    product = 2 * (256 * 2048 + 2048 * 2048 + 256 * 2048)
    assert total.bytes == whole / 4 + whole + product


def test_a_reduce_scatter_that_is_written_as_an_all_reduce():
    text = module(
        """%x = bf16[2048,64]{1,0} parameter(0)
        ROOT %f = bf16[512,64]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1""",
        """%all-reduce-scatter.1 (input: bf16[2048,64]) -> bf16[512,64] {
  %input = bf16[2048,64]{1,0} parameter(0)
  %r = bf16[2048,64]{1,0} all-reduce(%input), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
  %id = u32[] partition-id()
  %rows = u32[] constant(512)
  %at = u32[] multiply(%id, %rows)
  %zero = u32[] constant(0)
  ROOT %own = bf16[512,64]{1,0} dynamic-slice(%r, %at, %zero), dynamic_slice_sizes={512,64}
}""",
    )
    whole = 2048 * 64 * 2
    assert hlo.analyse(text).total.collectives == {("reduce-scatter", 4): hlo.Collective(1, whole, whole * 3 / 4)}


def test_kernels_count_by_their_own_estimate():
    estimate = '"cost_estimate":{"flops":"1000","transcendentals":"4","bytes_accessed":"2000"},'
    line = (
        '%%k%d = bf16[64,128]{1,0} custom-call(%%q), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(f)/jvp(jit(%s))/pallas_call"}, '
        'backend_config={"custom_call_config":{"body":"TUzvUgFN)(",%s"needs_layout_passes":true}}'
    )
    text = module(
        "\n".join(
            [
                "%q = bf16[64,128]{1,0} parameter(0)",
                line % (0, "tree", estimate),
                line % (1, "tree", estimate),
                line % (2, "paged", ""),
                "ROOT %t = (bf16[64,128]{1,0}, bf16[64,128]{1,0}, bf16[64,128]{1,0}) tuple(%k0, %k1, %k2)",
            ]
        )
    )
    total = hlo.analyse(text).total
    size = 2 * 64 * 128 * 2
    assert total.kernels == {
        "tree": hlo.Kernel(calls=2, flops=2000, bytes=4000, operand_bytes=2 * size, estimated=True),
        "paged": hlo.Kernel(calls=1, flops=0, bytes=0, operand_bytes=size, estimated=False),
    }
    assert total.bytes == 0 and total.flops == 0


def test_copies_within_hbm_are_reported():
    text = module(
        """%a = bf16[64,128]{1,0} parameter(0)
        %b = bf16[64,128]{0,1} copy(%a), metadata={op_name="jit(f)/transpose"}
        ROOT %c = bf16[64,128]{0,1:S(1)} copy(%b)"""
    )
    assert hlo.analyse(text).total.copies == [hlo.Copy("bf16[64,128]", 2 * 64 * 128, 1, 0, "jit(f)/transpose")]


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.analyse("module @jit_f {}")


def test_roofline_takes_the_longest():
    chip = hlo.Chip("x", flops=100, hbm_bytes=1, hbm_bandwidth=10, ici_bandwidth=5)
    assert hlo.roofline(200, 10, 5, chip) == (2.0, "compute")
    assert hlo.roofline(200, 50, 5, chip) == (5.0, "memory")
    assert hlo.roofline(200, 50, 35, chip) == (7.0, "interconnect")


def test_costs_add_and_scale():
    one = hlo.Cost(flops=3, flops_by_depth={1: 3}, bytes=5, collectives={("all-gather", 2): hlo.Collective(1, 8, 4)})
    total = hlo.Cost()
    total.add(one, 3)
    total.add(one)
    assert (total.flops, total.flops_by_depth, total.bytes, total.sent) == (12, {1: 12}, 20, 16)
    assert total.collectives["all-gather", 2] == hlo.Collective(4, 32, 16)
