# SPDX-License-Identifier: MIT
"""What a program's collectives cost: which there are, their bytes and predicted time."""

import math
from collections.abc import Iterator, Mapping, Sequence

import attrs

from .link import NVLINK, Link
from .machine import Machine
from .mesh import Mesh
from .program import Apply, Code, Loop, Move, Program, Project, Step, Var

# How often a ring carries (ways - 1) / ways of the payload.
TRIPS = {
    "all_reduce": 2,
    "reduce_scatter": 1,
    "all_gather": 1,
    "merge": 2,
    "all_to_all": 1,
    "dispatch": 1,
    "combine": 1,
    "slice": 0,
    "own": 0,
}
# Before rows are dispatched their counts are exchanged, and the host must know them.
COUNTS_US = 30.0


@attrs.frozen
class Cost:
    """One collective: payload and wire bytes a rank, predicted microseconds."""

    payload: int
    wire: int
    us: float


def nbytes(var: Var, tokens: Mapping[str, int], mesh: Mesh | None = None) -> int:
    """Return the bytes of a value, or of one rank's shard if a mesh is given.

    `tokens` gives the dims whose sizes are known at run time only.
    """
    sizes = [
        tokens.get(dim.name, 1) if size is None else size
        for dim, size in zip(var.spec.dims, var.sizes, strict=True)
    ]
    ways = math.prod(mesh.size(dim.axes) for dim in var.spec.dims) if mesh else 1
    return -(-math.prod(sizes) // ways) * var.dtype.itemsize


def cost(move: Move, mesh: Mesh, tokens: Mapping[str, int], link: Link = NVLINK) -> Cost:
    """Return what a redistribution costs as a ring: reduce-scatter, all-gather, or both.

    An all-to-all sends each peer its part directly.  Of routed rows each goes to the ranks of its
    experts, which are taken to be chosen evenly; what joins another move has no start of its own.
    """
    ways = mesh.size(move.axes)
    whole = max(nbytes(move.operand, tokens, mesh), nbytes(move.result, tokens, mesh))
    trips = TRIPS[move.kind]
    wire = trips * whole * (ways - 1) // ways
    if move.routed:
        _, active = move.routed
        wire = int(wire * (1 - (1 - 1 / ways) ** active))
    if not trips:
        return Cost(0, wire, 0.0)
    if move.joins:
        return Cost(whole, wire, wire / (link.gb_per_s * 1e3))
    counts = COUNTS_US if move.kind == "dispatch" else 0.0
    return Cost(whole, wire, link.us(move.kind, wire) + counts)


def work(
    step: Step, mesh: Mesh, tokens: Mapping[str, int], machine: Machine, chunks: int = 1
) -> float:
    """Return the microseconds of a step with parameters, as a lower bound; those of one chunk.

    The larger of its rank's weights over the machine's bandwidth and their products over its
    rate; experts are taken to be all read, each row by its active ones.
    """
    if not isinstance(step, (Apply, Project)):
        return 0.0
    stored = [var for var in step.operands if var.kind == "param"]
    rows = _rows(step.operands[0], mesh, tokens)
    share = _share(step) if isinstance(step, Apply) and step.rule.routes else 1.0
    byte_us = sum(nbytes(var, tokens, mesh) for var in stored) / (machine.gb_per_s * 1e3)
    elements = sum(nbytes(var, tokens, mesh) // var.dtype.itemsize for var in stored)
    return max(byte_us, 2 * rows * elements * share / (machine.tflops * 1e6) / chunks)


def _rows(var: Var, mesh: Mesh, tokens: Mapping[str, int]) -> int:
    """Return how many rows of a value a rank has, or 1 if it has no dims."""
    if not var.sizes:
        return 1
    dim, size = var.spec.dims[0], var.sizes[0]
    return -(-(tokens.get(dim.name, 1) if size is None else size) // mesh.size(dim.axes))


def _share(step: Apply) -> float:
    """Return which part of the experts computes a row."""
    active = step.operands[1].sizes[1] or 1
    (experts,) = {
        var.sizes[factors.index(step.rule.offset)] or 1
        for factors, var in zip(step.rule.inputs, step.operands, strict=True)
        if step.rule.offset is not None and step.rule.offset in factors
    }
    return active / experts


def handed(values: Sequence[Var], mesh: Mesh, tokens: Mapping[str, int], link: Link) -> Cost:
    """Return what it costs to send values from one stage of a pipeline to the next."""
    payload = sum(nbytes(var, tokens, mesh) for var in values)
    return Cost(payload, payload, link.alpha_us + payload / (link.gb_per_s * 1e3))


def moves(code: Code) -> Iterator[tuple[Move, int]]:
    """Yield each redistribution of a function with how many times a step runs it."""
    for step in code.steps:
        if isinstance(step, Move):
            yield step, 1
        elif isinstance(step, Loop):
            yield from ((move, step.stop - step.start) for move, _ in moves(step.block))


def groups_of(program: Program) -> tuple[tuple[str, ...], ...]:
    """Return the axis groups that the program names to `c`, each once."""
    found = [move.axes for move, _ in moves(program.driver)]
    for code in (*program.blocks, program.driver):
        for step in code.steps:
            if isinstance(step, Apply) and (offset := step.offset(program.mesh)):
                found.append(offset[2])
            if isinstance(step, Apply) and (axes := step.share()):
                found.append(axes)
            if isinstance(step, Apply) and step.op.region:
                found += [axes] if (axes := step.op.region.told(program.mesh)) else []
    found += [program.mesh.stages] if program.stages else []
    return tuple(dict.fromkeys(found))
