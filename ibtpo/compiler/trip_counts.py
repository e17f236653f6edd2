"""How often a loop runs, as far as the text of its program says."""

import re

from ibtpo.compiler.hlo import Computation, Instruction, Module


class TripCounts:
    """Iterations of the loops of a module."""

    def __init__(self, module: Module):
        self.module = module

    def of(self, computation: Computation, instruction: Instruction) -> int | None:
        """Iterations of a `while`: as the compiler says, or as a counter compared with a constant says."""
        known = instruction.backend_config.get("known_trip_count", {}).get("n")
        if known is not None:
            return int(known)
        body = self.module.computations[instruction.called("body")[0]]
        condition = self.module.computations[instruction.called("condition")[0]]
        start = computation.instructions[instruction.operands[0]]

        def initial(index: int) -> int | None:
            return self._constant(computation, start.operands[index]) if start.op == "tuple" else None

        def invariant(inside: Computation, name: str) -> int | None:
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

    def _follow(self, computation: Computation, name: str) -> Instruction:
        """Through copies to where a scalar comes from."""
        instruction = computation.instructions[name]
        while instruction.op in ("copy", "bitcast", "copy-done", "copy-start", "reshape", "opt-barrier"):
            instruction = computation.instructions[instruction.operands[0]]
        return instruction

    def _constant(self, computation: Computation, name: str) -> int | None:
        instruction = self._follow(computation, name)
        if instruction.op == "get-tuple-element":
            source = self._follow(computation, instruction.operands[0])
            index = instruction.index
            if source.op == "while":
                # A value that a loop carries through unchanged comes out as it went in.
                body = self.module.computations[source.called("body")[0]]
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

    def _element(self, computation: Computation, name: str) -> int | None:
        """Which element of the computation's only (tuple) parameter this is."""
        instruction = self._follow(computation, name)
        if instruction.op != "get-tuple-element":
            return None
        if computation.instructions[instruction.operands[0]].op != "parameter":
            return None
        return instruction.index

    def _carried(self, body: Computation, index: int) -> int | None:
        root = body.instructions[body.root]
        return self._element(body, root.operands[index]) if root.op == "tuple" else None

    def _compare(self, condition: Computation) -> tuple[str, str, str] | None:
        """(counter, limit, direction) of a condition that is one comparison, by names of the condition."""
        root = self._follow(condition, condition.root)
        outside: dict[str, str] = {name: name for name in root.operands}
        if inner := self.module.inner(root):
            outside = {name: root.operands[i] for i, name in inner.parameters.items()}
            root = inner.instructions[inner.root]
        if root.op != "compare":
            return None
        left, right = map(outside.get, root.operands)
        direction = root.attribute(r"direction=(\w+)")
        if left is None or right is None or direction is None:
            return None
        if self._element(condition, left) is None:
            flipped = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
            left, right, direction = right, left, flipped.get(direction, direction)
        return left, right, direction

    def _addends(self, instruction: Instruction) -> list[tuple[str, str]]:
        """Names of the two terms of a sum (fused or not), in both orders."""
        names: list[str | None] = [*instruction.operands]
        if inner := self.module.inner(instruction):
            root = inner.instructions[inner.root]
            by_parameter = {name: instruction.operands[i] for i, name in inner.parameters.items()}
            names = [by_parameter.get(n) for n in root.operands] if root.op == "add" else []
        elif instruction.op != "add":
            names = []
        one, other = names if len(names) == 2 else (None, None)
        return [(one, other), (other, one)] if one is not None and other is not None else []
