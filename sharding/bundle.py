# SPDX-License-Identifier: MIT
"""The bundling rewrite: gathers over one group that stand side by side become one collective."""

import attrs

from .program import Code, Loop, Move, Program, Step


def bundle(program: Program) -> Program:
    """Return `program` with each gather that can join the one before it doing so."""
    blocks = {id(code): _bundled(code, {}) for code in program.blocks}
    driver = _bundled(program.driver, blocks)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _bundled(code: Code, blocks: dict[int, Code]) -> Code:
    steps: list[Step] = []
    for step in code.steps:
        last = steps[-1] if steps else None
        if isinstance(step, Loop):
            step = attrs.evolve(step, block=blocks[id(step.block)])
        elif isinstance(step, Move) and isinstance(last, Move) and may_join(step, last):
            step = attrs.evolve(step, joins=True)
        steps.append(step)
    return attrs.evolve(code, steps=tuple(steps))


def may_join(move: Move, last: Move) -> bool:
    """Return whether one collective can do both moves: gathers of a group, neither of the other."""
    return (
        (move.kind, move.axes, move.dim) == ("all_gather", last.axes, last.dim)
        and last.kind == "all_gather"
        and move.operand is not last.result
    )
