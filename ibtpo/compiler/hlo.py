"""The text of an optimised HLO module, parsed: computations, instructions, and the arrays of their types.

The text is that of `compiled.as_text()`, for a CPU or a TPU program.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclass(frozen=True)
class Array:
    """An array in a type. space: where it lives."""

    dtype: str
    dims: tuple[int, ...]
    space: int  # 0: HBM (or the one memory of a CPU)

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.findall(r"\d+", self.dtype)[0])  # f32, bf16, s4, f8e4m3fn
        return self.size * bits / 8

    @property
    def hbm(self) -> float:
        return 0.0 if self.space else self.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type, those of a (nested) tuple in a row."""
    result = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(d.strip("<=")) for d in dims.split(",") if d)
        result.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(result)


@dataclass
class Instruction:
    """One line: `name = type op(operands), attributes`. operands: by name."""

    name: str
    op: str
    type: str
    operands: list[str]
    inside: str  # text between the parentheses
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        return arrays_of(self.type)

    @property
    def array(self) -> Array:
        return self.arrays[0]

    @property
    def bytes(self) -> float:
        return sum(a.bytes for a in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    def called(self, *names: str) -> list[str]:
        """Names of the computations in these attributes."""
        found = []
        for name in names:
            if match := re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                found += _NAME.findall(match[1])
        return found

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        start = self.attributes.find("backend_config=")
        if start < 0:
            return {}
        try:
            value = json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]
        except json.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def index(self) -> int:
        """Of a get-tuple-element."""
        return int(re.findall(r"index=(\d+)", self.attributes)[0])

    @property
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"') or self.name


@dataclass
class Computation:
    """A function of the module: its instructions by name in the order they run. root: name of the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        return {int(i.inside): i.name for i in self.instructions.values() if i.op == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """For each instruction who uses it, and as which operand."""
        result: dict[str, list] = {}
        for instruction in self.instructions.values():
            for index, operand in enumerate(instruction.operands):
                result.setdefault(operand, []).append((instruction, index))
        return result

    def operands_of(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands]


@dataclass
class Module:
    """A program: its computations by name, and the one that it starts with."""

    computations: dict[str, Computation]
    entry: Computation

    def inner(self, instruction: Instruction) -> Computation | None:
        """The computation of a fusion; None of another instruction."""
        return self.computations[instruction.called("calls")[0]] if instruction.op == "fusion" else None

    def nested(self, computation: Computation, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instruction, or all instructions of a fusion, with their computation."""
        if inner := self.inner(instruction):
            for each in inner.instructions.values():
                yield from self.nested(inner, each)
        else:
            yield computation, instruction


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in HLO text: {text[:120]}")


def _parse_instruction(line: str) -> tuple[Instruction, bool] | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing]
    instruction = Instruction(
        name=match[2],
        op=line[end:opening].strip(),
        type=line[start:end],
        operands=_NAME.findall(inside),
        inside=inside,
        attributes=line[closing + 1 :],
    )
    return instruction, bool(match[1])


def parse(text: str) -> Module:
    """The module of an optimised program's text.

    Raises:
      ValueError: the text is not that of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if match := _COMPUTATION.match(line):
                current = computations[match[2]] = Computation(match[2])
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif parsed := _parse_instruction(line):
            instruction, is_root = parsed
            current.instructions[instruction.name] = instruction
            if is_root:
                current.root = instruction.name
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return Module(computations, computations[entry])
