# SPDX-License-Identifier: MIT
"""`explain`: a plan as text: types, collectives, what each costs, why it is there."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs

from .collective_table import cheaper, collectives, stage_totals, total
from .cost import Cost, cost
from .link import Links
from .machine import H100
from .overlap import hidden
from .plan import Plan
from .program import Apply, Code, Loop, Move, Program, Project, Step
from .size_text import size_text


def explain(
    plan: Plan, *, tokens: int = 1, rows: int | None = None, links: Links | None = None
) -> str:
    """Return the program of a plan with every collective's axis, bytes, time and reason.

    Bytes and times are for a step of `tokens` tokens and `rows` logit rows (default: one a
    token), on `links`.
    """
    links = links or Links()
    given = step_sizes(tokens, rows)
    program = plan.program
    lines = [
        f"{plan.name} on mesh {plan.mesh}: {plan.mesh.num_ranks} ranks, plan {plan.hash[:12]}",
        f"step of {given['n']} tokens, {given['m']} logit rows; {links} (estimates)",
    ]
    for code in program.functions:
        given_to = (*code.carry, *(var for var in code.constants if var.kind != "batch"))
        lines += ["", f"{code.name}({', '.join(map(str, given_to))})"]
        calls = code.calls
        for step in _in_turn(code.steps):
            call = calls.get(id(step))
            if isinstance(step, tuple):
                lines.append(_rounds(step))
            elif call is None:
                lines.extend(_step(step, code, program, given, links))
            elif step is call.last:
                lines.append(f"  {call.name}: one call")
                for part in call.parts:
                    lines += [f"  {line}" for line in _step(part, code, program, given, links)]
        lines.append(f"  return {', '.join(map(str, code.results))}")
    found = tuple(collectives(program, given, links))
    lines.append("")
    for code in program.blocks:
        own = [each for each in found if each.function == code.name]
        lines.append(f"a layer ({code.name}): {total(own, layer=True)}")
    if program.stages:
        lines += stage_totals([part.program for part in plan.stages()], found, given, links)
    return "\n".join([*lines, f"a step: {total(found)}"])


def _in_turn(steps: Sequence[Step]) -> Iterator[Step | tuple[Loop, ...]]:
    """Yield steps, and as one the loops whose blocks take turns, twice or more."""
    at = 0
    while at < len(steps):
        loops = list(itertools.takewhile(lambda step: isinstance(step, Loop), steps[at:]))
        blocks = [step.block for step in loops if isinstance(step, Loop)]
        ways = next((n for n in range(2, len(blocks) // 2 + 1) if blocks[n:] == blocks[:-n]), 0)
        if ways:
            yield tuple(step for step in loops if isinstance(step, Loop))
            at += len(loops)
        else:
            yield steps[at]
            at += 1


def _rounds(loops: Sequence[Loop]) -> str:
    names = list(dict.fromkeys(step.block.name for step in loops))
    results = ", ".join(str(var) for var in loops[-1].results)
    span = f"layers {loops[0].start}..{loops[-1].stop - 1}"
    return f"  {results:<44} = {', '.join(names)} in turn over {span}  {loops[0].line}"


def step_sizes(tokens: int, rows: int | None = None) -> Mapping[str, int]:
    """Return the dims of a step whose sizes are known at run time: n tokens, m logit rows."""
    return {"n": tokens, "m": tokens if rows is None else rows}


def _step(
    step: Step, code: Code, program: Program, given: Mapping[str, int], links: Links
) -> Iterator[str]:
    results = ", ".join(str(var) for var in step.results if var.kind != "cache")
    match step:
        case Apply():
            operands = ", ".join(var.name for var in step.operands)
            yield f"  {results:<44} = {step.op.name}({operands})  {step.line}"
        case Project():
            yield f"  {results:<44} = {step.operands[0].name} @ {step.pack}  {step.line}"
        case Loop():
            span = f"layers {step.start}..{step.stop - 1}"
            yield f"  {results:<44} = {step.block.name} over {span}  {step.line}"
        case Move():
            group = program.mesh.group(step.axes)
            price = cost(step, program.mesh, given, links.over(step.axes))
            over = f"over {group}, with the one above" if step.joins else f"over {group}"
            yield f"  {results:<44} = {step.kind}({step.operand.name}) {over}  {step.line}"
            yield f"      {priced(price)}; {step.why}"
            if step.started:
                machine = attrs.evolve(H100, links=links)
                us = hidden(step, code, program.mesh, given, machine)
                yield f"      starts here and goes on meanwhile: {us:.1f} us of it are hidden"
            if other := cheaper(step, code, program, given, links):
                yield f"      cheaper: {other}"


def priced(price: Cost) -> str:
    """Return payload, wire bytes and time in words."""
    if not price.payload:
        return "local"
    wire = size_text(price.wire)
    return f"{size_text(price.payload)}, {wire} on the wire a rank, {price.us:.1f} us"
