# SPDX-License-Identifier: MIT
"""How a value gets from one placement to another: the shortest list of collectives and slices."""

import itertools

import attrs

from .infer import RuleViolationError
from .reduction import LSE, SUM, SUM1, SUMS
from .spec import Spec


@attrs.frozen
class Hop:
    """One redistribution and the placement after it."""

    kind: str
    axes: tuple[str, ...]
    dim: int | None
    spec: Spec
    source: int | None = None


def hops(source: Spec, target: Spec, exchange: bool = False) -> list[Hop]:
    """Return the moves from `source` to `target`; none if they are equal.

    Slices come first and gathers last, so that less data is reduced; the axes owed then go in one
    collective over the flattened group, which keeps Replicated values bitwise equal.  A Replicated
    value becomes a sum that one rank alone owns without a word to others.  With `exchange` a shard
    may move from one dim to another, by an all-to-all.

    Raises:
        RuleViolationError: the target owes a reduction that the source does not, or a shard would
            move from one dim to another.
    """
    if source.dims == target.dims and not source.partial and target.reduce == SUM1:
        return [Hop("own", target.partial, None, target)]
    if source.varying != target.varying:
        raise RuleViolationError(f"'{source}' differs between ranks and is not moved")
    for before, after in zip(source.dims, target.dims, strict=True):
        if before.segments and before.axes != after.axes:
            raise RuleViolationError(
                f"'{source}' cannot become '{target}': a direct sum is sharded part by "
                f"part, so its shards are not side by side; take its `parts` first"
            )
    if not set(target.partial) <= set(source.partial):
        raise RuleViolationError(
            f"'{source}' cannot become '{target}': nothing is owed over "
            f"{'+'.join(set(target.partial) - set(source.partial))}"
        )
    found: list[Hop] = []
    owed = tuple(axis for axis in source.partial if axis not in target.partial)
    spec = source
    dims = list(source.dims)

    def go(
        kind: str, axes: tuple[str, ...], index: int | None, from_index: int | None = None
    ) -> None:
        nonlocal spec
        partial = spec.partial
        if index is not None:
            used = dims[index].axes
            used = used[: -len(axes)] if kind == "all_gather" else (*used, *axes)
            dims[index] = attrs.evolve(dims[index], axes=used)
        if from_index is not None:
            left = dims[from_index].axes[: -len(axes)]
            dims[from_index] = attrs.evolve(dims[from_index], axes=left)
        if kind in ("all_reduce", "reduce_scatter", "merge"):
            partial = tuple(axis for axis in partial if axis not in axes)
        spec = Spec(tuple(dims), partial, spec.reduce if partial else SUM, spec.varying)
        found.append(Hop(kind, axes, index, spec, from_index))

    gathers: list[tuple[tuple[str, ...], int]] = []
    slices: list[tuple[tuple[str, ...], int]] = []
    for index, (before, after) in enumerate(zip(source.dims, target.dims, strict=True)):
        common = 0
        for left, right in zip(before.axes, after.axes, strict=False):
            if left != right:
                break
            common += 1
        if before.axes[common:]:
            gathers.append((before.axes[common:], index))
        if after.axes[common:]:
            slices.append((after.axes[common:], index))
    for axes, index in [*slices] if exchange else ():
        for leaves, from_index in [*gathers]:
            if leaves == axes and all(index != leaving for _, leaving in gathers):
                slices.remove((axes, index))
                gathers.remove((leaves, from_index))
                go("all_to_all", axes, index, from_index)
    leaving = {axis for axes, _ in gathers for axis in axes}
    for axes, _ in slices:
        if set(axes) & leaving:
            raise RuleViolationError(
                f"'{source}' cannot become '{target}': that needs an all-to-all of "
                f"{'+'.join(axes)}, which only a boundary can ask for"
            )
    if owed and source.reduce == LSE:  # parts of different weights: they cannot be added
        go("merge", owed, None)
        owed = ()
    entered = {index for _, index in slices}
    for axes, index in gathers:
        if index in entered:  # its new axes go below what is left, so the old ones leave first
            go("all_gather", axes, index)
    scattered = set(owed) if source.reduce in SUMS else set()
    for axes, index in slices:
        for paid, run in itertools.groupby(axes, scattered.__contains__):
            go("reduce_scatter" if paid else "slice", tuple(run), index)
    if owed := tuple(axis for axis in owed if axis in spec.partial):
        go("all_reduce", owed, None)
    for axes, index in gathers:
        if index not in entered:
            go("all_gather", axes, index)
    assert spec.dims == target.dims, (source, target)
    assert set(spec.partial) == set(target.partial), (source, target)
    return found
