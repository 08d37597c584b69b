# SPDX-License-Identifier: MIT
"""Which layouts fit a model: its names exist, and every shard is a whole number of elements."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

import attrs

from .error import AnnotationError, MeshError, explained
from .fix import Fix
from .host import Joined
from .layout import Layout
from .line import Line
from .tree import Declared


def check_layout(layout: Layout, stored: Any, aliases: Collection[str]) -> None:
    """Check a layout against the declared parameters and caches of a model.

    Raises:
        AnnotationError: `place` names a dim, or `types` an alias, that the model does not have.
        MeshError: a dim does not divide; the legal sizes of the axis are listed.
    """
    declared = _declared(stored)
    dims = {name for leaf in declared for name in leaf.spec.names}
    for given, known, what in (
        (layout.place, dims, "place names dim"),
        (layout.types, aliases, "types names alias"),
    ):
        for name in given:
            if name not in known:
                raise AnnotationError(
                    f"layout {what} {name!r}, which the model does not have; it has "
                    f"{', '.join(sorted(known))}"
                )
    over: dict[tuple[str, ...], dict[str, int]] = {}
    lines: dict[str, Line] = {}
    for leaf in declared:
        spec = layout.stationary(leaf.spec)
        for dim, size in zip(spec.dims, leaf.sizes, strict=True):
            if dim.axes and size is not None:
                parts = size.parts if isinstance(size, Joined) else (size,)
                for name, part in zip(dim.segments or (dim.name,), parts, strict=True):
                    over.setdefault(dim.axes, {})[name] = part
                    lines.setdefault(name, leaf.placement.line)
    for axes, sizes in over.items():
        axis, ways = layout.mesh.group(axes), layout.mesh.size(axes)
        for name, size in sizes.items():
            if size % ways:
                common = math.gcd(*sizes.values())
                legal = [n for n in range(1, common + 1) if common % n == 0]
                rest = [other for each, other in sizes.items() if each != name]
                whole = (
                    [
                        Fix(
                            f"keep it whole on every rank: place={{'{name}': ''}}",
                            place=((name, ""),),
                        )
                    ]
                    if name in dims and all(other % ways == 0 for other in rest)
                    else []
                )
                raise MeshError(
                    explained(
                        lines[name],
                        f"dim {name!r} has size {size}, which {axis}={ways} does not divide",
                        operands=[
                            f"dims over {axis}: "
                            + ", ".join(f"{n}={s}" for n, s in sorted(sizes.items()))
                        ],
                        fixes=[
                            Fix(
                                f"choose {axis} from {', '.join(map(str, legal))}",
                                mesh=_resized(layout.mesh.text, axis, max(legal)),
                            ),
                            *whole,
                            *_split(layout, declared, axis, name, sizes),
                        ],
                    )
                )


def _split(
    layout: Layout, declared: Collection[Declared], axis: str, name: str, sizes: Mapping[str, int]
) -> Iterator[Fix]:
    """Yield how two dims may share an axis that is too long for one: query heads and kv heads.

    The other one stands between it and what follows it elsewhere: `k g h` beside `k h`.
    """
    ways, size = layout.mesh.size((axis,)), sizes[name]
    fits = all(other % ways == 0 for each, other in sizes.items() if each != name)
    mesh = _resized(layout.mesh.text, axis, f"(part={size},rep={ways // size})")
    if size == 1 or ways % size or not fits or not mesh:
        return
    params = [leaf for leaf in declared if None not in leaf.sizes]  # caches count blocks later
    orders = [leaf.spec.names for leaf in params]
    pairs = {pair for order in orders for pair in pairwise(order)}
    lengths = {n: s for leaf in params for n, s in zip(leaf.spec.names, leaf.sizes, strict=True)}
    between = [
        other
        for order in orders
        for before, other, after in zip(order, order[1:], order[2:], strict=False)
        if before == name and (name, after) in pairs
    ]
    for other in dict.fromkeys(between):
        if (lengths[other] or 0) % (ways // size) == 0 and lengths[other]:
            yield Fix(
                f"let {name} and {other} share {axis}: "
                f"'{mesh}; {name}:part {other}:rep' on one line",
                mesh=mesh,
                place=((name, "part"), (other, "rep")),
            )


def _resized(mesh: str, axis: str, size: int | str) -> str:
    """Return a mesh's text with one plain axis of another size; nothing if it is no plain axis."""
    made, count = re.subn(rf"\b{re.escape(axis)}=\d+", f"{axis}={size}", mesh)
    return made if count == 1 else ""


def _declared(tree: Any) -> list[Declared]:
    """Return the declared leaves of a tree, those of shared subtrees once."""
    if isinstance(tree, Declared):
        return [tree]
    if isinstance(tree, (tuple, list)):
        items = list({id(item): item for item in tree}.values())
    elif tree is None or isinstance(tree, int):
        return []
    else:
        items = [getattr(tree, field.name) for field in attrs.fields(type(tree))]
    return [leaf for item in items for leaf in _declared(item)]
