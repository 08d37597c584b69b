# SPDX-License-Identifier: MIT
"""The overlapping rewrite: a collective starts where its operand is made and is waited for late.

What stands between, which does not read its result, is computed meanwhile.  A collective is started
apart only where that hides enough of it to be worth a second call, for steps of so many tokens;
starts keep one order on all ranks, since all run one program.
"""

from collections.abc import Mapping
from itertools import pairwise

import attrs

from .cost import cost, nbytes, work
from .machine import Machine
from .mesh import Mesh
from .program import STARTABLE, Apply, Code, Composite, Loop, Move, Program, Step, Var

PIPELINED = ("all_gather_linear", "linear_reduce_scatter")
WORTH_US = 2.0


def overlap(program: Program, tokens: int, machine: Machine) -> Program:
    """Return `program` with each collective started early that then hides; 0 tokens starts none."""
    if not tokens:
        return program
    given = {"n": tokens, "m": tokens}
    blocks = {
        id(code): _overlapped(code, {}, program.mesh, given, machine) for code in program.blocks
    }
    driver = _overlapped(program.driver, blocks, program.mesh, given, machine)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def hidden(move: Move, code: Code, mesh: Mesh, given: Mapping[str, int], machine: Machine) -> float:
    """Return the microseconds of a collective that the steps up to its first reader take too."""
    at = code.steps.index(move)
    between = code.steps[at + 1 : _first_reader(code.steps, at)]
    if machine.links.over(move.axes).busy:
        return 0.0
    price = cost(move, mesh, given, machine.links.over(move.axes))
    return min(price.us, sum(work(each, mesh, given, machine) for each in between))


def pipelined(
    composite: Composite, mesh: Mesh, tokens: int, machine: Machine, chunks: int = 2
) -> float:
    """Return the microseconds saved by a product whose rows come, or leave, in two chunks.

    One chunk is then multiplied while the other travels; each reads the weights anew.
    """
    if composite.name not in PIPELINED or not tokens:
        return 0.0
    given = {"n": tokens, "m": tokens}
    (move,) = (part for part in composite.parts if isinstance(part, Move))
    link = machine.links.over(move.axes)
    if link.busy:
        return 0.0
    whole = cost(move, mesh, given, link).us
    part = (whole - link.alpha_us) / chunks + link.alpha_us
    steps = [part for part in composite.parts if not isinstance(part, Move)]
    alone = sum(work(step, mesh, given, machine) for step in steps)
    chunk = sum(work(step, mesh, given, machine, chunks) for step in steps)
    return whole + alone - (part + max(part, chunk) + chunk)


def _overlapped(
    code: Code, blocks: Mapping[int, Code], mesh: Mesh, given: Mapping[str, int], machine: Machine
) -> Code:
    steps: list[Step] = [
        attrs.evolve(step, block=blocks[id(step.block)]) if isinstance(step, Loop) else step
        for step in code.steps
    ]
    code = attrs.evolve(code, steps=tuple(steps))
    bundled = {id(first) for first, second in pairwise(steps) if _joins(second)}
    for move in code.steps:
        if not isinstance(move, Move) or move.kind not in STARTABLE or _joins(move):
            continue
        if id(move) in code.calls or id(move) in bundled or move.result in code.results:
            continue
        if move.kind == "all_reduce" and nbytes(move.operand, given, mesh) <= machine.one_launch:
            continue
        steps = [step for step in code.steps if step is not move]
        made = [at for at, step in enumerate(steps) if move.operand in step.results]
        started = attrs.evolve(move, started=True)
        earliest = made[0] + 1 if made else 0
        while earliest < len(steps) and _joins(steps[earliest]):  # not into a bundle
            earliest += 1
        steps.insert(earliest, started)
        tried = attrs.evolve(code, steps=tuple(steps))
        if hidden(started, tried, mesh, given, machine) >= WORTH_US:
            code = tried
    return code


def _joins(step: Step) -> bool:
    return isinstance(step, Move) and (step.joins or step.routed is not None)


def _first_reader(steps: tuple[Step, ...], at: int) -> int:
    result = steps[at].results[0]
    return next((i for i in range(at + 1, len(steps)) if result in reads(steps[i])), len(steps))


def reads(step: Step) -> tuple[Var, ...]:
    """Return what a step reads, metadata too."""
    return (*step.operands, *(step.metadata if isinstance(step, Apply) else ()))
