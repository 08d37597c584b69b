# SPDX-License-Identifier: MIT
"""`explain`: a plan as text: types, collectives, what each costs, why it is there."""

from collections.abc import Iterator

from .cost import NVLINK, Cost, Link, cost, moves, nbytes
from .plan import Plan
from .program import Apply, Code, Loop, Move, Program, Project, Step, Var


def explain(plan: Plan, *, tokens: int = 1, rows: int | None = None, link: Link = NVLINK) -> str:
    """Return the program of a plan with every collective's axis, bytes, time and reason.

    Bytes and times are for a step of `tokens` tokens and `rows` logit rows (default: one a
    token), on `link`.
    """
    given = {"n": tokens, "m": tokens if rows is None else rows}
    program = plan.program
    lines = [
        f"{plan.name} on mesh {plan.mesh}: {plan.mesh.num_ranks} ranks, plan {plan.hash[:12]}",
        f"step of {given['n']} tokens, {given['m']} logit rows; {link.name}: "
        f"{link.alpha_us:g} us + bytes / {link.gb_per_s:g} GB/s (estimates)",
    ]
    for code in (*program.blocks, program.driver):
        given_to = (*code.carry, *(var for var in code.constants if var.kind != "batch"))
        lines += ["", f"{code.name}({', '.join(map(str, given_to))})"]
        for step in code.steps:
            lines.extend(_step(step, code, program, given, link))
        lines.append(f"  return {', '.join(map(str, code.results))}")
    lines += ["", *_totals(program, given, link)]
    return "\n".join(lines)


def _step(
    step: Step, code: Code, program: Program, given: dict[str, int], link: Link
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
            yield f"  {results:<44} = {step.kind}({step.operand.name}) over {group}  {step.line}"
            yield f"      {_priced(cost(step, program.mesh, given, link))}; {step.why}"
            if other := _cheaper(step, code, program, given, link):
                yield f"      cheaper: {other}"


def _priced(price: Cost) -> str:
    if not price.payload:
        return "local"
    return f"{_size(price.payload)}, {_size(price.wire)} on the wire a rank, {price.us:.1f} us"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def _cheaper(
    move: Move, code: Code, program: Program, given: dict[str, int], link: Link
) -> str | None:
    """Return another place for a gather that would move fewer bytes, if there is one.

    A reduction has none: a sum is paid as late as it can be.
    """
    price = cost(move, program.mesh, given, link)
    if move.kind == "all_gather":
        if source := _narrower_source(move, code, given):
            return (
                f"gather {source} before it becomes {move.operand.name}: "
                f"{_size(nbytes(source, given))} instead of {_size(price.payload)}"
            )
        if move.result in _ancestors(program.driver.results, program.driver):
            ways = program.mesh.size(move.axes)
            pairs = 8 * ways * given["m"]
            if pairs < price.payload:
                return (
                    f"a sampler that takes '{move.operand.spec}': greedy exchanges a value and an "
                    f"index a row and rank, {_size(pairs)} instead of {_size(price.payload)}"
                )
    return None


def _narrower_source(move: Move, code: Code, given: dict[str, int]) -> Var | None:
    """Return a smaller activation that carries the gathered shard into the gathered value."""
    for step in code.steps:
        if isinstance(step, Apply) and move.operand in step.results and move.dim is not None:
            name = move.operand.spec.dims[move.dim].name
            for var in step.operands:
                shards = any(d.name == name and d.axes == move.axes for d in var.spec.dims)
                smaller = nbytes(var, given) < nbytes(move.operand, given)
                if var.kind == "activation" and shards and smaller:
                    return var
    return None


def _ancestors(results: tuple[Var, ...], code: Code) -> set[Var]:
    """Return what the results are one op, cast or move away from."""
    found = set(results)
    for step in reversed(code.steps):
        if isinstance(step, (Apply, Move)) and found & set(step.results):
            found.update(var for var in step.operands if var.kind == "activation")
            if isinstance(step, Apply) and len(step.operands) > 1:
                break
    return found


def _totals(program: Program, given: dict[str, int], link: Link) -> Iterator[str]:
    for code in program.blocks:
        yield f"a layer ({code.name}): {_total(code, program, given, link)}"
    yield f"a step: {_total(program.driver, program, given, link)}"


def _total(code: Code, program: Program, given: dict[str, int], link: Link) -> str:
    counts: dict[str, int] = {}
    wire, us = 0, 0.0
    for move, times in moves(code):
        if move.kind != "slice":
            price = cost(move, program.mesh, given, link)
            counts[move.kind] = counts.get(move.kind, 0) + times
            wire += times * price.wire
            us += times * price.us
    if not counts:
        return "no collectives"
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{listed}; {_size(wire)} on the wire a rank, {us:.1f} us"
