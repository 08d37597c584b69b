# SPDX-License-Identifier: MIT
"""What a plan keeps in a rank's memory: weights, caches, and the activations of one step."""

import math
from collections.abc import Mapping

import attrs

from .cost import nbytes
from .mesh import Mesh
from .plan import Plan
from .program import Apply, Code, Loop, Move, Project, Var
from .size_text import size_text


@attrs.frozen
class Memory:
    """Bytes on one rank: every pack, one cache block over all layers, the cache, activations.

    `activations` is the most that values of a step hold at once, `peak` the step that needs it.
    `piece` names what `blocks` counts, for a cache whose layers do not share one kind of block.
    """

    weights: Mapping[str, int]
    block: int
    blocks: int
    activations: int
    peak: str
    piece: str = "blocks"
    of: str = "a rank"

    @property
    def cache(self) -> int:
        return self.block * self.blocks

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.activations

    def __str__(self) -> str:
        lines = [f"{self.of} holds {size_text(self.total)}"]
        lines.append(f"  weights      {size_text(sum(self.weights.values())):>10}")
        largest = sorted(_kinds(self.weights).items(), key=lambda item: -item[1][1])
        for name, (count, size) in largest[:6]:
            lines.append(f"    {size_text(size):>10}  {count} x {name}")
        lines.append(
            f"  cache        {size_text(self.cache):>10}  {self.blocks} {self.piece} of "
            f"{size_text(self.block)}"
        )
        lines.append(f"  activations  {size_text(self.activations):>10}  most at {self.peak}")
        return "\n".join(lines)


def _kinds(weights: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return (how many, bytes) of packs that differ in their layer's number only."""
    kinds: dict[str, tuple[int, int]] = {}
    for name, size in weights.items():
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        count, total = kinds.get(kind, (0, 0))
        kinds[kind] = count + 1, total + size
    return kinds


def memory(plan: Plan, *, tokens: Mapping[str, int], blocks: int) -> Memory:
    """Return what a rank of `plan` holds with `blocks` cache blocks, in a step of these `tokens`.

    `tokens` gives the dims whose sizes are known at run time only.  Activations are counted as an
    allocator would that frees a value after its last use, without fragmentation.  Of a pipeline
    it is the stage that holds most.
    """
    if plan.parts:
        held = [memory(part, tokens=tokens, blocks=blocks) for part in plan.stages()]
        stage, most = max(enumerate(held), key=lambda each: each[1].total)
        return attrs.evolve(most, of=f"a rank of stage_{stage}, the heaviest,")
    weights = {pack.name: math.prod(pack.shape) * pack.dtype.itemsize for pack in plan.storage}
    block = sum(
        math.prod(shape.blocks(1)) * shape.dtype.itemsize for layer in plan.cache for shape in layer
    )
    activations, peak = _peak(plan.program.driver, plan.mesh, tokens)
    return Memory(weights, block, blocks, activations, peak)


def _peak(code: Code, mesh: Mesh, tokens: Mapping[str, int]) -> tuple[int, str]:
    last: dict[Var, int] = {}
    calls = code.calls
    index_of = {id(step): index for index, step in enumerate(code.steps)}
    for index, step in enumerate(code.steps):
        for var in step.operands:
            # Parts of a composite run where the last of them stands.
            at = index_of[id(calls[id(step)].last)] if id(step) in calls else index
            last[var] = max(last.get(var, 0), at)
    last.update(dict.fromkeys(code.results, len(code.steps)))
    held = {var: nbytes(var, tokens, mesh) for var in code.carry}
    most, peak = sum(held.values()), code.name
    for index, step in enumerate(code.steps):
        below = 0
        if id(step) in calls and step is not calls[id(step)].last:
            continue  # what it hands on is never stored
        if isinstance(step, Loop):
            entered = sum(nbytes(var, tokens, mesh) for var in step.block.carry)
            below, inner = _peak(step.block, mesh, tokens)
            below -= entered
        for var in step.results:
            if var.kind not in ("param", "cache", "batch"):
                held[var] = nbytes(var, tokens, mesh)
        now = sum(held.values()) + below
        if now > most:
            most, peak = now, inner if isinstance(step, Loop) else f"{_name(step)} {step.line}"
        held = {var: size for var, size in held.items() if last.get(var, -1) > index}
    return most, peak


def _name(step: Apply | Project | Move) -> str:
    match step:
        case Apply():
            return step.op.name
        case Project():
            return step.pack
        case Move():
            return step.kind
