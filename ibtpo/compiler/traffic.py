"""Bytes that the instructions of a program read from and write to HBM, and the arrays that they copy whole."""

import re

from ibtpo.compiler.collectives import KINDS, continues
from ibtpo.compiler.hlo import Array, Computation, Instruction, Module

# Of these, an element of the result needs the elements of the operands at the same place alone.
_SAME_PLACE = frozenset(
    "bitcast convert copy reshape transpose negate abs sign add subtract multiply divide maximum minimum and or xor "
    "not select compare exponential tanh log rsqrt sqrt power clamp bitcast-convert reduce-precision logistic floor "
    "ceil shift-left shift-right-logical shift-right-arithmetic is-finite exponential-minus-one log-plus-one cosine "
    "sine get-tuple-element".split()
)
_ASYNC_MARKS = ("AsyncCollectiveStart", "AsyncCollectiveDone")


class Traffic:
    """Bytes that each instruction of a module moves."""

    def __init__(self, module: Module):
        self.module = module
        self._fractions: dict[tuple[str, str], float] = {}

    def read(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes read from HBM."""
        op, total = instruction.op, 0.0
        if op == "slice-start":
            return 0.0  # counted where it is done
        if op == "slice-done":
            source = computation.operands_of(computation.instructions[instruction.operands[0]])[0]
            return 0.0 if source.array.space else instruction.bytes
        if op.endswith(("-done", "-update")):
            return 0.0
        for index, operand in enumerate(computation.operands_of(instruction)):
            hbm = sum(a.hbm for a in operand.arrays)
            if hbm:
                total += hbm * self._part_read(computation, instruction, index)
        return total

    def _part_read(self, computation: Computation, instruction: Instruction, index: int) -> float:
        """Share of the operand's elements that an instruction reads."""
        op = instruction.op
        operand = computation.instructions[instruction.operands[index]]
        size = max(sum(a.size for a in operand.arrays), 1)
        if inner := self.module.inner(instruction):
            parameter = inner.parameters.get(index)
            return self._fraction(inner, parameter) if parameter else 1.0
        if op in ("dynamic-slice", "slice", "gather") and index == 0:
            return min(1.0, instruction.array.size / size)
        if op == "dynamic-update-slice" and index == 0:
            return 0.0
        if op == "scatter" and index < len(instruction.operands) // 2:
            # XLA's order: operands, indices, updates.
            updates = computation.instructions[instruction.operands[len(instruction.operands) // 2 + 1 + index]]
            return min(1.0, updates.array.size / size)
        if op == "tuple" or (op in KINDS and continues(instruction)):
            return 0.0
        if op == "custom-call" and "AsyncCollectiveDone" in instruction.attributes:
            return 0.0
        return 1.0

    def _fraction(self, computation: Computation, name: str) -> float:
        """Share of the elements of a value inside a fusion that are needed."""
        key = computation.name, name
        if key not in self._fractions:
            total = 1.0 if name == computation.root and computation.instructions[name].op != "parameter" else 0.0
            for user, index in computation.users.get(name, ()):
                part = self._part_read(computation, user, index)
                operand = computation.instructions[name]
                same_size = user.op in _SAME_PLACE and sum(a.size for a in user.arrays) == sum(
                    a.size for a in operand.arrays
                )
                total += self._fraction(computation, user.name) if same_size else part
            self._fractions[key] = min(1.0, total)
        return self._fractions[key]

    def written(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes written to HBM."""
        op = instruction.op
        if op.endswith(("-start", "-update")) and op != "dynamic-update-slice":
            return 0.0  # counted where it is done
        inner = self.module.inner(instruction)
        if inner is None:
            return 0.0 if instruction.array.space else self._part_written(computation, instruction.name)
        root = inner.instructions[inner.root]
        parts = root.operands if root.op == "tuple" else [inner.root]
        asynchronous = any(mark in i.attributes for i in inner.instructions.values() for mark in _ASYNC_MARKS) or any(
            i.op in KINDS and continues(i) for i in inner.instructions.values()
        )
        aliased = {int(i) if i else 0 for i in re.findall(r"\{(\d*)\}: \(", instruction.attributes)}
        if asynchronous and len(parts) != len(instruction.arrays):
            # The start of a collective: operand, result and semaphores in one tuple.
            return sum(a.hbm for i, a in enumerate(instruction.arrays) if i not in aliased)
        total = 0.0
        for index, part in enumerate(parts):
            array = instruction.arrays[index] if len(parts) == len(instruction.arrays) else instruction.array
            if array.space or (asynchronous and index in aliased):
                continue
            total += self._part_written(inner, part)
        return total

    def _part_written(self, computation: Computation, name: str) -> float:
        """Bytes of a value that are written where its array may already exist: of an update in place the new part."""
        instruction = computation.instructions[name]
        op = instruction.op
        if op == "parameter":
            return 0.0
        if inner := self.module.inner(instruction):
            return self._part_written(inner, inner.root)
        if op == "bitcast":
            return self._part_written(computation, instruction.operands[0])
        if op in ("dynamic-update-slice", "scatter"):
            # Operands: the array, the new part, where; or the arrays, where, the new parts.
            old, arrays = instruction.operands[0], len(instruction.operands) // 2
            names = instruction.operands[1:2] if op == "dynamic-update-slice" else instruction.operands[arrays + 1 :]
            new = [computation.instructions[n] for n in names]
            written = sum(x.bytes for x in new)
            before = computation.instructions[old]
            if before.op in ("dynamic-update-slice", "scatter"):
                written += self._part_written(computation, old)
            elif before.op not in ("parameter", "bitcast", "get-tuple-element", "fusion", "copy", "copy-done"):
                written = instruction.bytes  # the rest is made here too
            return min(written, instruction.bytes)
        return sum(a.bytes for a in instruction.arrays)

    def copied(self, computation: Computation, instruction: Instruction) -> Array | None:
        """The array that this instruction copies within HBM, if that is all it does."""
        if instruction.op == "copy-done":
            source = computation.operands_of(computation.instructions[instruction.operands[0]])[0]
        elif instruction.op == "copy":
            source = computation.operands_of(instruction)[0]
        elif inner := self.module.inner(instruction):
            ops = {i.op for i in inner.instructions.values()} - {"parameter", "bitcast", "constant"}
            if not ops or ops - {"copy", "transpose"} or len(instruction.operands) != 1:
                return None
            source = computation.operands_of(instruction)[0]
        else:
            return None
        both = len(source.arrays) == 1 and len(instruction.arrays) == 1 and source.array.hbm and instruction.array.hbm
        return instruction.array if both else None
