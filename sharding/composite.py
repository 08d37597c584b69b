# SPDX-License-Identifier: MIT
"""The composites: which steps one call can compute, and what that call is given.

A composite is legal by the form of its parts alone; `ops/composite.py` says the same of the calls
in the emitted text, as definitions that `recheck` follows.
"""

from collections.abc import Callable
from typing import Any

import attrs

from .program import Apply, Code, Composite, Project, Step, Var


@attrs.frozen
class Stored:
    """A pack as an argument of a call."""

    name: str


@attrs.frozen
class Columns:
    """A value whose dims after the first are side by side, as a product with a pack takes it."""

    var: Var


@attrs.frozen
class Joint:
    """The results of one projection as it leaves them: side by side in one tensor."""

    vars: tuple[Var, ...]


Parts = tuple[Step, ...]
Arguments = tuple[Any, ...]


def arguments(composite: Composite) -> Arguments | None:
    """Return what the call of a composite is given, or None if its parts do not make it."""
    form = FORMS.get(composite.name)
    return form(composite.parts) if form else None


def alone(code: Code, composite: Composite) -> bool:
    """Return whether nothing else reads what the parts hand to each other, nor stands between.

    All but the last are computed later than where they stand, so they may read no cache; what
    they take side by side must be one projection's results, read by nothing else.
    """
    parts = {id(part) for part in composite.parts}
    order = [id(step) for step in code.steps if id(step) in parts]
    if len(order) != len(composite.parts) or order[-1] != id(composite.last):
        return False
    hidden = [var for part in composite.parts[:-1] for var in part.results]
    if any(var.kind == "cache" for part in composite.parts[:-1] for var in part.operands):
        return False
    for arg in arguments(composite) or ():
        if isinstance(arg, Joint):
            made = (s.results for s in code.steps if isinstance(s, Project))
            if arg.vars not in made:
                return False
            hidden += arg.vars
    ends = {*code.results, *code.cache_results}
    readers = code.readers
    return not any(
        var in ends or any(id(step) not in parts for step in readers.get(var, ())) for var in hidden
    )


def _norm_linear(parts: Parts) -> Arguments | None:
    match parts:
        case (Apply() as norm, Project() as project) if _norms(norm):
            if project.operands[0] is norm.results[0] and len(norm.operands[0].spec.dims) == 2:
                x, weight, eps = norm.args
                return (x, weight, Stored(project.pack), eps)
    return None


def _norm_gate_up(parts: Parts) -> Arguments | None:
    match parts:
        case (_, Project() as project, Apply() as gate):
            if gate.op.packed == "silu_mul_packed" and gate.operands == project.results:
                return _norm_linear(parts[:2])
    return None


def _linear_add(parts: Parts) -> Arguments | None:
    match parts:
        case (Project(applies=(one,)) as project, Apply() as add) if add.op.name == "add":
            (update,) = one.results
            rest = [var for var in add.operands if var is not update]
            if len(rest) == 1 and sums(add) and len(update.spec.dims) == 2:
                return (Columns(project.operands[0]), Stored(project.pack), rest[0])
    return None


def _rope_attention(parts: Parts) -> Arguments | None:
    match parts:
        case (*norms, Apply() as turn_q, Apply() as turn_k, Apply() as attention):
            pass
        case _:
            return None
    q, k, v, kv, batch, scale, *window = attention.args
    if attention.op.name != "paged_attention" or attention.share():
        return None
    for turn, turned in ((turn_q, q), (turn_k, k)):
        if turn.op.name != "rope" or turn.results != (turned,):
            return None
    if turn_q.args[1:] != turn_k.args[1:]:
        return None
    q, k = turn_q.args[0], turn_k.args[0]
    weights: tuple[Var | None, Var | None] = (None, None)
    eps = 0.0
    if norms:
        match norms:
            case [Apply() as norm_q, Apply() as norm_k] if _norms(norm_q) and _norms(norm_k):
                if (norm_q.results, norm_k.results) != ((q,), (k,)):
                    return None
                (q, weight_q, eps), (k, weight_k, other) = norm_q.args, norm_k.args
                if eps != other:
                    return None
                weights = (weight_q, weight_k)
            case _:
                return None
    span = window[0] if window else 0
    return (Joint((q, k, v)), *weights, *turn_q.args[1:], kv, batch, scale, span, eps)


def _norms(step: Step) -> bool:
    """Return whether a step is a norm by a stored weight of the values' own dtype."""
    if not isinstance(step, Apply) or step.op.name != "rms_norm":
        return False
    x, weight = step.operands
    return weight.kind == "param" and weight.dtype == x.dtype


def sums(step: Apply) -> bool:
    """Return whether a step adds two values of one type of which nothing is owed."""
    left, right = step.operands[:2]
    return (
        step.rule.inputs[0] == step.rule.inputs[1]
        and (left.spec.dims, left.sizes, left.dtype) == (right.spec.dims, right.sizes, right.dtype)
        and not left.spec.partial
        and not right.spec.partial
    )


FORMS: dict[str, Callable[[Parts], Arguments | None]] = {
    "linear_add": _linear_add,
    "norm_gate_up": _norm_gate_up,
    "norm_linear": _norm_linear,
    "rope_attention": _rope_attention,
}
