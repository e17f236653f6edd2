"""Programs for the tests of costs: compiled for this machine, or written down as a TPU's text."""

import jax
import jax.numpy as jnp

from ibtpo.compiler.costs import Program, analyse


def compiled(fn, *shapes, dtype=jnp.float32):
    return jax.jit(fn).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile()


def analysed(fn, *shapes, **options) -> Program:
    return analyse(compiled(fn, *shapes).as_text(), **options)


def module(entry: str, *computations: str) -> str:
    body = "\n".join("  " + line.strip() for line in entry.strip().splitlines())
    return "HloModule m, is_scheduled=true\n\n" + "\n\n".join(
        [*computations, "ENTRY %main (p: f32[]) -> f32[] {\n" + body + "\n}"]
    )


def scanned(x, weights):
    """A product in each of as many iterations as there are weights."""
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


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
