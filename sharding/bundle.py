# SPDX-License-Identifier: MIT
"""The bundling rewrite: gathers over one group become one collective where they can stand together.

A later gather is brought to an earlier one, with the steps that lead to it, if these need nothing
that comes between: they are computed a little sooner, and a collective's start is saved.
"""

from collections.abc import Sequence

import attrs

from .program import LOCAL, Apply, Code, Loop, Move, Program, Step


def bundle(program: Program) -> Program:
    """Return `program` with each gather that can join the one before it doing so."""
    blocks = {id(code): _bundled(code, {}) for code in program.blocks}
    driver = _bundled(program.driver, blocks)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _bundled(code: Code, blocks: dict[int, Code]) -> Code:
    steps: list[Step] = []
    for step in _together(code.steps):
        last = steps[-1] if steps else None
        if isinstance(step, Loop):
            step = attrs.evolve(step, block=blocks[id(step.block)])
        elif isinstance(step, Move) and isinstance(last, Move) and may_join(step, last):
            step = attrs.evolve(step, joins=True)
        steps.append(step)
    return attrs.evolve(code, steps=tuple(steps))


def _together(steps: Sequence[Step]) -> list[Step]:
    """Return steps in an order where gathers that may join stand side by side."""
    order = list(steps)
    at = 0
    while at < len(order):
        first = order[at]
        group = [first]
        if isinstance(first, Move) and first.kind == "all_gather":
            for later in range(at + 1, len(order)):
                other, last = order[later], group[-1]
                assert isinstance(last, Move)
                if other in group or not isinstance(other, Move) or not may_join(other, last):
                    continue
                before = _leading(order[at + len(group) : later], other, group)
                if before is not None:
                    taken = {id(each) for each in (*before, *group, other)}
                    rest = [each for each in order[at:] if id(each) not in taken]
                    order[at:] = [*before, *group, other, *rest]
                    at += len(before)
                    group.append(other)
        at += len(group)
    return order


def _leading(between: Sequence[Step], move: Move, group: Sequence[Step]) -> list[Step] | None:
    """Return the steps among `between` that lead to a move, if they may go before a group."""
    needed = set(move.operands)
    found: list[Step] = []
    for step in reversed(between):
        if needed.isdisjoint(step.results):
            continue
        moves = isinstance(step, Move) and step.kind not in LOCAL
        reads = (*step.operands, *(step.metadata if isinstance(step, Apply) else ()))
        if moves or isinstance(step, Loop) or any(var.kind == "cache" for var in reads):
            return None
        needed.update(reads)
        found.append(step)
    gathered = {var for each in group for var in each.results}
    return None if needed & gathered else found[::-1]


def may_join(move: Move, last: Move) -> bool:
    """Return whether one collective can do both moves: gathers of a group, neither of the other."""
    return (
        (move.kind, move.axes, move.dim) == ("all_gather", last.axes, last.dim)
        and last.kind == "all_gather"
        and move.operand is not last.result
    )
