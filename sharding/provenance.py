# SPDX-License-Identifier: MIT
"""Provenance: why a value has its placement, walked back to the annotations that decided it."""

import difflib
from collections.abc import Iterator

from .error import PlacementError
from .program import Apply, Code, Loop, Move, Program, Project, Step, Var


def why(program: Program, name: str) -> str:
    """Return the chain of reasons for the placement of value `name` or `function.name`.

    Raises:
        PlacementError: no such value; the nearest names are given.
    """
    known, found = [], []
    for code in program.functions:
        for var in values(code):
            known.append(f"{code.name}.{var.name}")
            if name in (var.name, known[-1]):  # a parameter and a value may share a name
                found += [f"{code.name}.{var}", *Chain(program, code).of(var)]
    if found:
        return "\n".join(found)
    near = difflib.get_close_matches(name, [*known, *(k.partition(".")[2] for k in known)], 4)
    raise PlacementError(
        f"no value {name!r} in this program; did you mean {', '.join(near) or ', '.join(known[:8])}"
    )


def values(code: Code) -> tuple[Var, ...]:
    """Return every value of a function, inputs first."""
    inputs = (*code.params, *code.batch, *code.cache, *code.carry, *code.constants)
    return (*inputs, *(var for step in code.steps for var in step.results))


class Chain:
    """Walks one function's values back to where their axes come from, each value once."""

    def __init__(self, program: Program, code: Code) -> None:
        self.program, self.code = program, code
        self.made = {var: step for step in code.steps for var in step.results}
        self.seen: set[Var] = set()

    def of(self, var: Var, depth: int = 1) -> Iterator[str]:
        """Yield a line for each value that passed a placement on, the nearest first."""
        pad = "  " * depth
        if var in self.seen:
            yield f"{pad}{var}: as above"
            return
        self.seen.add(var)
        step = self.made.get(var)
        if step is None:
            yield f"{pad}{var}: {self.origin(var)}"
            yield from self.entered(var, depth)
            return
        yield f"{pad}{var}: {self.reason(var, step)}  {step.line}"
        for operand in self.sources(var, step):
            yield from self.of(operand, depth + 1)

    def origin(self, var: Var) -> str:
        if var.kind in ("param", "cache"):
            return f"a {var.kind} stays where its annotation and the layout place it  {var.line}"
        if var.kind == "batch":
            return f"a column of the step, the same on every rank  {var.line}"
        codes = [stage.code for stage in self.program.stages]
        if self.code in codes[1:] and var in self.code.carry:
            before = codes[codes.index(self.code) - 1]
            return f"what {before.name} sends, as its layers carry it"
        if var in self.code.carry:
            return f"the carry of {self.code.name}, fixed from layer to layer"
        return f"given to {self.code.name} from outside  {var.line}"

    def entered(self, var: Var, depth: int) -> Iterator[str]:
        """Continue in the driver with what is passed for a block's input."""
        for step in self.program.driver.steps:
            if isinstance(step, Loop) and step.block is self.code:
                inner = (*step.block.carry, *step.block.constants)
                outer = (*step.carry, *step.constants)
                if var in inner and var.kind != "batch":
                    yield from Chain(self.program, self.program.driver).of(
                        outer[inner.index(var)], depth + 1
                    )
                return

    def reason(self, var: Var, step: Step) -> str:
        match step:
            case Move():
                group = self.program.mesh.group(step.axes)
                return f"{step.kind} over {group}, because {step.why}"
            case Loop():
                return f"{step.block.name} hands its carry on in the type that came in"
        apply = _apply(var, step)
        if apply.op.region:
            return f"{apply.op.name}: a local region declares it so at {apply.op.region.line}"
        parts = []
        for axis in var.spec.axes:
            brought = [each.name for each in apply.operands if axis in each.spec.axes]
            name = self.program.mesh.group((axis,))
            if axis not in var.spec.partial:
                parts.append(f"sharded over {name} like {' and '.join(brought)}")
            elif any(axis in each.spec.partial for each in apply.operands):
                parts.append(f"linear, so it keeps the sum over {name} that is owed")
            else:
                dims = (
                    dim.name
                    for each in apply.operands
                    for dim in each.spec.dims
                    if axis in dim.axes
                )
                parts.append(f"each rank sums its shard of {next(dims, '?')}: a sum over {name}")
        return f"{apply.op.name}: {', '.join(parts) or 'all operands are whole, so it is'}"

    def sources(self, var: Var, step: Step) -> tuple[Var, ...]:
        """Return the operands that a placement comes from, those that are stored first."""
        if isinstance(step, Loop):
            return (step.carry[step.results.index(var)],)
        if isinstance(step, Move):
            return step.operands
        operands = _apply(var, step).operands
        placed = [each for each in operands if set(each.spec.axes) & set(var.spec.axes)]
        order = sorted(placed, key=lambda each: each.kind not in ("param", "cache"))
        return tuple(order)


def _apply(var: Var, step: Apply | Project) -> Apply:
    if isinstance(step, Apply):
        return step
    return step.applies[step.results.index(var)]
