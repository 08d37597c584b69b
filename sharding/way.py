# SPDX-License-Identifier: MIT
"""Ways to run a step: how rows lie between layers, and how they reach their experts.

A layout's `types` settle how rows lie.  Where it says nothing, whole rows on every rank and rows
sharded over the axes that sums are paid over are both legal for one placement of the parameters,
so which is cheaper may depend on how many tokens a step has.
"""

import attrs

from .equation import Pin, Scan
from .layout import Layout
from .mesh import Mesh
from .program import Apply, Move, Program, Step
from .spec import parse_spec
from .trace import Traced


@attrs.frozen
class Way:
    """Rows lie sharded over `rows`, beside the axes of requests, and what experts compute of them.

    Not `exchanged`, an expert's rank gets every row: as it is whole there, or by a gather.
    """

    rows: tuple[str, ...] = ()
    exchanged: bool = False

    def multiple(self, layout: Layout) -> int:
        """Return what a group's tokens must be a multiple of."""
        return max(layout.token_multiple, layout.mesh.size(self.rows))


@attrs.frozen(eq=False)
class Offer:
    """A way to run a step of so many tokens, its program, and the microseconds it would take."""

    way: Way
    program: Program
    work_us: float
    collectives_us: float

    @property
    def us(self) -> float:
        """All of it, what is hidden behind work left out."""
        return self.work_us + self.collectives_us


def row_types(traced: Traced) -> dict[str, tuple[str, ...]]:
    """Return the dims of the boundary types of rows between layers, by alias.

    They are the types with the dims of what layers carry, the first of them ragged.
    """
    carried = {
        value.names
        for equation in traced.graph.equations
        if isinstance(equation, Scan)
        for value in equation.carry
    }
    pins = [each for graph in traced.graphs for each in graph.equations if isinstance(each, Pin)]
    return {
        pin.alias: pin.value.names
        for pin in pins
        if pin.alias and pin.value.names in carried and pin.placement.spec.dims[0].ragged
    }


def written_rows(layout: Layout, types: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the axes over which a layout shards rows, or None if it leaves that open."""
    written = [parse_spec(layout.types[alias]) for alias in types if alias in layout.types]
    if not written:
        return None
    axes = {axis for spec in written for axis in layout.mesh.expand(spec.dims[0].axes)}
    return layout.mesh.ordered(axes - set(layout.mesh.requests))


def summed_over(program: Program, types: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the axes over which all sums of rows between layers are paid."""
    dims = set(types.values())
    axes = [
        set(move.axes)
        for code in (*program.blocks, program.driver)
        for move in code.steps
        if isinstance(move, Move) and move.kind == "all_reduce" and move.operand.spec.names in dims
    ]
    return program.mesh.ordered(set.intersection(*axes)) if axes else ()


def with_rows(layout: Layout, types: dict[str, tuple[str, ...]], axes: tuple[str, ...]) -> Layout:
    """Return a layout whose rows between layers are sharded over `axes`."""
    at = "+".join(axes)
    return layout.but(
        types={alias: f"{first}@{at} {' '.join(rest)}" for alias, (first, *rest) in types.items()}
    )


def rows_text(way: Way, mesh: Mesh) -> str:
    """Return how rows lie, as a layout writes it: `n@dp+tp`."""
    axes = (*mesh.requests, *way.rows)
    return f"n@{mesh.group(axes)}" if axes else "n"


def experts_text(program: Program) -> str:
    """Return how rows reach their experts and their results come back; empty without experts."""
    found: dict[str, None] = {}
    for code in program.blocks:
        made = {var: step for step in code.steps for var in step.results}
        for step in code.steps:
            if isinstance(step, Apply) and step.rule.routes:
                found[_reached(step, made.get(step.operands[0]), program.mesh)] = None
    return " or ".join(found)


def _reached(step: Apply, before: Step | None, mesh: Mesh) -> str:
    said, axes = [], set[str]()
    if isinstance(before, Move) and before.kind in ("all_gather", "dispatch"):
        axes = set(before.axes)
        what = "exchanged" if before.kind == "dispatch" else "gathered"
        said.append(f"{what} over {mesh.group(before.axes)}")
    if rest := mesh.ordered(set(step.results[0].spec.partial) - axes):
        said.append(f"summed over {mesh.group(rest)}")
    return ", ".join(said) or "whole"
