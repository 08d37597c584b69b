# SPDX-License-Identifier: MIT
"""What a step of a program would take: the work of one rank, and the collectives not hidden by it.

Only what differs between programs of one model has to be right: attention itself, norms and
whatever else reads no parameters are left out.
"""

from .cost import cost, handed, work
from .machine import Machine
from .overlap import hidden, pipelined
from .program import Code, Loop, Move, Program


def price(program: Program, tokens: int, machine: Machine) -> tuple[float, float]:
    """Return the microseconds of work and of collectives in a step of `tokens`, all ranks together.

    Along a pipeline: of all stages, one after the other, and what each hands on.
    """
    given = {"n": tokens, "m": tokens}
    mesh, links = program.mesh, machine.links
    known: dict[int, tuple[float, float]] = {}

    def of(code: Code) -> tuple[float, float]:
        if id(code) in known:
            return known[id(code)]
        computed = moved = 0.0
        for step in code.steps:
            if isinstance(step, Loop):
                inner = of(step.block)
                computed += inner[0] * (step.stop - step.start)
                moved += inner[1] * (step.stop - step.start)
            elif isinstance(step, Move):
                moved += cost(step, mesh, given, links.over(step.axes)).us
                if step.started:
                    moved -= hidden(step, code, mesh, given, machine)
            else:
                computed += work(step, mesh, given, machine)
        moved -= sum(pipelined(each, mesh, tokens, machine) for each in code.composites)
        known[id(code)] = computed, moved
        return known[id(code)]

    codes = [stage.code for stage in program.stages] or [program.driver]
    sent = [stage.code.results for stage in program.stages[:-1]]
    between = sum(handed(each, mesh, given, links.over(mesh.stages)).us for each in sent)
    found = [of(code) for code in codes]
    return sum(computed for computed, _ in found), between + sum(moved for _, moved in found)
