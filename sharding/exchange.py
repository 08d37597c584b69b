# SPDX-License-Identifier: MIT
"""The exchanging rewrite: rows go only to the ranks whose experts compute them.

An op that routes (`Rule.routes`) between a gather of its rows and a scatter of its sums over one
group costs (n - 1) copies of each row; sent only where it is needed a row costs at most as many as
experts are active for it.  It takes more messages, so what is cheaper depends on how many rows
there are: the choice is made by the price of a step (`Draft.offers`).
"""

import attrs

from .mesh import Mesh
from .program import Apply, Code, Loop, Move, Program, Step, Var


def exchange(program: Program) -> Program:
    """Return `program` with each routing op exchanged that may be; itself if there is none."""
    blocks = {id(code): _exchanged(code, {}, program.mesh) for code in program.blocks}
    driver = _exchanged(program.driver, blocks, program.mesh)
    if driver is program.driver:
        return program
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _exchanged(code: Code, blocks: dict[int, Code], mesh: Mesh) -> Code:
    new: dict[int, Step] = {}
    for step in code.steps:
        if isinstance(step, Loop) and blocks[id(step.block)] is not step.block:
            new[id(step)] = attrs.evolve(step, block=blocks[id(step.block)])
        elif isinstance(step, Apply) and step.rule.routes and (found := _seams(step, code)):
            gathers, scatter = found
            routed = _routed(step, scatter, mesh)
            if routed is None:
                continue
            for index, move in enumerate(gathers):
                sent = attrs.evolve(move, kind="dispatch", routed=routed, joins=index > 0)
                new[id(move)] = sent
            new[id(scatter)] = attrs.evolve(scatter, kind="combine", routed=routed)
    if not new:
        return code
    return attrs.evolve(code, steps=tuple(new.get(id(step), step) for step in code.steps))


def _seams(step: Apply, code: Code) -> tuple[list[Move], Move] | None:
    """Return the gathers of an op's rows and the scatter of its sums, if nobody else uses them."""
    rows = step.operands[:3]
    (result,) = step.results
    made = {move.result: move for move in code.steps if isinstance(move, Move)}
    gathers = [made[var] for var in rows if var in made and made[var].kind == "all_gather"]
    users: dict[Var, int] = {}
    for each in code.steps:
        for var in each.operands:
            users[var] = users.get(var, 0) + 1
    scatters = [
        each
        for each in code.steps
        if isinstance(each, Move) and each.operand is result and each.kind == "reduce_scatter"
    ]
    if len(gathers) != 3 or len(scatters) != 1 or result in code.results:
        return None
    seams = {(move.axes, move.dim) for move in (*gathers, *scatters)}
    alone = all(users[var] == 1 for var in (*rows, result))
    return (gathers, scatters[0]) if alone and seams == {(scatters[0].axes, 0)} else None


def _routed(step: Apply, scatter: Move, mesh: Mesh) -> tuple[int, int] | None:
    """Return the experts of a rank of the group and the active ones, or None if ids tell no rank.

    They do where the group's axes are the major ones of the experts' dim.
    """
    for factors, var in zip(step.rule.inputs, step.operands, strict=True):
        if step.rule.offset in factors:
            at = factors.index(step.rule.offset)
            count, active = var.sizes[at], step.operands[1].sizes[1]
            major = var.spec.dims[at].axes[: len(scatter.axes)] == scatter.axes
            if major and count is not None and active is not None:
                return count // mesh.size(scatter.axes), active
    return None
