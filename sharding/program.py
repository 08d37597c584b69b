# SPDX-License-Identifier: MIT
"""Typed local programs: what one rank runs, each value with its placement."""

from typing import Any

import attrs
import torch

from .line import Line
from .mesh import Mesh
from .op import Op
from .rule import Rule
from .spec import Spec


@attrs.frozen(eq=False)
class Var:
    """A typed local value: global sizes, placement, and the line that made its placement."""

    name: str
    spec: Spec
    sizes: tuple[int | None, ...]
    dtype: torch.dtype
    kind: str
    line: Line

    def __str__(self) -> str:
        return f"{self.name}: {self.spec}"

    def local(self, mesh: Mesh) -> tuple[int | None, ...]:
        """Return the sizes of this rank's shard."""
        return tuple(
            size if size is None else size // mesh.size(dim.axes)
            for size, dim in zip(self.sizes, self.spec.dims, strict=True)
        )


@attrs.frozen(eq=False)
class Apply:
    """An op on local shards.  `args` mirror the author's call with variables for values."""

    op: Op
    rule: Rule
    args: tuple[Any, ...]
    operands: tuple[Var, ...]
    metadata: tuple[Var, ...]
    results: tuple[Var, ...]
    line: Line
    regions: tuple[str, ...]

    def offset(self, mesh: Mesh) -> tuple[Var, int, tuple[str, ...]] | None:
        """Return the operand, dim and axes whose shard's start the kernel must be told, if any."""
        for factors, var in zip(self.rule.inputs, self.operands, strict=True):
            if self.rule.offset in factors:
                index = factors.index(self.rule.offset)
                axes = var.spec.dims[index].axes
                if self.rule.offset in self.rule.rows:  # rows point at their own requests' only
                    axes = tuple(axis for axis in axes if axis not in mesh.requests)
                return (var, index, axes) if axes else None
        return None

    def share(self) -> tuple[str, ...]:
        """Return the axes over which the op computes shares that are merged by softmax weights."""
        axes = [
            dim.axes
            for factors, var in zip(self.rule.inputs, self.operands, strict=True)
            for factor, dim in zip(factors, var.spec.dims, strict=True)
            if factor in self.rule.merges
        ]
        return axes[0] if axes else ()


@attrs.frozen(eq=False)
class Project:
    """Sibling contractions of one activation, computed as one `linear` with packed weights."""

    applies: tuple[Apply, ...]
    pack: str

    @property
    def operands(self) -> tuple[Var, ...]:
        return (self.applies[0].operands[0], *(apply.operands[1] for apply in self.applies))

    @property
    def results(self) -> tuple[Var, ...]:
        return tuple(apply.results[0] for apply in self.applies)

    @property
    def line(self) -> Line:
        return self.applies[0].line


LOCAL = ("slice", "own")  # kinds of `Move` that need no other rank
STARTABLE = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all")


@attrs.frozen(eq=False)
class Move:
    """A redistribution: a collective, or one of `LOCAL`.

    `dim` is scattered, gathered or sliced; an all_to_all moves the shard of dim `source` there.
    A slice keeps a rank's part of `dim`; `own` makes a Replicated value a sum to which the first
    rank adds alone.  One that `joins` travels with the move before it, as one collective.

    A dispatch is an all_gather that brings a rank only the rows that its experts compute, and a
    combine the reduce_scatter that brings the results back; `routed` is then how many experts a
    rank of the group has, and how many of all are active for a row.

    One that is `started` goes on while the steps after it run, up to the first that reads its
    result; where that stands the program waits for it.
    """

    kind: str
    axes: tuple[str, ...]
    dim: int | None
    operand: Var
    result: Var
    why: str
    line: Line
    regions: tuple[str, ...]
    source: int | None = None
    joins: bool = False
    routed: tuple[int, int] | None = None
    started: bool = False

    @property
    def operands(self) -> tuple[Var, ...]:
        return (self.operand,)

    @property
    def results(self) -> tuple[Var, ...]:
        return (self.result,)


@attrs.frozen(eq=False)
class Loop:
    """Layers `start` to `stop` of `layers`, each run by `block` on its own params and cache."""

    start: int
    stop: int
    layers: str
    block: "Code"
    carry: tuple[Var, ...]
    constants: tuple[Var, ...]
    results: tuple[Var, ...]
    line: Line

    @property
    def operands(self) -> tuple[Var, ...]:
        return (*self.carry, *self.constants)


Step = Apply | Project | Move | Loop


@attrs.frozen(eq=False)
class Composite:
    """Steps of a function that one call of op `name` computes, where the last of them stands.

    They stay steps, each with its types and line: what holds for them is checked and counted step
    by step, and nothing else may read what they hand to each other.
    """

    name: str
    parts: tuple[Apply | Project | Move, ...]

    @property
    def last(self) -> Apply | Project | Move:
        return self.parts[-1]


@attrs.frozen(eq=False)
class Code:
    """A straight-line function: a block, or the driver of the whole program.

    `cache_results` are the last versions of `cache`; a block's batch is among its `constants`.
    """

    name: str
    params: tuple[Var, ...]
    batch: tuple[Var, ...]
    cache: tuple[Var, ...]
    carry: tuple[Var, ...]
    constants: tuple[Var, ...]
    steps: tuple[Step, ...]
    results: tuple[Var, ...]
    cache_results: tuple[Var, ...]
    budgets: tuple[tuple[tuple[str, ...], float], ...]
    composites: tuple[Composite, ...] = ()

    @property
    def calls(self) -> dict[int, Composite]:
        """Return the composite of each step that is part of one, by the step's `id`."""
        return {id(part): each for each in self.composites for part in each.parts}

    @property
    def readers(self) -> dict[Var, list[Step]]:
        """Return the steps that read each value."""
        found: dict[Var, list[Step]] = {}
        for step in self.steps:
            metadata = step.metadata if isinstance(step, Apply) else ()
            for var in dict.fromkeys((*step.operands, *metadata)):
                found.setdefault(var, []).append(step)
        return found


@attrs.frozen(eq=False)
class Stage:
    """The part of the driver that ranks at one place of a pipeline run, with layers' caches.

    `code` receives its `carry` from the stage before and sends its `results` to the next; those
    of the last are the program's.  Caches are those of layers `start` to `stop`.
    """

    code: Code
    start: int
    stop: int


@attrs.frozen(eq=False)
class Program:
    """The program of every rank of a mesh: blocks in order of definition, then the driver.

    Ranks of a pipeline run one of its `stages` each, which together are the driver.
    """

    mesh: Mesh
    blocks: tuple[Code, ...]
    driver: Code
    stages: tuple[Stage, ...] = ()

    @property
    def functions(self) -> tuple[Code, ...]:
        """Return what is emitted: blocks, then the driver, or the stages in its place."""
        return (*self.blocks, *([stage.code for stage in self.stages] or [self.driver]))

    def of_stage(self, index: int) -> "Program":
        """Return what ranks at one place of the pipeline run."""
        code = self.stages[index].code
        run = {id(step.block) for step in code.steps if isinstance(step, Loop)}
        blocks = tuple(block for block in self.blocks if id(block) in run)
        return attrs.evolve(self, blocks=blocks, driver=code, stages=())
