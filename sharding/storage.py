# SPDX-License-Identifier: MIT
"""Storage: which tensors a rank keeps, and which slice of which parameter is written where."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor

from .error import PlacementError
from .host import Joined
from .mesh import Mesh
from .program import Apply, Code, Loop, Move, Program, Project, Var


@attrs.frozen
class Member:
    """A parameter's part of a pack.

    `names`, `sizes` and `axes` describe the whole parameter; `pattern` is the einops pattern from
    its local slice to the rows `start` to `stop` of the pack.  A parameter over a direct sum has a
    member for each part of it: `within` is the dim, where the part begins in it, and its size.  Of
    a sum that is contracted over a part has only the `columns` from one to another of those rows.
    """

    path: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    pattern: str
    start: int
    stop: int
    within: tuple[int, int, int] | None = None
    columns: tuple[int, int] | None = None

    @property
    def num_inputs(self) -> int:
        """The size of what a row of the pack is multiplied with, over all ranks."""
        rows = self.pattern.partition("-> ")[2]
        row = rows[rows.rindex("(") + 1 : -1].split() if rows.endswith(")") else rows.split()[-1:]
        return math.prod(self.sizes[self.names.index(name)] for name in row)

    def slices(self, mesh: Mesh, rank: int) -> tuple[slice, ...]:
        """Return the slice of each dim of the whole parameter that `rank` keeps."""
        found = []
        for index, (size, axes) in enumerate(zip(self.sizes, self.axes, strict=True)):
            begin = 0
            if self.within and self.within[0] == index:
                _, begin, size = self.within
            width = size // mesh.size(axes)
            start = begin + mesh.index(rank, axes) * width
            found.append(slice(start, start + width))
        return tuple(found)

    def write(self, pack: Tensor, local: Tensor) -> None:
        """Write this rank's slice of the parameter, in parameter dims, into its pack."""
        rows = pack[self.start : self.stop]
        own = rows[:, slice(*self.columns)] if self.columns else rows
        own.copy_(rearrange(local, self.pattern))


@attrs.frozen
class Pack:
    """One stored tensor: members stacked along dim 0, row-major, shape per rank."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    members: tuple[Member, ...]

    @property
    def params(self) -> tuple[Member, ...]:
        """Return the first member of each parameter."""
        return tuple({member.path: member for member in reversed(self.members)}.values())[::-1]


def storage(program: Program) -> tuple[Pack, ...]:
    """Return every tensor that a rank keeps; names are `embed`, `layers.3.attn.wq_wk_wv`, ...

    Raises:
        PlacementError: one parameter is needed in two layouts.
    """
    return stored(program.driver, program.mesh)


def stored(code: Code, mesh: Mesh) -> tuple[Pack, ...]:
    """Return every tensor that a rank keeps to run a driver or a stage of it.

    Raises:
        PlacementError: one parameter is needed in two layouts.
    """
    packs = {pack.name: pack for pack in _packs(code, mesh)}
    for step in code.steps:
        if isinstance(step, Loop):
            templates = list(_packs(step.block, mesh))
            for index in range(step.start, step.stop):
                for pack in (_placed(each, f"{step.layers}.{index}.") for each in templates):
                    packs[pack.name] = pack
    return tuple(packs.values())


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return packs by name as the tree a program takes: a numbered part becomes a list of dicts.

    `{"embed": e, "layers.0.norm": n}` becomes `{"embed": e, "layers": [{"norm": n}]}`.
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at is None:
            tree[name] = tensor
            continue
        layers = tree.setdefault(".".join(parts[:at]), [])
        index = int(parts[at])
        layers.extend({} for _ in range(index + 1 - len(layers)))
        layers[index][".".join(parts[at + 1 :])] = tensor
    return tree


def _placed(pack: Pack, prefix: str) -> Pack:
    members = tuple(attrs.evolve(member, path=prefix + member.path) for member in pack.members)
    return Pack(prefix + pack.name, pack.shape, pack.dtype, members)


def _packs(code: Code, mesh: Mesh) -> Iterator[Pack]:
    made: dict[str, Pack] = {}
    for step in code.steps:
        found = []
        if isinstance(step, Project):
            found.append(_projected(step, mesh))
        elif isinstance(step, (Apply, Move)):
            found = [_plain(var, mesh) for var in step.operands if var.kind == "param"]
        for pack in found:
            known = made.setdefault(pack.name, pack)
            if (
                known.shape != pack.shape
                or [m.path for m in known.members] != [m.path for m in pack.members]
                or not all(map(_same_layout, known.members, pack.members))
            ):
                raise PlacementError(
                    f"{step.line}: parameter {pack.name} is stored as "
                    f"'{known.members[0].pattern}' and needed as '{pack.members[0].pattern}'; "
                    f"write both uses over the same order of dims"
                )
    yield from made.values()


def _same_layout(left: Member, right: Member) -> bool:
    return _flat(left.pattern) == _flat(right.pattern)


def _flat(pattern: str) -> list[str]:
    return pattern.partition("->")[2].replace("(", " ").replace(")", " ").split()


def _projected(project: Project, mesh: Mesh) -> Pack:
    members: list[Member] = []
    start = 0
    columns = 0
    for apply in project.applies:
        weight = apply.operands[1]
        (left, right), (out,) = apply.rule.inputs, apply.rule.outputs
        local = dict(zip(right, weight.local(mesh), strict=True))
        rows = columns = 1
        for factor in out[1:]:
            rows *= local[factor] or 1
        for factor in left[1:]:
            columns *= local[factor] or 1
        pattern = f"{' '.join(right)} -> ({' '.join(out[1:])}) ({' '.join(left[1:])})"
        members += _members(weight, pattern, start, rows, columns)
        start += rows
    dtype = project.applies[0].operands[1].dtype
    return Pack(project.pack, (start, columns), dtype, tuple(members))


def _plain(var: Var, mesh: Mesh) -> Pack:
    names = " ".join(var.spec.names)
    shape = tuple(size or 1 for size in var.local(mesh))
    return Pack(
        var.name, shape, var.dtype, tuple(_members(var, f"{names} -> {names}", 0, shape[0]))
    )


def _members(var: Var, pattern: str, start: int, rows: int, columns: int = 0) -> Iterator[Member]:
    """Yield a parameter's part of a pack, or those of its direct sum's parts.

    They are one below the other, or side by side in `columns` where they are contracted over.

    Raises:
        PlacementError: the direct sum is not what the rows or columns are first divided by.
    """
    joint = next((at for at, dim in enumerate(var.spec.dims) if dim.segments), None)
    size = None if joint is None else var.sizes[joint]
    parts: tuple[int, ...] = size.parts if isinstance(size, Joined) else ()
    firsts = [group.split()[0] for group in re.findall(r"\(([^)]+)\)", pattern)]
    summed = joint is not None and firsts[1:] == [var.spec.dims[joint].name]
    if joint is not None and not summed and _flat(pattern)[0] != var.spec.dims[joint].name:
        raise PlacementError(
            f"{var.line}: {var.name} is stored as '{pattern}': the direct sum "
            f"{var.spec.dims[joint]} must stand first among a product's dims after the rows, or "
            f"first among those that it is summed over, or in a parameter that is no matrix"
        )
    member = Member(
        var.name,
        var.spec.names,
        tuple(int(size or 1) for size in var.sizes),
        tuple(dim.axes for dim in var.spec.dims),
        pattern,
        start,
        start + rows,
    )
    if joint is None:
        yield member
        return
    begin = 0
    for part in parts if summed else ():
        first, last = (columns * at // sum(parts) for at in (begin, begin + part))
        yield attrs.evolve(member, within=(joint, begin, part), columns=(first, last))
        begin += part
    for part in () if summed else parts:
        stop = start + rows * part // sum(parts)
        yield attrs.evolve(member, start=start, stop=stop, within=(joint, begin, part))
        start, begin = stop, begin + part
