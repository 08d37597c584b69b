# SPDX-License-Identifier: MIT
"""The one-sum rewrite: a sum that is scattered over some axes and then added up over others.

Both at once is one collective in place of two: every rank gets the whole sum and keeps its part.
It carries more bytes, so it is for steps of few rows: attention spread by requests whose experts
lie over all ranks decodes so.
"""

import attrs

from .cost import cost
from .machine import Machine
from .mesh import Mesh
from .program import Code, Loop, Move, Program, Step
from .reduction import SUM, SUMS
from .spec import Spec


def one_sum(program: Program, tokens: int, machine: Machine) -> Program:
    """Return `program` with each such sum paid at once where that costs less; 0 tokens: none."""
    if not tokens:
        return program
    blocks = {id(code): _paid(code, {}, program.mesh, tokens, machine) for code in program.blocks}
    driver = _paid(program.driver, blocks, program.mesh, tokens, machine)
    if driver is program.driver:
        return program
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _paid(code: Code, blocks: dict[int, Code], mesh: Mesh, tokens: int, machine: Machine) -> Code:
    new: dict[int, Step] = {}
    readers = code.readers
    for step in code.steps:
        if isinstance(step, Loop) and blocks[id(step.block)] is not step.block:
            new[id(step)] = attrs.evolve(step, block=blocks[id(step.block)])
        elif isinstance(step, Move) and step.kind == "reduce_scatter":
            found = readers.get(step.result, [])
            second = found[0] if len(found) == 1 and step.result not in code.results else None
            if not isinstance(second, Move) or second.kind != "all_reduce":
                continue
            if step.operand.spec.reduce not in SUMS:
                continue
            both = _at_once(step, second, mesh)
            prices = [
                sum(
                    cost(each, mesh, {"n": tokens, "m": tokens}, machine.links.over(each.axes)).us
                    for each in moves
                )
                for moves in ((step, second), both)
            ]
            if prices[1] < prices[0]:
                new[id(step)], new[id(second)] = both
    if not new:
        return code
    return attrs.evolve(code, steps=tuple(new.get(id(step), step) for step in code.steps))


def _at_once(scatter: Move, reduce: Move, mesh: Mesh) -> tuple[Move, Move]:
    """Return the sum over the axes of both, and the slice of it that a rank keeps."""
    spec = scatter.operand.spec
    rest = tuple(axis for axis in spec.partial if axis not in (*scatter.axes, *reduce.axes))
    whole = attrs.evolve(
        scatter.result, spec=Spec(spec.dims, rest, spec.reduce if rest else SUM, spec.varying)
    )
    axes = mesh.ordered({*scatter.axes, *reduce.axes})
    return (
        attrs.evolve(reduce, axes=axes, operand=scatter.operand, result=whole),
        attrs.evolve(scatter, kind="slice", operand=whole, result=reduce.result),
    )
