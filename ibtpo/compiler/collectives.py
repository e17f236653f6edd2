"""The collectives of a program."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ibtpo.compiler.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """calls: how often. bytes: of the whole arrays (gathered, or before they are scattered or reduced), all calls.
    sent: bytes one device sends in a ring, all calls: (n-1)/n of the array for all-gather, reduce-scatter and
    all-to-all among n devices, twice that for all-reduce, all of it for collective-permute."""

    calls: float = 0
    bytes: float = 0
    sent: float = 0

    def __add__(self, other: "Collective") -> "Collective":
        return Collective(self.calls + other.calls, self.bytes + other.bytes, self.sent + other.sent)


def _group_size(instruction: Instruction) -> int:
    """Devices that take part together."""
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return len(set(re.findall(r"\d+", pairs[1])))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\w*\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        # An axis may be taken in part, written 'axis':(elements before)size.
        taken = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[name] for name, part in taken)
    return 1


def _collective(kind: str, instruction: Instruction, operand_bytes: float) -> Collective:
    group = _group_size(instruction)
    whole = operand_bytes * group if kind == "all-gather" else operand_bytes
    share = (group - 1) / group
    sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * whole
    return Collective(1, whole, sent)


def continues(instruction: Instruction) -> bool:
    """Whether a collective inside a TPU's asynchronous fusion is a later part of one that was started elsewhere."""
    flag = instruction.backend_config.get("async_collective_fusion_config", {}).get("flag_start", "-1")
    return flag != "-1"


def collectives(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[str, int, Collective]]:
    """(kind, devices in a group, its cost) of each collective that an instruction starts, those of a fusion too."""
    fused = module.inner(instruction)
    for inside, each in module.nested(computation, instruction):
        kind = each.op.removesuffix("-start")
        if kind not in KINDS or continues(each):
            continue
        if fused and kind == "all-reduce" and "reduce-scatter" in fused.name:
            kind = "reduce-scatter"  # a TPU fuses it out of an all-reduce and the slice that is kept
        num_bytes = sum(operand.bytes for operand in inside.operands_of(each))
        yield kind, _group_size(each), _collective(kind, each, num_bytes)
