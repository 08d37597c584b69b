# SPDX-License-Identifier: MIT
"""What a trace is made of: one equation for each op, boundary and loop of the author's function."""

from typing import TYPE_CHECKING, Any

import attrs

from .line import Line
from .op import Op
from .rule import Rule
from .spec import Placement
from .value import Value

if TYPE_CHECKING:
    from .trace import Graph


@attrs.frozen(eq=False)
class Equation:
    """One recorded op: its arguments as the author gave them, and its flat operands and results.

    `operands` are bound to the rule's inputs; `metadata` are further traced arguments, which the
    op only reads and which must be Replicated.
    """

    op: Op
    rule: Rule
    args: tuple[Any, ...]
    operands: tuple[Value, ...]
    metadata: tuple[Value, ...]
    results: tuple[Value, ...]
    line: Line
    regions: tuple[str, ...]

    @property
    def reads(self) -> tuple[Value, ...]:
        return (*self.operands, *self.metadata)


@attrs.frozen(eq=False)
class Pin:
    """A value crossing the boundary of an `@spmd` function that annotates it."""

    value: Value
    result: Value
    placement: Placement
    alias: str | None
    line: Line
    regions: tuple[str, ...]

    @property
    def reads(self) -> tuple[Value, ...]:
        return (self.value,)


@attrs.frozen(eq=False)
class Scan:
    """Consecutive layers run by one block: results and carries are flat, block by block."""

    runs: "tuple[Run, ...]"
    layers: str
    carry: tuple[Value, ...]
    constants: tuple[Value, ...]
    results: tuple[Value, ...]
    line: Line
    regions: tuple[str, ...]

    @property
    def reads(self) -> tuple[Value, ...]:
        return (*self.carry, *self.constants)


@attrs.frozen(eq=False)
class Block:
    """A layer function traced once, in a graph of its own."""

    name: str
    graph: "Graph"
    params: tuple[Value, ...]
    cache: tuple[Value, ...]
    carry: tuple[Value, ...]
    constants: tuple[Value, ...]
    carry_out: tuple[Value, ...]
    cache_out: tuple[Value, ...]


@attrs.frozen
class Run:
    """Layers `start` to `stop` of a scan, which share a block."""

    start: int
    stop: int
    block: Block
