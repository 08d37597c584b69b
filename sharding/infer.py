# SPDX-License-Identifier: MIT
"""Which placements an op's operands must move to, and which its results then have."""

from collections.abc import Sequence

import attrs

from .mesh import Mesh
from .reduction import LSE, SUM, SUM1, weakest
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
    reduce: str = SUM

    def result(self, factors: Sequence[str], names: Sequence[str]) -> Spec:
        """Return the placement of a result with these factors and dim names."""
        dims = tuple(
            Dim(name, self.axes.get(factor, ()))
            for factor, name in zip(factors, names, strict=True)
        )
        partial = tuple(a for a in self.partial if all(a not in dim.axes for dim in dims))
        return Spec(dims, partial, self.reduce if partial else SUM)


def infer(
    rule: Rule, operands: Sequence[Operand], mesh: Mesh, wanted: Spec | None = None
) -> Inference:
    """Choose where operands meet: stationary ones stay, activations move, Partial is lazy.

    `wanted` is the placement that the result is pinned to next, if that is known: a sum that must
    be paid here is then paid into it (a reduce-scatter, not an all-reduce and a slice).

    Raises:
        RuleViolationError: placements of two operands collide and neither may move.
    """
    for operand in operands:
        if operand.spec.varying:
            raise RuleViolationError(
                f"'{operand.spec}' has no global meaning: only a local region that declares it "
                f"may read it"
            )
    names = {
        factor: dim.name
        for factors, operand in zip(rule.inputs, operands, strict=True)
        for factor, dim in zip(factors, operand.spec.dims, strict=True)
    }
    axes = _stationary_axes(rule, operands, names, mesh)
    taken = {axis: factor for factor, used in axes.items() for axis in used}
    fixed = set(taken)
    for factors, operand in zip(rule.inputs, operands, strict=True):
        if operand.stationary:
            continue
        for factor, dim in zip(factors, operand.spec.dims, strict=True):
            used = _shards(rule, mesh, factor, dim)
            if factor in axes:
                continue
            for place, axis in enumerate(used):
                if axis not in taken or _together(rule, mesh, axis, factor, taken[axis]):
                    continue
                if axis not in fixed:
                    raise RuleViolationError(
                        f"one operand is sharded over {axis} on {dim.name}, another on "
                        f"{names[taken[axis]]}: rank i would combine unrelated shards"
                    )
                # A parameter owns this axis: the activation is gathered, of its own requests.
                used = tuple(axis for axis in used[:place] if axis in mesh.requests)
                break
            if not used:
                continue
            axes[factor] = used
            taken.update(dict.fromkeys(used, factor))
    spread = mesh.ordered({a for f in rule.rows for a in axes.get(f, ())} & set(mesh.requests))
    for factor in rule.rows & set(names) if spread else ():
        rest = tuple(axis for axis in axes.get(factor, ()) if axis not in spread)
        axes[factor] = (*spread, *rest)
    kept, carried, kind = _carried(rule, operands, set(taken))
    if wanted is not None:
        paid = {
            axis
            for i, operand in enumerate(operands)
            for axis in operand.spec.partial
            if axis not in kept.get(i, ())
        }
        for factor, dim in zip(rule.outputs[0], wanted.dims, strict=True):
            have = axes.get(factor, ())
            more = set(dim.axes[len(have) :])
            below = factor in rule.shardable and dim.axes[: len(have)] == have
            if below and more & paid and not more & set(taken):
                axes[factor] = dim.axes
                taken.update(dict.fromkeys(more, factor))
        kept, carried, kind = _carried(rule, operands, set(taken))
    targets = tuple(
        attrs.evolve(
            operand.spec,
            dims=tuple(
                attrs.evolve(dim, axes=axes.get(factor, ()))
                for factor, dim in zip(factors, operand.spec.dims, strict=True)
            ),
            partial=kept.get(index, ()),
            reduce=_reduce(operand, kept.get(index, ())),
        )
        for index, (factors, operand) in enumerate(zip(rule.inputs, operands, strict=True))
    )
    if rule.parts:
        axes.update(dict.fromkeys(rule.parts, axes.pop(rule.inputs[0][-1], ())))
    contracted: set[str] = set()
    results = {factor for factors in rule.outputs for factor in factors}
    for factor, used in axes.items():
        if factor not in results:
            # A contracted factor: each rank has reduced its own shard only.
            contracted.update(
                axis for axis in used if axis not in spread or factor not in rule.rows
            )
    merged = {axis for factor in rule.merges for axis in axes.get(factor, ())}
    if merged and (contracted or carried):
        raise RuleViolationError("a sum and a merge by softmax weights would be owed by one value")
    if merged:
        return Inference(targets, axes, mesh.ordered(merged), LSE)
    kinds = [*([rule.reduce] if contracted else []), *([kind] if carried else [])]
    reduce = weakest(*kinds) if kinds else SUM
    if reduce is None:
        raise RuleViolationError(f"a {kind} and a {rule.reduce} would be owed by one value")
    return Inference(targets, axes, mesh.ordered(contracted | set(carried)), reduce)


def _reduce(operand: Operand, kept: tuple[str, ...]) -> str:
    """Return the kind that an operand owes over `kept`: a stored one joins others' sum there."""
    if not kept:
        return SUM
    return operand.spec.reduce if operand.spec.partial else SUM1


def _shards(rule: Rule, mesh: Mesh, factor: str, dim: Dim) -> tuple[str, ...]:
    """Return the axes of a dim over which the op can run on shards of it."""
    if factor in rule.shardable | rule.merges:
        return dim.axes
    return tuple(axis for axis in dim.axes if _together(rule, mesh, axis, factor))


def _together(rule: Rule, mesh: Mesh, axis: str, *factors: str) -> bool:
    """Return whether these factors may be sharded over one axis, since requests are."""
    return axis in mesh.requests and rule.rows.issuperset(factors)


def _stationary_axes(
    rule: Rule, operands: Sequence[Operand], names: dict[str, str], mesh: Mesh
) -> dict[str, tuple[str, ...]]:
    axes: dict[str, tuple[str, ...]] = {}
    taken: dict[str, str] = {}
    pointwise = set(rule.inputs[0]) == set(rule.outputs[0]) and len(rule.linear) >= 1
    for factors, operand in zip(rule.inputs, operands, strict=True):
        if not operand.stationary:
            continue
        for factor, dim in zip(factors, operand.spec.dims, strict=True):
            if dim.axes != _shards(rule, mesh, factor, dim):
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
                other = taken.setdefault(axis, factor)
                if other != factor and not _together(rule, mesh, axis, factor, other):
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
) -> tuple[dict[int, tuple[str, ...]], tuple[str, ...], str]:
    """Return over which axes which operands may stay Partial, and what the results owe then.

    What some of a linear group owe and others do not is paid first; but a stored value, a bias,
    joins the sum that the others owe: one rank adds it.
    """
    for group in (*rule.linear, *rule.alone):
        owing = [operands[i].spec for i in group if not operands[i].stationary]
        if not owing or (len(owing) < len(group) and group not in rule.linear):
            continue
        others = {a for i, o in enumerate(operands) if i not in group for a in o.spec.partial}
        axes = tuple(a for a in owing[0].partial if all(a in spec.partial for spec in owing))
        kind = rule.kept(group, [_reduce(operands[i], axes) for i in group])
        if not axes or kind is None or set(axes) & (taken | others):
            continue
        if rule.constant:
            return dict.fromkeys(group, axes), (), SUM
        return dict.fromkeys(group, axes), axes, kind
    return {}, (), SUM
