# SPDX-License-Identifier: MIT
"""Which placements an op's operands must move to, and which its results then have."""

from collections.abc import Sequence

import attrs

from .mesh import Mesh
from .rule import Rule
from .spec import Dim, Spec


class RuleViolationError(Exception):
    """No legal movement exists: the reason, as a sentence without operand names."""


@attrs.frozen
class Operand:
    """An operand's placement, and whether it is stationary (a parameter or cache)."""

    spec: Spec
    stationary: bool


@attrs.frozen
class Inference:
    """Target placements of the operands and the axes of each factor; `partial` on the results."""

    targets: tuple[Spec, ...]
    axes: dict[str, tuple[str, ...]]
    partial: tuple[str, ...]
    reduce: str = "sum"

    def result(self, factors: Sequence[str], names: Sequence[str]) -> Spec:
        """Return the placement of a result with these factors and dim names."""
        dims = tuple(
            Dim(name, self.axes.get(factor, ()))
            for factor, name in zip(factors, names, strict=True)
        )
        return Spec(dims, self.partial, self.reduce if self.partial else "sum")


def infer(
    rule: Rule, operands: Sequence[Operand], mesh: Mesh, wanted: Spec | None = None
) -> Inference:
    """Choose where operands meet: stationary ones stay, activations move, Partial is lazy.

    `wanted` is the placement that the result is pinned to next, if that is known: a sum that must
    be paid here is then paid into it (a reduce-scatter, not an all-reduce and a slice).

    Raises:
        RuleViolationError: placements of two operands collide and neither may move.
    """
    names = {
        factor: dim.name
        for factors, operand in zip(rule.inputs, operands, strict=True)
        for factor, dim in zip(factors, operand.spec.dims, strict=True)
    }
    axes = _stationary_axes(rule, operands, names)
    taken = {axis: factor for factor, used in axes.items() for axis in used}
    fixed = set(taken)
    for factors, operand in zip(rule.inputs, operands, strict=True):
        if operand.stationary:
            continue
        for factor, dim in zip(factors, operand.spec.dims, strict=True):
            if not dim.axes or factor in axes or factor not in rule.shardable:
                continue
            clash = [axis for axis in dim.axes if axis in taken]
            if any(axis in fixed for axis in clash):
                continue  # the parameter owns this axis: the activation is gathered
            if clash:
                raise RuleViolationError(
                    f"one operand is sharded over {clash[0]} on {dim.name}, another on "
                    f"{names[taken[clash[0]]]}: rank i would combine unrelated shards"
                )
            axes[factor] = dim.axes
            taken.update(dict.fromkeys(dim.axes, factor))
    kept, carried, reduce = _carried(rule, operands, set(taken))
    if wanted is not None:
        paid = {
            axis
            for i, operand in enumerate(operands)
            if i not in kept
            for axis in operand.spec.partial
        }
        for factor, dim in zip(rule.outputs[0], wanted.dims, strict=True):
            free = factor in rule.shardable and not axes.get(factor)
            if free and set(dim.axes) & paid and not set(dim.axes) & set(taken):
                axes[factor] = dim.axes
                taken.update(dict.fromkeys(dim.axes, factor))
        kept, carried, reduce = _carried(rule, operands, set(taken))
    targets = tuple(
        attrs.evolve(
            operand.spec,
            dims=tuple(
                attrs.evolve(dim, axes=axes.get(factor, ()))
                for factor, dim in zip(factors, operand.spec.dims, strict=True)
            ),
            partial=operand.spec.partial if index in kept else (),
            reduce=operand.spec.reduce if index in kept else "sum",
        )
        for index, (factors, operand) in enumerate(zip(rule.inputs, operands, strict=True))
    )
    owed = set(carried)
    results = {factor for factors in rule.outputs for factor in factors}
    for factor, used in axes.items():
        if used and factor not in results:
            owed.update(used)  # a contracted factor: each rank has summed its own shard only
    if owed - set(carried) and reduce != "sum":
        raise RuleViolationError(f"a sum and a {reduce} would be owed by one value")
    return Inference(targets, axes, mesh.ordered(owed), reduce)


def _stationary_axes(
    rule: Rule, operands: Sequence[Operand], names: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    axes: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    pointwise = set(rule.inputs[0]) == set(rule.outputs[0]) and len(rule.linear) >= 1
    for factors, operand in zip(rule.inputs, operands, strict=True):
        if not operand.stationary:
            continue
        for factor, dim in zip(factors, operand.spec.dims, strict=True):
            if dim.axes and factor not in rule.shardable:
                raise RuleViolationError(
                    f"a parameter is sharded over {'+'.join(dim.axes)} on {dim.name}, which this "
                    f"op needs whole"
                )
            if axes.setdefault(factor, dim.axes) != dim.axes:
                raise RuleViolationError(
                    f"two parameters place {dim.name} differently: "
                    f"'{'+'.join(axes[factor])}' and '{'+'.join(dim.axes)}'"
                )
            for axis in dim.axes:
                if taken.setdefault(axis, factor) != factor:
                    raise RuleViolationError(
                        f"two parameters use {axis} on {names[taken[axis]]} and on {dim.name}"
                    )
    if pointwise:
        for factors, operand in zip(rule.inputs, operands, strict=True):
            for factor, dim in zip(factors, operand.spec.dims, strict=True):
                if not operand.stationary and dim.axes and axes.get(factor, dim.axes) == ():
                    raise RuleViolationError(
                        f"a parameter is replicated over {'+'.join(dim.axes)} where the activation "
                        f"is sharded on {dim.name}: each rank would use the wrong part of it"
                    )
    return axes


def _carried(
    rule: Rule, operands: Sequence[Operand], taken: set[str]
) -> tuple[set[int], tuple[str, ...], str]:
    """Return which operands may stay Partial, over which axes, and what is owed."""
    for group in rule.linear:
        owed = {(operands[i].spec.partial, operands[i].spec.reduce) for i in group}
        if len(owed) != 1:
            continue
        axes, reduce = next(iter(owed))
        others = [o.spec for i, o in enumerate(operands) if i not in group]
        if (
            axes
            and reduce == "sum"
            and not set(axes) & taken
            and not any(set(axes) & set(spec.partial) for spec in others)
        ):
            if rule.constant:
                return set(group), (), "sum"
            return set(group), axes, reduce
    return set(), (), "sum"
