"""What a compiled program costs: FLOPs, HBM bytes, collectives, kernels and copies of optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once and does not look inside kernels, and a training step is
loops of kernels. Here every loop counts as often as it runs, nested loops multiply.

    cost = analyse(compiled.as_text()).total

Everything is per device: after partitioning, the text is the program of one of them.
"""

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Published peaks of one chip (one JAX device).

    flops: bfloat16 FLOP/s. hbm_bytes: capacity. hbm_bandwidth: bytes/s. ici_bandwidth: bytes/s that leave the chip
    when all its links send at once.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float


# By `device_kind`. Source: the "System architecture" pages of the Google Cloud TPU documentation (v4, v5e, v5p, v6e).
# They give ICI bandwidth in both directions together, of which half leaves the chip, and capacities of 16, 32 and 95
# GB, which are GiB: the compiler's own limit, a little below them, says so.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * 2**30, 1228e9, 300e9),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9),
}


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


@dataclass(frozen=True)
class Copy:
    """An array copied from HBM to HBM. bytes: of one copy. calls: how often. depth: loops around it. op: whence."""

    shape: str
    bytes: float
    calls: float
    depth: int
    op: str


@dataclass
class Cost:
    """What running something costs one device.

    flops: of matrix products and convolutions outside kernels; a multiply-add is two. Everything else is left out.
    flops_by_depth: the same by the number of loops around.
    bytes: read from and written to HBM outside kernels. What the compiler keeps in on-chip memory costs nothing; of a
      slice, gather, update or scatter only the elements touched count.
    collectives: by (kind, devices in a group). kernels: by name. copies: from HBM to HBM, whole arrays.
    """

    flops: float = 0
    flops_by_depth: dict[int, float] = field(default_factory=dict)
    bytes: float = 0
    collectives: dict[tuple[str, int], Collective] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)

    def add(self, other: "Cost", times: float = 1) -> None:
        """Adds `times` runs of `other`."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for depth, flops in other.flops_by_depth.items():
            self.flops_by_depth[depth] = self.flops_by_depth.get(depth, 0) + times * flops
        for key, c in other.collectives.items():
            scaled = Collective(times * c.calls, times * c.bytes, times * c.sent)
            self.collectives[key] = self.collectives.get(key, Collective()) + scaled
        for name, k in other.kernels.items():
            scaled = Kernel(times * k.calls, times * k.flops, times * k.bytes, times * k.operand_bytes, k.estimated)
            self.kernels[name] = self.kernels.get(name, Kernel()) + scaled
        self.copies += [replace(c, calls=times * c.calls) for c in other.copies]

    @property
    def sent(self) -> float:
        """Bytes this device sends over the interconnect."""
        return sum(c.sent for c in self.collectives.values())


@dataclass
class Loop:
    """A loop: name of its instruction, op it comes from, loops around it, iterations (None: the text does not say) and
    the cost of one iteration, inner loops included."""

    name: str
    op: str
    depth: int
    trips: int | None
    body: Cost


@dataclass
class Program:
    """Cost of a program, and its loops, outer ones first."""

    total: Cost
    loops: list[Loop]


def roofline(flops: float, num_bytes: float, sent: float, chip: Chip) -> tuple[float, str]:
    """(seconds, "compute" | "memory" | "interconnect"): the longest of the times that arithmetic, HBM and links need at
    their published peaks; what no run can beat, with everything else overlapped."""
    times = {
        "compute": flops / chip.flops,
        "memory": num_bytes / chip.hbm_bandwidth,
        "interconnect": sent / chip.ici_bandwidth,
    }
    bound = max(times, key=times.__getitem__)
    return times[bound], bound


# --- HLO text -------------------------------------------------------------------------------------------------------

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclass(frozen=True)
class _Array:
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
            bits = int(re.search(r"\d+", self.dtype)[0])  # f32, bf16, s4, f8e4m3fn
        return self.size * bits / 8

    @property
    def hbm(self) -> float:
        return 0.0 if self.space else self.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


def _arrays(text: str) -> tuple[_Array, ...]:
    """The arrays of a type, those of a (nested) tuple in a row."""
    result = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(d.strip("<=")) for d in dims.split(",") if d)
        result.append(_Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(result)


@dataclass
class _Instruction:
    name: str
    op: str
    type: str
    operands: list[str]
    inside: str  # text between the parentheses
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[_Array, ...]:
        return _arrays(self.type)

    @property
    def array(self) -> _Array:
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
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"') or self.name


@dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        return {int(i.inside): i.name for i in self.instructions.values() if i.op == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[_Instruction, int]]]:
        """For each instruction who uses it, and as which operand."""
        result: dict[str, list] = {}
        for instruction in self.instructions.values():
            for index, operand in enumerate(instruction.operands):
                result.setdefault(operand, []).append((instruction, index))
        return result


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in HLO text: {text[:120]}")


def _parse_instruction(line: str) -> tuple[_Instruction, bool] | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    inside = line[opening + 1 : closing]
    instruction = _Instruction(
        name=match[2],
        op=line[end:opening].strip(),
        type=line[start:end],
        operands=_NAME.findall(inside),
        inside=inside,
        attributes=line[closing + 1 :],
    )
    return instruction, bool(match[1])


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """(computations by name, name of the entry)."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if match := _COMPUTATION.match(line):
                current = computations[match[2]] = _Computation(match[2])
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
    return computations, entry


# --- matrix products ------------------------------------------------------------------------------------------------


def _dims(instruction: _Instruction, name: str) -> list[int]:
    return [int(d) for d in (instruction.attribute(rf"\b{name}=\{{([\d,]*)\}}") or "").split(",") if d]


def _dot_flops(instruction: _Instruction, lhs: _Array) -> float:
    contracted = math.prod(lhs.dims[d] for d in _dims(instruction, "lhs_contracting_dims"))
    return 2.0 * instruction.array.size * contracted


def _valid_positions(size: int, window: int, out: int, stride: int, low: int, dilate: int, spread: int) -> int:
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


def _convolution_flops(instruction: _Instruction, lhs: _Array, rhs: _Array) -> float:
    """TPUs write matrix products as convolutions, batch dimensions as spatial ones with a window that meets a single
    element; so only the positions that meet one count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    lhs_labels, rhs_labels, out_labels = labels.groups()
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
        fma *= _valid_positions(
            size=lhs.dims[lhs_labels.index(spatial)],
            window=rhs.dims[rhs_labels.index(spatial)],
            out=out.dims[out_labels.index(spatial)],
            stride=int(setting("stride", index, "1")),
            low=low,
            dilate=int(setting("lhs_dilate", index, "1")),
            spread=int(setting("rhs_dilate", index, "1")),
        )
    return 2.0 * fma


# --- collectives ----------------------------------------------------------------------------------------------------

_COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")


def _group_size(instruction: _Instruction) -> int:
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


def _collective(kind: str, instruction: _Instruction, operand_bytes: float) -> Collective:
    group = _group_size(instruction)
    whole = operand_bytes * group if kind == "all-gather" else operand_bytes
    share = (group - 1) / group
    sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * whole
    return Collective(1, whole, sent)


# --- the walk -------------------------------------------------------------------------------------------------------

# These neither read nor write: they name what is there.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all add-dependency partition-id replica-id "
    "opt-barrier domain iota-start".split()
)
# Of these, an element of the result needs the elements of the operands at the same place alone.
_SAME_PLACE = frozenset(
    "bitcast convert copy reshape transpose negate abs sign add subtract multiply divide maximum minimum and or xor "
    "not select compare exponential tanh log rsqrt sqrt power clamp bitcast-convert reduce-precision logistic floor "
    "ceil shift-left shift-right-logical shift-right-arithmetic is-finite exponential-minus-one log-plus-one cosine "
    "sine get-tuple-element".split()
)
_ASYNC_MARKS = ("AsyncCollectiveStart", "AsyncCollectiveDone")


def _continues(instruction: _Instruction) -> bool:
    """Whether a collective inside a TPU's asynchronous fusion is a later part of one that was started elsewhere."""
    flag = instruction.backend_config.get("async_collective_fusion_config", {}).get("flag_start", "-1")
    return flag != "-1"


def analyse(text: str, *, unknown_trips: int = 1) -> Program:
    """Costs of the program whose optimised HLO is `text` (`compiled.as_text()`).

    Args:
      text: of a CPU or TPU program, after optimisation.
      unknown_trips: iterations of loops that end on a condition of the data; `Program.loops` marks them.

    Of a conditional the branch with the most bytes counts.
    """
    return _Analysis(text, unknown_trips).run()


class _Analysis:
    def __init__(self, text: str, unknown_trips: int):
        self.computations, self.entry = _parse(text)
        self.unknown_trips = unknown_trips
        self.loops: list[Loop] = []
        self._fractions: dict[tuple[str, str], float] = {}

    def run(self) -> Program:
        total = self.cost(self.computations[self.entry], 0)
        return Program(total, self.loops)

    def cost(self, computation: _Computation, depth: int) -> Cost:
        total = Cost()
        for instruction in computation.instructions.values():
            self._add(total, computation, instruction, depth)
        return total

    def _add(self, total: Cost, computation: _Computation, instruction: _Instruction, depth: int) -> None:
        op = instruction.op
        if op == "while":
            body = self.computations[instruction.called("body")[0]]
            trips = self._trips(computation, instruction)
            loop = Loop(instruction.name, instruction.op_name, depth, trips, Cost())
            self.loops.append(loop)
            loop.body = self.cost(body, depth + 1)
            total.add(loop.body, self.unknown_trips if trips is None else trips)
        elif op == "conditional":
            names = instruction.called("branch_computations", "true_computation", "false_computation")
            branches = [self.cost(self.computations[name], depth) for name in names]
            total.add(max(branches, key=lambda cost: cost.bytes))
        elif op in ("call", "async-start"):
            for name in instruction.called("to_apply", "calls"):
                total.add(self.cost(self.computations[name], depth))
        elif op not in _FREE and op not in ("async-done", "async-update"):
            self._add_one(total, computation, instruction, depth)

    def _add_one(self, total: Cost, computation: _Computation, instruction: _Instruction, depth: int) -> None:
        flops = self._flops(computation, instruction)
        if flops:
            total.flops += flops
            total.flops_by_depth[depth] = total.flops_by_depth.get(depth, 0) + flops
        for kind, group, collective in self._collectives(computation, instruction):
            total.collectives[kind, group] = total.collectives.get((kind, group), Collective()) + collective
        kernel = False
        for name, found in self._kernels(computation, instruction):
            kernel = True
            total.kernels[name] = total.kernels.get(name, Kernel()) + found
        if not kernel:
            total.bytes += self._read(computation, instruction) + self._written(computation, instruction)
        if copied := self._copied(computation, instruction):
            total.copies.append(Copy(str(copied), copied.bytes, 1, depth, instruction.op_name))

    def _inner(self, instruction: _Instruction) -> _Computation | None:
        return self.computations[instruction.called("calls")[0]] if instruction.op == "fusion" else None

    def _operands(self, computation: _Computation, instruction: _Instruction) -> list[_Instruction]:
        return [computation.instructions[name] for name in instruction.operands]

    def _nested(
        self, computation: _Computation, instruction: _Instruction
    ) -> Iterator[tuple[_Computation, _Instruction]]:
        """The instruction, or all instructions of a fusion, with their computation."""
        if inner := self._inner(instruction):
            for each in inner.instructions.values():
                yield from self._nested(inner, each)
        else:
            yield computation, instruction

    def _flops(self, computation: _Computation, instruction: _Instruction) -> float:
        total = 0.0
        for inside, each in self._nested(computation, instruction):
            if each.op == "dot":
                total += _dot_flops(each, inside.instructions[each.operands[0]].array)
            elif each.op == "convolution":
                lhs, rhs = self._operands(inside, each)[:2]
                total += _convolution_flops(each, lhs.array, rhs.array)
        return total

    def _collectives(
        self, computation: _Computation, instruction: _Instruction
    ) -> Iterator[tuple[str, int, Collective]]:
        fused = self._inner(instruction)
        for inside, each in self._nested(computation, instruction):
            kind = each.op.removesuffix("-start")
            if kind not in _COLLECTIVES or _continues(each):
                continue
            if fused and kind == "all-reduce" and "reduce-scatter" in fused.name:
                kind = "reduce-scatter"  # a TPU fuses it out of an all-reduce and the slice that is kept
            num_bytes = sum(operand.bytes for operand in self._operands(inside, each))
            yield kind, _group_size(each), _collective(kind, each, num_bytes)

    def _kernels(self, computation: _Computation, instruction: _Instruction) -> Iterator[tuple[str, Kernel]]:
        for inside, each in self._nested(computation, instruction):
            if each.op != "custom-call" or 'custom_call_target="tpu_custom_call"' not in each.attributes:
                continue
            estimate = each.backend_config.get("custom_call_config", {}).get("cost_estimate")
            hbm = sum(a.hbm for o in self._operands(inside, each) for a in o.arrays) + sum(a.hbm for a in each.arrays)
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

    def _copied(self, computation: _Computation, instruction: _Instruction) -> _Array | None:
        """The array that this instruction copies within HBM, if that is all it does."""
        if instruction.op == "copy-done":
            source = self._operands(computation, computation.instructions[instruction.operands[0]])[0]
        elif instruction.op == "copy":
            source = self._operands(computation, instruction)[0]
        elif inner := self._inner(instruction):
            ops = {i.op for i in inner.instructions.values()} - {"parameter", "bitcast", "constant"}
            if not ops or ops - {"copy", "transpose"} or len(instruction.operands) != 1:
                return None
            source = self._operands(computation, instruction)[0]
        else:
            return None
        both = len(source.arrays) == 1 and len(instruction.arrays) == 1 and source.array.hbm and instruction.array.hbm
        return instruction.array if both else None

    # Bytes.

    def _read(self, computation: _Computation, instruction: _Instruction) -> float:
        """Bytes read from HBM."""
        op, total = instruction.op, 0.0
        if op == "slice-start":
            return 0.0  # counted where it is done
        if op == "slice-done":
            source = self._operands(computation, computation.instructions[instruction.operands[0]])[0]
            return 0.0 if source.array.space else instruction.bytes
        if op.endswith(("-done", "-update")):
            return 0.0
        for index, operand in enumerate(self._operands(computation, instruction)):
            hbm = sum(a.hbm for a in operand.arrays)
            if hbm:
                total += hbm * self._part_read(computation, instruction, index)
        return total

    def _part_read(self, computation: _Computation, instruction: _Instruction, index: int) -> float:
        """Share of the operand's elements that an instruction reads."""
        op = instruction.op
        operand = computation.instructions[instruction.operands[index]]
        size = max(sum(a.size for a in operand.arrays), 1)
        if op == "fusion":
            inner = self._inner(instruction)
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
        if op == "tuple" or (op in _COLLECTIVES and _continues(instruction)):
            return 0.0
        if op == "custom-call" and "AsyncCollectiveDone" in instruction.attributes:
            return 0.0
        return 1.0

    def _fraction(self, computation: _Computation, name: str) -> float:
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

    def _written(self, computation: _Computation, instruction: _Instruction) -> float:
        """Bytes written to HBM."""
        op = instruction.op
        if op.endswith(("-start", "-update")) and op != "dynamic-update-slice":
            return 0.0  # counted where it is done
        inner = self._inner(instruction)
        if inner is None:
            return 0.0 if instruction.array.space else self._part_written(computation, instruction.name)
        root = inner.instructions[inner.root]
        parts = root.operands if root.op == "tuple" else [inner.root]
        asynchronous = any(mark in i.attributes for i in inner.instructions.values() for mark in _ASYNC_MARKS) or any(
            i.op in _COLLECTIVES and _continues(i) for i in inner.instructions.values()
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

    def _part_written(self, computation: _Computation, name: str) -> float:
        """Bytes of a value that are written where its array may already exist: of an update in place the new part."""
        instruction = computation.instructions[name]
        op = instruction.op
        if op == "parameter":
            return 0.0
        if op == "fusion":
            inner = self._inner(instruction)
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

    # Trip counts.

    def _trips(self, computation: _Computation, instruction: _Instruction) -> int | None:
        """Iterations of a `while`: as the compiler says, or as a counter compared with a constant says."""
        known = instruction.backend_config.get("known_trip_count", {}).get("n")
        if known is not None:
            return int(known)
        body = self.computations[instruction.called("body")[0]]
        condition = self.computations[instruction.called("condition")[0]]
        start = computation.instructions[instruction.operands[0]]

        def initial(index: int) -> int | None:
            return self._constant(computation, start.operands[index]) if start.op == "tuple" else None

        def invariant(inside: _Computation, name: str) -> int | None:
            """A constant of the loop: written in it, or carried through unchanged."""
            value = self._constant(inside, name)
            index = self._element(inside, name)
            if value is None and index is not None and self._carried(body, index) == index:
                value = initial(index)
            return value

        compare = self._compare(condition)
        if compare is None:
            return None
        counter, limit, direction = compare
        index = self._element(condition, counter)
        limit_value = invariant(condition, limit)
        if index is None or limit_value is None:
            return None
        first, step = initial(index), None
        root = body.instructions[body.root]
        if root.op == "tuple":
            update = self._follow(body, root.operands[index])
            for one, other in self._addends(update):
                if self._element(body, one) == index:
                    step = invariant(body, other)
        if first is None or not step:
            return None
        distance = limit_value - first + (1 if direction == "LE" else 0)
        if direction in ("GT", "GE"):
            distance, step = first - limit_value + (1 if direction == "GE" else 0), -step
        if direction == "NE":
            return max(0, distance // step) if distance % step == 0 else None
        return max(0, -(-distance // step)) if step > 0 else None

    def _follow(self, computation: _Computation, name: str) -> _Instruction:
        """Through copies to where a scalar comes from."""
        instruction = computation.instructions[name]
        while instruction.op in ("copy", "bitcast", "copy-done", "copy-start", "reshape", "opt-barrier"):
            instruction = computation.instructions[instruction.operands[0]]
        return instruction

    def _constant(self, computation: _Computation, name: str) -> int | None:
        instruction = self._follow(computation, name)
        if instruction.op == "get-tuple-element":
            source = self._follow(computation, instruction.operands[0])
            index = int(instruction.attribute(r"index=(\d+)"))
            if source.op == "while":
                # What a loop carries through unchanged comes out as it went in.
                body = self.computations[source.called("body")[0]]
                source_start = computation.instructions[source.operands[0]]
                if self._carried(body, index) != index or source_start.op != "tuple":
                    return None
                return self._constant(computation, source_start.operands[index])
            if source.op == "tuple":
                return self._constant(computation, source.operands[index])
            return None
        if instruction.op == "constant" and re.fullmatch(r"-?\d+", instruction.inside):
            return int(instruction.inside)
        return None

    def _element(self, computation: _Computation, name: str) -> int | None:
        """Which element of the computation's only (tuple) parameter this is."""
        instruction = self._follow(computation, name)
        if instruction.op != "get-tuple-element":
            return None
        if computation.instructions[instruction.operands[0]].op != "parameter":
            return None
        return int(instruction.attribute(r"index=(\d+)"))

    def _carried(self, body: _Computation, index: int) -> int | None:
        root = body.instructions[body.root]
        return self._element(body, root.operands[index]) if root.op == "tuple" else None

    def _compare(self, condition: _Computation) -> tuple[str, str, str] | None:
        """(counter, limit, direction) of a condition that is one comparison, by names of the condition."""
        root = self._follow(condition, condition.root)
        outside = {name: name for name in root.operands}
        if inner := self._inner(root):
            outside = {name: root.operands[i] for i, name in inner.parameters.items()}
            root = inner.instructions[inner.root]
        if root.op != "compare":
            return None
        left, right = map(outside.get, root.operands)
        direction = root.attribute(r"direction=(\w+)")
        if left is None or right is None:
            return None
        if self._element(condition, left) is None:
            flipped = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
            left, right, direction = right, left, flipped.get(direction, direction)
        return left, right, direction

    def _addends(self, instruction: _Instruction) -> list[tuple[str, str]]:
        """Names of the two terms of a sum (fused or not), in both orders."""
        names = instruction.operands
        if inner := self._inner(instruction):
            root = inner.instructions[inner.root]
            by_parameter = {name: instruction.operands[i] for i, name in inner.parameters.items()}
            names = [by_parameter.get(n) for n in root.operands] if root.op == "add" else []
        elif instruction.op != "add":
            names = []
        return [(names[0], names[1]), (names[1], names[0])] if len(names) == 2 and None not in names else []


def _kernel_name(instruction: _Instruction) -> str:
    """The name a `pallas_call` was given, or the function it was traced in."""
    parts = instruction.op_name.split("/")
    if parts[-1] == "pallas_call":
        parts = parts[:-1]
    last = re.sub(r"[\w]+\((.*)\)", r"\1", parts[-1]) if parts else ""
    while "(" in last:
        last = re.sub(r"\w*\((.*)\)", r"\1", last)
    return last or re.sub(r"\.\d+$", "", instruction.name)
