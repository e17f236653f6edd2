"""Collectives between devices, in the syntax of TPU programs."""

import pytest

from ibtpo.compiler.collectives import Collective
from ibtpo.compiler.costs import analyse
from tests.compiler.programs import ENTRY, LOOP, module


def test_a_gather_in_a_loop_and_what_stays_on_the_chip():
    program = analyse(module(ENTRY, *LOOP))
    (loop,) = program.loops
    assert loop.trips == 6
    shard, whole = 512 * 2048 * 2, 2048 * 2048 * 2
    gathered = program.total.collectives["all-gather", 4]
    assert gathered == Collective(calls=6, bytes=6 * whole, sent=6 * whole * 3 / 4)
    # Space S(1) is memory on the chip: of the slice HBM gives one shard, and the gathered array never touches it.
    assert loop.body.bytes == pytest.approx(shard, abs=100)


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
    (key,) = analyse(text).total.collectives
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
    total = analyse(text).total
    assert total.collectives == {("collective-permute", 4): Collective(1, 4096, 4096)}
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
    total = analyse(text).total
    whole = 2048 * 2048 * 2
    assert total.collectives == {("all-gather", 4): Collective(1, whole, whole * 3 / 4)}
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
    assert analyse(text).total.collectives == {("reduce-scatter", 4): Collective(1, whole, whole * 3 / 4)}
