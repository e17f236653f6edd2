"""The costs of a compiled program: FLOPs, HBM bytes, collectives, kernels and copies of optimised HLO text.

XLA's own `cost_analysis` counts the body of a loop once and does not look inside kernels, and a training step is
loops of kernels. Here every loop counts as often as it runs, nested loops multiply.

    cost = analyse(compiled.as_text()).total

Everything is per device: after partitioning, the text is the program of one of them.
"""

from dataclasses import dataclass, field, replace

from ibtpo.compiler.collectives import Collective, collectives
from ibtpo.compiler.hlo import Computation, Instruction, parse
from ibtpo.compiler.kernel_calls import Kernel, kernels
from ibtpo.compiler.products import product_flops
from ibtpo.compiler.traffic import Traffic
from ibtpo.compiler.trip_counts import TripCounts

# These neither read nor write: they name existing arrays.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all add-dependency partition-id replica-id "
    "opt-barrier domain iota-start".split()
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
    """The cost of running something, on one device.

    flops: of matrix products and convolutions outside kernels; a multiply-add is two. Everything else is left out.
    flops_by_depth: the same by the number of loops around.
    bytes: read from and written to HBM outside kernels. Arrays that the compiler keeps in on-chip memory cost nothing;
      of a slice, gather, update or scatter only the elements touched count.
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
            runs = Kernel(times * k.calls, times * k.flops, times * k.bytes, times * k.operand_bytes, k.estimated)
            self.kernels[name] = self.kernels.get(name, Kernel()) + runs
        self.copies += [replace(c, calls=times * c.calls) for c in other.copies]

    @property
    def sent(self) -> float:
        """Bytes this device sends over the interconnect."""
        return sum(c.sent for c in self.collectives.values())


@dataclass
class Loop:
    """A loop: name of its instruction, op it comes from, loops around it, iterations (None: the text does not say),
    whether they were given by the caller instead, and the cost of one iteration, inner loops included."""

    name: str
    op: str
    depth: int
    trips: int | None
    given: bool
    body: Cost


@dataclass
class Program:
    """Cost of a program, and its loops, outer ones first."""

    total: Cost
    loops: list[Loop]

    @property
    def counted_once(self) -> list[Loop]:
        """Loops whose iterations neither the text nor the caller says."""
        return [loop for loop in self.loops if loop.trips is None and not loop.given]


def analyse(text: str, *, unknown_trips: int | None = None) -> Program:
    """Costs of the program whose optimised HLO is `text` (`compiled.as_text()`).

    Of a conditional the branch with the most bytes counts.

    Args:
      text: of a CPU or TPU program, after optimisation.
      unknown_trips: iterations of the program's own loop, whose end is a traced number or a condition of the data
        (the steps of a decode chunk, the microbatches of an update): of each loop that the text gives no count for and
        that no other such loop is around. A loop without a count inside such a loop counts once, as all do where this
        is None: `Program.counted_once` has them. Loops with a count multiply, wherever they are.

    Raises:
      ValueError: the text is not that of an HLO module.
    """
    analysis = _Analysis(text)
    total = analysis.cost(analysis.module.entry, depth=0, unknown=unknown_trips)
    return Program(total, analysis.loops)


class _Analysis:
    """The walk over a program. depth: loops around; unknown: iterations of a loop there whose count is not known."""

    def __init__(self, text: str):
        self.module = parse(text)
        self.trips, self.traffic = TripCounts(self.module), Traffic(self.module)
        self.loops: list[Loop] = []

    def cost(self, computation: Computation, depth: int, unknown: int | None) -> Cost:
        total = Cost()
        for instruction in computation.instructions.values():
            self._add(total, computation, instruction, depth, unknown)
        return total

    def _add(
        self, total: Cost, computation: Computation, instruction: Instruction, depth: int, unknown: int | None
    ) -> None:
        op, computations = instruction.op, self.module.computations
        if op == "while":
            body = computations[instruction.called("body")[0]]
            trips = self.trips.of(computation, instruction)
            given = trips is None and unknown is not None
            loop = Loop(instruction.name, instruction.op_name, depth, trips, given, Cost())
            self.loops.append(loop)
            loop.body = self.cost(body, depth + 1, None if trips is None else unknown)
            total.add(loop.body, trips if trips is not None else (unknown if unknown is not None else 1))
        elif op == "conditional":
            names = instruction.called("branch_computations", "true_computation", "false_computation")
            branches = [self.cost(computations[name], depth, unknown) for name in names]
            total.add(max(branches, key=lambda cost: cost.bytes))
        elif op in ("call", "async-start"):
            for name in instruction.called("to_apply", "calls"):
                total.add(self.cost(computations[name], depth, unknown))
        elif op not in _FREE and op not in ("async-done", "async-update"):
            self._add_one(total, computation, instruction, depth)

    def _add_one(self, total: Cost, computation: Computation, instruction: Instruction, depth: int) -> None:
        where = self.module, computation, instruction
        flops = product_flops(*where)
        if flops:
            total.flops += flops
            total.flops_by_depth[depth] = total.flops_by_depth.get(depth, 0) + flops
        for kind, group, collective in collectives(*where):
            total.collectives[kind, group] = total.collectives.get((kind, group), Collective()) + collective
        kernel = False
        for name, found in kernels(*where):
            kernel = True
            total.kernels[name] = total.kernels.get(name, Kernel()) + found
        if not kernel:
            total.bytes += self.traffic.read(computation, instruction) + self.traffic.written(computation, instruction)
        if copied := self.traffic.copied(computation, instruction):
            total.copies.append(Copy(str(copied), copied.bytes, 1, depth, instruction.op_name))
