# SPDX-License-Identifier: MIT
"""The collectives of a text that is re-checked: each call makes a move of types, not of tensors."""

from typing import TYPE_CHECKING, Any

import attrs
import torch

from .error import VerificationError
from .line import author_line
from .mesh import Mesh
from .program import STARTABLE, Move, Var
from .reduction import SUM, SUM1, passes
from .spec import Dim, Spec

if TYPE_CHECKING:
    from .recheck import Check, Local


@attrs.frozen
class Start:
    """A rank's place along axes, times the size of a shard: where its shard begins."""

    axes: tuple[str, ...]
    size: int | None = 1

    def __mul__(self, size: int | None) -> "Start":
        return attrs.evolve(self, size=size)


@attrs.frozen
class Trip:
    """The way of dispatched rows, ids and weights, by which the rows' results come back."""

    rows: tuple[Var, ...]
    routed: tuple[int, int]


@attrs.frozen
class Pending:
    """A collective that has begun: no op takes it, only a wait."""

    result: "Local"


class Collectives:
    """The `c` of the text: each call is a move that the verifier checks."""

    def __init__(self, check: "Check") -> None:
        self.check = check

    def rank(self, group: str) -> Start:
        return Start(_axes(self.check.mesh, group))

    def all_reduce(self, x: "Local", group: str, kind: str = SUM) -> "Local":
        _paid_as(x, kind)
        return moved(x, "all_reduce", _axes(self.check.mesh, group), None)

    def reduce_scatter(self, x: "Local", group: str, dim: int, kind: str = SUM) -> "Local":
        _paid_as(x, kind)
        return moved(x, "reduce_scatter", _axes(self.check.mesh, group), dim)

    def all_gather(self, x: "Local", group: str, dim: int) -> "Local":
        return moved(x, "all_gather", _axes(self.check.mesh, group), dim)

    def all_gathers(self, every: tuple["Local", ...], group: str, dim: int) -> tuple["Local", ...]:
        return tuple(self.all_gather(x, group, dim) for x in every)

    def all_to_all(self, x: "Local", group: str, source: int, dim: int) -> "Local":
        return moved(x, "all_to_all", _axes(self.check.mesh, group), dim, source)

    def start(self, kind: str, x: "Local", *given: Any) -> "Pending":
        if kind not in STARTABLE:
            raise VerificationError(f"{author_line()}: {kind} cannot be started apart from its end")
        return Pending(getattr(self, kind)(x, *given))

    def wait(self, pending: "Pending") -> "Local":
        if not isinstance(pending, Pending):
            raise VerificationError(f"{author_line()}: there is nothing to wait for")
        return pending.result

    def merge(self, x: "Local", group: str, dtype: str) -> "Local":
        if getattr(torch, dtype, None) != x.var.dtype:
            raise VerificationError(
                f"{author_line()}: {x.var} merges to {x.var.dtype}, not {dtype}"
            )
        return moved(x, "merge", _axes(self.check.mesh, group), None)

    def dispatch(
        self, x: "Local", ids: "Local", weights: "Local", group: str, share: int
    ) -> tuple[Any, ...]:
        if ids.var.dtype.is_floating_point:
            raise VerificationError(f"{author_line()}: {ids.var} of {ids.var.dtype} are no ids")
        routed = (share, ids.var.sizes[-1] or 0)
        axes = _axes(self.check.mesh, group)
        sent = [
            moved(each, "dispatch", axes, 0, routed=routed, joins=index > 0)
            for index, each in enumerate((x, ids, weights))
        ]
        return (*sent, Trip(tuple(each.var for each in sent), routed))

    def combine(self, y: "Local", trip: Trip, group: str) -> "Local":
        sent = self.check.verifier.routed.get(y.var, ())
        if tuple(move.result for move in sent) != trip.rows:
            raise VerificationError(f"{author_line()}: {y.var} did not come by this way")
        return moved(y, "combine", _axes(self.check.mesh, group), 0, routed=trip.routed)

    def __getattr__(self, name: str) -> Any:
        raise VerificationError(f"{author_line()}: there is no collective c.{name}")


def moved(
    x: "Local",
    kind: str,
    axes: tuple[str, ...],
    dim: int | None,
    source: int | None = None,
    routed: tuple[int, int] | None = None,
    joins: bool = False,
) -> "Local":
    """Return `x` after a redistribution over `axes`."""
    line, spec = author_line(), x.var.spec
    dims = list(spec.dims)
    partial = spec.partial
    if kind in ("all_reduce", "reduce_scatter", "combine", "merge"):
        partial = tuple(axis for axis in partial if axis not in axes)
    if kind in ("all_gather", "dispatch") and dim is not None:
        dims[dim] = _less(dims[dim], axes)
    if kind in ("reduce_scatter", "combine", "slice", "all_to_all") and dim is not None:
        dims[dim] = attrs.evolve(dims[dim], axes=(*dims[dim].axes, *axes))
    if source is not None:
        dims[source] = _less(dims[source], axes)
    if kind == "own":
        made = Spec(tuple(dims), axes, SUM1)
    else:
        made = Spec(tuple(dims), partial, spec.reduce if partial else SUM)
    result = attrs.evolve(x.var, name=kind, spec=made, kind="activation", line=line)
    x.check.step(Move(kind, axes, dim, x.var, result, "", line, (), source, joins, routed))
    return type(x)(x.check, result)


def _paid_as(x: "Local", kind: str) -> None:
    if x.var.spec.partial and not passes(x.var.spec.reduce, kind):
        raise VerificationError(f"{author_line()}: {x.var} is reduced by {kind}")


def _less(dim: Dim, axes: tuple[str, ...]) -> Dim:
    return attrs.evolve(dim, axes=tuple(axis for axis in dim.axes if axis not in axes))


def _axes(mesh: Mesh, group: str) -> tuple[str, ...]:
    return mesh.expand(tuple(group.split("+")))
