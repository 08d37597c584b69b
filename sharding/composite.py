# SPDX-License-Identifier: MIT
"""The composites: which steps one call can compute, and what that call is given.

A composite is legal by the form of its parts alone; `ops/composite.py` says the same of the calls
in the emitted text, as definitions that `recheck` follows.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs

from .program import Apply, Code, Composite, Move, Project, Step, Var
from .reduction import SUMS


@attrs.frozen
class Stored:
    """A pack as an argument of a call."""

    name: str


@attrs.frozen
class Columns:
    """A value whose dims after the first are side by side, as a product with a pack takes it."""

    var: Var


@attrs.frozen
class Over:
    """The caller of collectives, and the group of ranks that they are over."""

    axes: tuple[str, ...]


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
    bundled = [pair for pair in pairwise(code.steps) if _joins(pair[1])]
    if any(id(step) in parts for pair in bundled for step in pair):
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


def _joins(step: Step) -> bool:
    return isinstance(step, Move) and step.joins


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


def _norm_moe_add(parts: Parts) -> Arguments | None:
    match parts:
        case (Apply() as norm, Project() as router, Apply() as route, Apply() as experts, add):
            pass
        case _:
            return None
    names = (route.op.name, experts.op.name)
    if names != ("softmax_router", "experts") or _norm_linear((norm, router)) is None:
        return None
    x, weight, eps = norm.args
    if len(route.args) != 3 or len(experts.args) != 6 or route.operands != router.results:
        return None
    if experts.args[:3] != (norm.results[0], *route.results):
        return None
    adds = isinstance(add, Apply) and add.op.name == "add" and sums(add)
    if not adds or set(add.operands) != {x, experts.results[0]}:
        return None
    return (x, weight, Stored(router.pack), *experts.args[3:], *route.args[1:], eps)


def _all_reduce_add(parts: Parts) -> Arguments | None:
    match parts:
        case (Move(kind="all_reduce") as move, Apply() as add) if add.op.name == "add":
            rest = [var for var in add.operands if var is not move.result]
            if move.operand.spec.reduce in SUMS and len(rest) == 1 and sums(add):
                return (Over(move.axes), move.operand, rest[0])
    return None


def _all_gather_linear(parts: Parts) -> Arguments | None:
    match parts:
        case (Move(kind="all_gather", dim=0) as move, Project() as project):
            if project.operands[0] is move.result and len(move.result.spec.dims) == 2:
                return (Over(move.axes), move.operand, Stored(project.pack))
    return None


def _linear_reduce_scatter(parts: Parts) -> Arguments | None:
    match parts:
        case (Project(applies=(one,)) as project, Move(kind="reduce_scatter", dim=0) as move):
            if move.operand is one.results[0] and len(move.result.spec.dims) == 2:
                return (Over(move.axes), Columns(project.operands[0]), Stored(project.pack))
    return None


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
    "all_gather_linear": _all_gather_linear,
    "all_reduce_add": _all_reduce_add,
    "linear_add": _linear_add,
    "linear_reduce_scatter": _linear_reduce_scatter,
    "norm_gate_up": _norm_gate_up,
    "norm_linear": _norm_linear,
    "norm_moe_add": _norm_moe_add,
    "rope_attention": _rope_attention,
}
