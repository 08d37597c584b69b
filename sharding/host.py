# SPDX-License-Identifier: MIT
"""Host integers with types: sizes that know their dims, and counts of a step that only ops read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .error import TraceError, explained
from .fix import replace
from .line import Line, author_line


class Extent(int):
    """The size of named dims: what `x.shape` of a traced value has.

    A product of extents is that of all their dims; any other arithmetic gives a plain int.
    """

    dims: tuple[str, ...]

    def __new__(cls, size: int, dims: tuple[str, ...]) -> "Extent":
        made = super().__new__(cls, size)
        made.dims = dims
        return made

    def __mul__(self, other: int) -> int:
        size = int(self) * int(other)
        return Extent(size, (*self.dims, *other.dims)) if isinstance(other, Extent) else size

    __rmul__ = __mul__


class Joined(int):
    """The size of a direct sum, and those of its parts."""

    parts: tuple[int, ...]

    def __new__(cls, parts: tuple[int, ...]) -> "Joined":
        made = super().__new__(cls, sum(parts))
        made.parts = parts
        return made


class HostInt:
    """A count of a step, such as its rows: known only when the step runs, and only to kernels.

    Where ranks serve different requests it differs between them, so nothing may depend on it that
    decides which collectives a rank issues.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def _read(self, *_: Any) -> NoReturn:
        raise TraceError(
            explained(
                author_line(),
                f"the host reads {self.name}, a count of the step",
                why="a program is traced once for all steps and runs on ranks with other counts: "
                "a branch or size that depends on one would differ between them",
                fixes=["hand the batch to an op, whose kernel reads it", "choose by the config"],
            )
        )

    __bool__ = __int__ = __index__ = __float__ = __neg__ = _read
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _read
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _read
    __truediv__ = __floordiv__ = __mod__ = __rtruediv__ = __rfloordiv__ = __rmod__ = _read
    __hash__ = object.__hash__


ROLES: Mapping[str, tuple[str, Callable[[int, int], bool]]] = {
    "extent": ("is the size of", lambda value, size: value == size),
    "index": ("points into", lambda value, size: 0 <= value < size),
    "count": ("counts among", lambda value, size: 0 < value <= size),
}


def check_hosts(
    op: str,
    hosts: Mapping[int, str],
    args: Sequence[Any],
    names: Mapping[str, str],
    sizes: Mapping[str, int | None],
    line: Line,
) -> None:
    """Check the host integers among `args` against the dims that an op says they are of.

    `hosts` gives, by position, a role and a factor, `"extent d"`; `...` is all the dots.

    Raises:
        TraceError: one is of another dim, or no such size, place or count of its own.
    """
    for position, text in hosts.items():
        if position >= len(args) or not isinstance(args[position], int):
            continue
        given = args[position]
        role, factor = text.split()
        factors = [f for f in sizes if f.startswith(".")] if factor == "..." else [factor]
        dims = tuple(names[each] for each in factors)
        size = 1
        for each in factors:
            size *= sizes[each] or 0
        relation, holds = ROLES[role]
        other = isinstance(given, Extent) and set(given.dims) != set(dims)
        if not other and (not size or holds(given, size)):
            continue
        of = f", the size of {' '.join(given.dims)}" if isinstance(given, Extent) else ""
        raise TraceError(
            explained(
                line,
                f"{op} takes an int that {relation} {' '.join(dims)} (argument {position + 1}), "
                f"got {given}{of}",
                operands=[f"{' '.join(dims)}: {size or 'known at run time'}"],
                why="the kernel would read or divide by another dim's number, on every rank alike, "
                "so nothing else would notice",
                fixes=[
                    replace(f"give {size}", line, str(int(given)), str(size))
                    if role == "extent"
                    else f"give one from {int(role == 'count')} to {size - int(role == 'index')}"
                ],
            )
        )
