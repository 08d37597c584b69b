# SPDX-License-Identifier: MIT
"""The composing rewrite: steps that a target computes in one call are marked as one."""

from collections.abc import Callable, Collection, Iterator

import attrs

from .composite import alone, arguments
from .machine import H100, Machine
from .overlap import WORTH_US, pipelined
from .program import Apply, Code, Composite, Loop, Move, Program, Project, Step, Var


def compose(
    program: Program, offered: Collection[str], tokens: int = 0, machine: Machine = H100
) -> Program:
    """Return `program` with the composites in it that are among those `offered`.

    Products whose rows travel are pipelined where that saves time in steps of so many `tokens`.
    """
    if not offered and not tokens:
        return program

    def wanted(composite: Composite) -> bool:
        saved = pipelined(composite, program.mesh, tokens, machine)
        return composite.name in offered or saved >= WORTH_US

    blocks = {id(code): _composed(code, {}, wanted) for code in program.blocks}
    driver = _composed(program.driver, blocks, wanted)
    return attrs.evolve(program, blocks=tuple(blocks.values()), driver=driver)


def _composed(code: Code, blocks: dict[int, Code], wanted: Callable[[Composite], bool]) -> Code:
    steps = tuple(
        attrs.evolve(step, block=blocks[id(step.block)]) if isinstance(step, Loop) else step
        for step in code.steps
    )
    code = attrs.evolve(code, steps=steps)
    made = {var: step for step in steps for var in step.results}
    found: list[Composite] = []
    taken: set[int] = set()
    # What ends in a gate takes the norm and projection with it, so it is looked for first.
    for step in sorted(steps, key=lambda step: isinstance(step, Project)):
        for composite in _ending(step, made):
            parts = {id(part) for part in composite.parts}
            if parts & taken or arguments(composite) is None or not wanted(composite):
                continue
            if alone(code, composite):
                found.append(composite)
                taken |= parts
                break
    return attrs.evolve(code, composites=tuple(found))


def _ending(step: Step, made: dict[Var, Step]) -> Iterator[Composite]:
    """Yield what may end in a step; whether it does is for its form to say."""

    def before(var: Var) -> Apply | Project | Move | None:
        found = made.get(var)
        return None if isinstance(found, Loop) else found

    if isinstance(step, Move):
        if project := before(step.operand):
            yield Composite("linear_reduce_scatter", (project, step))
    elif isinstance(step, Project):
        if last := before(step.operands[0]):
            yield Composite("norm_linear", (last, step))
            yield Composite("all_gather_linear", (last, step))
    elif isinstance(step, Apply) and step.op.packed:
        project = before(step.operands[0])
        if project and (norm := before(project.operands[0])):
            yield Composite("norm_gate_up", (norm, project, step))
    elif isinstance(step, Apply) and step.op.name == "add":
        for var in step.operands:
            last = before(var)
            if isinstance(last, Project):
                yield Composite("linear_add", (last, step))
            elif isinstance(last, Move):
                yield Composite("all_reduce_add", (last, step))
            elif isinstance(last, Apply) and last.op.name == "experts":
                x, ids = last.operands[:2]
                norm, route = before(x), before(ids)
                router = before(route.operands[0]) if route else None
                if norm and route and router:
                    yield Composite("norm_moe_add", (norm, router, route, last, step))
    elif isinstance(step, Apply) and step.op.name == "paged_attention":
        turns = [before(var) for var in step.operands[:2]]
        if turns[0] and turns[1]:
            ropes = (turns[0], turns[1])
            norms = [before(turn.operands[0]) for turn in ropes]
            if norms[0] and norms[1]:
                yield Composite("rope_attention", (norms[0], norms[1], *ropes, step))
            yield Composite("rope_attention", (*ropes, step))
