# SPDX-License-Identifier: MIT
"""Fixes for placement errors: candidates are tried and only those that type-check are offered."""

from collections.abc import Iterator, Sequence

import attrs

from .fix import Fix, annotate, move
from .infer import Operand, RuleViolationError, infer
from .line import Line
from .mesh import Mesh
from .program import Var
from .redistribute import hops
from .reduction import SUM
from .rule import Rule
from .spec import Spec


def fixes(rule: Rule, operands: Sequence[Var], mesh: Mesh, line: Line, most: int = 3) -> list[Fix]:
    """Return up to `most` changes of one operand's placement under which the op type-checks."""
    found: list[Fix] = []
    # A stored value's annotation is the likelier slip, and the fix that costs no communication.
    order = sorted(range(len(operands)), key=lambda i: operands[i].kind not in ("param", "cache"))
    for index in order:
        var = operands[index]
        for spec in _candidates(rule, index, operands):
            tried = [other.spec for other in operands]
            tried[index] = spec
            if spec != var.spec and reachable(var, spec) and legal(rule, tried, operands, mesh):
                action = (
                    annotate(var.name, spec, var.line)
                    if var.kind in ("param", "cache")
                    else move(var.name.rstrip("_0123456789") or var.name, spec, line)
                )
                if action not in found:
                    found.append(action)
    return found[:most] or _advice(operands)


def _advice(operands: Sequence[Var]) -> list[Fix]:
    """Return what else to do with operands that no op takes as they are."""
    found = []
    for var in operands:
        if var.spec.varying:
            found.append(Fix(f"read {var.name} in a local region that declares '{var.spec}'"))
        for dim in var.spec.dims:
            if dim.segments and dim.axes:
                taken = ", ".join(dim.segments)
                found.append(Fix(f"take {var.name} apart first: {taken} = parts({var.name}, ...)"))
    return found


def reachable(var: Var, spec: Spec) -> bool:
    """Return whether an author can give a value this placement: annotate it, or move it there."""
    if var.kind in ("param", "cache"):
        return True
    try:
        hops(var.spec, spec)
    except RuleViolationError:
        return False
    return True


def legal(rule: Rule, specs: Sequence[Spec], operands: Sequence[Var], mesh: Mesh) -> bool:
    """Return whether the op type-checks with these placements of its operands."""
    seen = [
        Operand(spec, var.kind in ("param", "cache"))
        for spec, var in zip(specs, operands, strict=True)
    ]
    try:
        found = infer(rule, seen, mesh)
        for operand, target in zip(seen, found.targets, strict=True):
            if operand.stationary and operand.spec.dims != target.dims:
                return False
            hops(operand.spec, target)
    except RuleViolationError:
        return False
    return True


def _candidates(rule: Rule, index: int, operands: Sequence[Var]) -> Iterator[Spec]:
    """Yield placements like those of the other operands, then the replicated one."""
    spec = operands[index].spec
    axes: dict[str, tuple[str, ...]] = {}
    for other, (factors, var) in enumerate(zip(rule.inputs, operands, strict=True)):
        if other != index:
            for factor, dim in zip(factors, var.spec.dims, strict=True):
                axes.setdefault(factor, dim.axes)
    yield attrs.evolve(
        spec,
        partial=(),
        reduce=SUM,
        dims=tuple(
            attrs.evolve(dim, axes=axes.get(factor, ()))
            for factor, dim in zip(rule.inputs[index], spec.dims, strict=True)
        ),
    )
    yield attrs.evolve(spec.sharded({}), partial=(), reduce=SUM)
