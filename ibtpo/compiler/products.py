"""FLOPs of matrix products and convolutions; a multiply-add is two."""

import math
import re

from ibtpo.compiler.hlo import Array, Computation, Instruction, Module


def _dims(instruction: Instruction, name: str) -> list[int]:
    return [int(d) for d in (instruction.attribute(rf"\b{name}=\{{([\d,]*)\}}") or "").split(",") if d]


def _dot_flops(instruction: Instruction, lhs: Array) -> float:
    contracted = math.prod(lhs.dims[d] for d in _dims(instruction, "lhs_contracting_dims"))
    return 2.0 * instruction.array.size * contracted


def valid_positions(size: int, window: int, out: int, stride: int, low: int, dilate: int, spread: int) -> int:
    """Pairs (output position, window position) that meet an element of the input, along one axis of `size` elements,
    `dilate` apart, after `low` elements of padding; window positions are `spread` apart."""
    count = 0
    for position in range(window):
        # o * stride + position * spread - low = dilate * i for 0 <= i < size, 0 <= o < out
        shift = position * spread - low
        first = max(0, -(shift // stride))
        last = min(out - 1, (dilate * (size - 1) - shift) // stride)
        if last < first:
            continue
        # The o that satisfy the congruence repeat with this period.
        period = dilate // math.gcd(stride, dilate)
        hit = next((o for o in range(first, min(first + period, last + 1)) if (o * stride + shift) % dilate == 0), None)
        count += 0 if hit is None else (last - hit) // period + 1
    return count


def _convolution_flops(instruction: Instruction, lhs: Array, rhs: Array) -> float:
    """TPUs write matrix products as convolutions, batch dimensions as spatial ones with a window that meets a single
    element; so only the positions that meet one count."""
    lhs_labels, rhs_labels, out_labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)[0]
    out = instruction.array
    window: dict[str, list[str]] = {}
    if text := instruction.attribute(r"window=\{([^}]*)\}"):
        window = {name: value.split("x") for name, value in (part.split("=") for part in text.split())}

    def setting(name: str, index: int, default: str) -> str:
        return window[name][index] if name in window else default

    fma = rhs.dims[rhs_labels.index("i")] * out.dims[out_labels.index("f")] * out.dims[out_labels.index("b")]
    for spatial in sorted(c for c in out_labels if c.isdigit()):
        index = int(spatial)
        low = int(setting("pad", index, "0_0").split("_")[0])
        fma *= valid_positions(
            size=lhs.dims[lhs_labels.index(spatial)],
            window=rhs.dims[rhs_labels.index(spatial)],
            out=out.dims[out_labels.index(spatial)],
            stride=int(setting("stride", index, "1")),
            low=low,
            dilate=int(setting("lhs_dilate", index, "1")),
            spread=int(setting("rhs_dilate", index, "1")),
        )
    return 2.0 * fma


def product_flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of an instruction, or of all that a fusion holds."""
    total = 0.0
    for inside, each in module.nested(computation, instruction):
        if each.op == "dot":
            total += _dot_flops(each, inside.instructions[each.operands[0]].array)
        elif each.op == "convolution":
            lhs, rhs = inside.operands_of(each)[:2]
            total += _convolution_flops(each, lhs.array, rhs.array)
    return total
