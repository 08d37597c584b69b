# SPDX-License-Identifier: MIT
"""Lanes: a function drawn top to bottom, a row for each step and a lane for each live value."""

import attrs

from .program import Code, Loop, Step, Var


@attrs.frozen(eq=False)
class Wire:
    """A value from the row that makes it, at lane `source`, down `lane` to the rows that use it.

    `uses` gives (row, lane of the step there); row 0 are the function's inputs.
    """

    var: Var
    row: int
    source: int
    lane: int
    uses: tuple[tuple[int, int], ...]


@attrs.frozen(eq=False)
class Drawing:
    """Lane of each step, rows counted from 1, and the wires between; results are the last row."""

    nodes: tuple[int, ...]
    wires: tuple[Wire, ...]
    width: int


def draw(code: Code) -> Drawing:
    """Return where the steps and values of a function stand.

    Results take over the lanes of operands that end there, in order, so that a residual stream
    stays straight.
    """
    last = len(code.steps) + 1
    uses: dict[Var, list[int]] = {}
    for row, step in enumerate(code.steps, 1):
        for var in dict.fromkeys(step.operands):
            uses.setdefault(var, []).append(row)
    for var in dict.fromkeys(code.results):
        uses.setdefault(var, []).append(last)
    lanes: dict[Var, int] = {}
    started: list[tuple[Var, int, int]] = []
    free: set[int] = set()
    width = 0

    def vacant() -> int:
        nonlocal width
        if not free:
            width += 1
            return width - 1
        free.remove(lane := min(free))
        return lane

    for var in code.carry:
        lanes[var] = vacant()
        started.append((var, 0, lanes[var]))
    nodes = []
    for row, step in enumerate(code.steps, 1):
        ended = [
            lanes[var]
            for var in dict.fromkeys(step.operands)
            if var in lanes and uses[var][-1] == row
        ]
        made = [var for var in step.results if var in uses and var.kind != "cache"]
        if isinstance(step, Loop):
            kept = [lanes[var] for var in step.carry if uses[var][-1] == row]
            ended = [*kept, *(lane for lane in ended if lane not in kept)]
        taken = [ended[i] if i < len(ended) else vacant() for i in range(max(len(made), 1))]
        for lane in ended[len(taken) :]:
            free.add(lane)
        nodes.append(taken[0])
        for var, lane in zip(made, taken, strict=False):
            lanes[var] = lane
            started.append((var, row, taken[0]))
        if not made:
            free.update(taken)
    places = [*nodes, 0]
    return Drawing(
        tuple(nodes),
        tuple(
            Wire(
                var,
                row,
                source,
                lanes[var],
                tuple(
                    (use, lanes[var] if use == last else places[use - 1])
                    for use in uses.get(var, [])
                ),
            )
            for var, row, source in started
        ),
        width,
    )


def made_by(step: Step) -> tuple[Var, ...]:
    """Return the results of a step that are drawn: a cache is written in place."""
    return tuple(var for var in step.results if var.kind != "cache")
