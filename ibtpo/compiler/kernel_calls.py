"""The Pallas kernels that a program calls."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ibtpo.compiler.hlo import Computation, Instruction, Module

TPU, GPU = "tpu_custom_call", "__gpu$xla.gpu.triton"  # targets of the calls


@dataclass(frozen=True)
class Kernel:
    """Calls of one Pallas kernel. flops, bytes: by its own cost estimate, all calls; 0 where it has none, and
    `estimated` is False. operand_bytes: its operands and results in HBM, all calls."""

    calls: float = 0
    flops: float = 0
    bytes: float = 0
    operand_bytes: float = 0
    estimated: bool = True

    def __add__(self, other: "Kernel") -> "Kernel":
        return Kernel(
            self.calls + other.calls,
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.operand_bytes + other.operand_bytes,
            self.estimated and other.estimated,
        )


def kernels(module: Module, computation: Computation, instruction: Instruction) -> Iterator[tuple[str, Kernel]]:
    """(name, its cost) of each Pallas kernel that an instruction calls, those of a fusion too."""
    for inside, each in module.nested(computation, instruction):
        target = re.search(r'custom_call_target="([^"]*)"', each.attributes) if each.op == "custom-call" else None
        if target is None or target[1] not in (TPU, GPU):
            continue
        # The GPU's text has no estimate; its configuration is the kernel itself.
        estimate = None if target[1] == GPU else each.backend_config.get("custom_call_config", {}).get("cost_estimate")
        hbm = sum(a.hbm for o in inside.operands_of(each) for a in o.arrays) + sum(a.hbm for a in each.arrays)
        yield (
            _kernel_name(each),
            Kernel(
                calls=1,
                flops=float(estimate["flops"]) if estimate else 0.0,
                bytes=float(estimate["bytes_accessed"]) if estimate else 0.0,
                operand_bytes=hbm,
                estimated=estimate is not None,
            ),
        )


def _kernel_name(instruction: Instruction) -> str:
    """The name a `pallas_call` was given, or the function it was traced in."""
    parts = instruction.op_name.split("/")
    if parts[-1] == "pallas_call":
        parts = parts[:-1]
    last = re.sub(r"[\w]+\((.*)\)", r"\1", parts[-1]) if parts else ""
    while "(" in last:
        last = re.sub(r"\w*\((.*)\)", r"\1", last)
    return last or re.sub(r"\.\d+$", "", instruction.name)
