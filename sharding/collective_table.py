# SPDX-License-Identifier: MIT
"""The collectives of a plan as a table: bytes, link, time, reason, and what would be cheaper."""

from collections.abc import Iterator, Mapping, Sequence

import attrs

from .cost import Cost, cost, handed, nbytes
from .line import Line
from .link import Links
from .program import LOCAL, Apply, Code, Loop, Move, Program, Var
from .size_text import size_text

Tokens = Mapping[str, int]


@attrs.frozen
class Collective:
    """One collective of a function: what it moves, how often a step runs it, and at what price.

    One that `joins` travels as part of the one before it.
    """

    function: str
    kind: str
    operand: str
    result: str
    axis: str
    ranks: int
    times: int
    price: Cost
    link: str
    line: Line
    why: str
    cheaper: str
    joins: bool = False

    @property
    def title(self) -> str:
        """Its kind, or that it is no collective of its own."""
        return "with it" if self.joins else self.kind


def collectives(program: Program, tokens: Tokens, links: Links) -> Iterator[Collective]:
    """Yield the collectives of each block and then of the driver, in program order.

    Of a pipeline: those of all stages, then what they hand on.
    """
    runs: dict[int, int] = {}
    for step in program.driver.steps:
        if isinstance(step, Loop):
            runs[id(step.block)] = runs.get(id(step.block), 0) + step.stop - step.start
    for code in program.functions:
        for step in code.steps:
            if isinstance(step, Move) and step.kind not in LOCAL:
                link = links.over(step.axes)
                yield Collective(
                    function=code.name,
                    kind=step.kind,
                    operand=str(step.operand),
                    result=str(step.result),
                    axis=program.mesh.group(step.axes),
                    ranks=program.mesh.size(step.axes),
                    times=runs.get(id(code), 0) if code in program.blocks else 1,
                    price=cost(step, program.mesh, tokens, link),
                    link=link.name,
                    line=step.line,
                    why=step.why,
                    cheaper=cheaper(step, code, program, tokens, links) or "",
                    joins=step.joins,
                )

    yield from _handed(program, tokens, links)


def _handed(program: Program, tokens: Tokens, links: Links) -> Iterator[Collective]:
    """Yield what each stage of a pipeline sends to the next, and the result that the last sends."""
    axes, driver = program.mesh.stages, program.driver
    for index, stage in enumerate(program.stages):
        is_last = index + 1 == len(program.stages)
        values = driver.results if is_last else stage.code.results
        link = links.over(axes)
        price = handed(values, program.mesh, tokens, link)
        yield Collective(
            function=stage.code.name,
            kind="publish" if is_last else "send",
            operand=", ".join(map(str, values)),
            result="all stages" if is_last else program.stages[index + 1].code.name,
            axis=program.mesh.group(axes),
            ranks=program.mesh.size(axes),
            times=1,
            price=price,
            link=link.name,
            line=values[0].line,
            why="every rank learns the result"
            if is_last
            else f"layers from {stage.stop} on are the next stage's",
            cheaper="" if is_last else _narrower_seam(stage.code.results, program, price),
        )


def _narrower_seam(values: Sequence[Var], program: Program, price: Cost) -> str:
    """Return how a seam whose ranks all send the same would be cheaper."""
    axes = {axis for var in values for axis in var.spec.axes}
    whole = [n for n, _ in program.mesh.factors if n not in (*axes, *program.mesh.stages)]
    if not whole:
        return ""
    ways = program.mesh.size(tuple(whole))
    return (
        f"layers that carry shards over {'+'.join(whole)} (Hidden=n@{'+'.join(whole)} d) send "
        f"{size_text(price.payload // ways)}"
    )


def table(found: Sequence[Collective]) -> str:
    """Return collectives as aligned rows, each with its reason below, and the totals of a step."""
    if not found:
        return "a step: no collectives"
    head = ("function", "collective", "axis", "times", "payload", "wire a rank", "us", "link")
    rows = [
        (
            each.function,
            each.title,
            f"{each.axis}={each.ranks}",
            str(each.times),
            size_text(each.price.payload),
            size_text(each.price.wire),
            f"{each.price.us:.1f}",
            each.link,
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if 3 <= index <= 6 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    lines = [line(head)]
    for each, row in zip(found, rows, strict=True):
        lines += [line(row), f"    {each.operand} -> {each.result}  {each.line}: {each.why}"]
        lines += [f"    cheaper: {each.cheaper}"] if each.cheaper else []
    return "\n".join([*lines, f"a step: {total(found)}"])


def stage_totals(
    stages: Sequence[Program], found: Sequence[Collective], tokens: Tokens, links: Links
) -> Iterator[str]:
    """Yield a line for each stage of a pipeline: its layers, its collectives, what it hands on."""
    hands = {each.function: each for each in found if each.kind in ("send", "publish")}
    for program in stages:
        name = program.driver.name
        spans = [step for step in program.driver.steps if isinstance(step, Loop)]
        sent = hands[name]
        yield (
            f"{name}: layers {spans[0].start}..{spans[-1].stop - 1}; "
            f"{total(tuple(collectives(program, tokens, links)))}; {sent.kind} {sent.operand} to "
            f"{sent.result}: {size_text(sent.price.payload)}, {sent.price.us:.1f} us"
        )


def total(found: Sequence[Collective], *, layer: bool = False) -> str:
    """Return counts, wire bytes and time, of a step or of one layer's run of these."""
    counts: dict[str, int] = {}
    wire, us = 0, 0.0
    handed_on = any(each.kind == "publish" for each in found)
    for each in found:
        times = 1 if layer else each.times
        if not each.joins:
            counts[each.kind] = counts.get(each.kind, 0) + times
        wire += times * each.price.wire
        us += times * each.price.us
    if not counts:
        return "no collectives"
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    if handed_on:  # no rank issues them all
        return f"{listed}; {us:.1f} us, stage after stage"
    return f"{listed}; {size_text(wire)} on the wire a rank, {us:.1f} us"


def cheaper(move: Move, code: Code, program: Program, tokens: Tokens, links: Links) -> str | None:
    """Return another place for a gather that would move fewer bytes, if there is one.

    A reduction has none: a sum is paid as late as it can be.
    """
    if move.kind != "all_gather":
        return None
    price = cost(move, program.mesh, tokens, links.over(move.axes))
    if source := _narrower_source(move, code, tokens):
        return (
            f"gather {source} before it becomes {move.operand.name}: "
            f"{size_text(nbytes(source, tokens))} instead of {size_text(price.payload)}"
        )
    if move.result in _ancestors(program.driver.results, program.driver):
        pairs = 8 * program.mesh.size(move.axes) * tokens.get("m", 1)
        if pairs < price.payload:
            return (
                f"a sampler that takes '{move.operand.spec}': greedy exchanges a value and an "
                f"index a row and rank, {size_text(pairs)} instead of {size_text(price.payload)}"
            )
    return None


def _narrower_source(move: Move, code: Code, tokens: Tokens) -> Var | None:
    """Return a smaller activation that carries the gathered shard into the gathered value."""
    for step in code.steps:
        if isinstance(step, Apply) and move.operand in step.results and move.dim is not None:
            name = move.operand.spec.dims[move.dim].name
            for var in step.operands:
                shards = any(d.name == name and d.axes == move.axes for d in var.spec.dims)
                smaller = nbytes(var, tokens) < nbytes(move.operand, tokens)
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
