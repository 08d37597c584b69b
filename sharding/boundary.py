# SPDX-License-Identifier: MIT
"""Boundaries: `@spmd` functions, whose annotated arguments and results have pinned placements."""

import inspect
import sys
import typing
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar, overload

import attrs

from .budget import Budget, parse_budget
from .spec import Placement
from .trace import graph_of
from .tree import annotations, is_module
from .value import Value

P = ParamSpec("P")
R = TypeVar("R")


class Function:
    """An `@spmd` function: its name, annotations with their alias names, and budget."""

    def __init__(self, run: Callable[..., Any], budget: Budget | None) -> None:
        self.run, self.budget = run, budget

    @property
    def name(self) -> str:
        return self.run.__name__

    @cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.run)

    @cached_property
    def annotations(self) -> dict[str, Any]:
        return inspect.get_annotations(self.run, eval_str=True)

    def pin(self, annotation: Any, value: Any) -> Any:
        """Return `value` with each traced leaf pinned to what `annotation` says of it."""
        return _pin(annotation, value, self.run.__globals__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        graph = graph_of((args, kwargs))
        if graph is None:
            return self.run(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        with graph.region(self.name, self.budget):
            for name, value in bound.arguments.items():
                bound.arguments[name] = self.pin(self.annotations.get(name), value)
            result = self.run(*bound.args, **bound.kwargs)
            return self.pin(self.annotations.get("return"), result)


def _pin(annotation: Any, value: Any, names: dict[str, Any]) -> Any:
    if isinstance(value, Value):
        if isinstance(annotation, Placement):
            return value.pinned(annotation, _alias(annotation, names))
        return value
    if isinstance(value, tuple) and typing.get_origin(annotation) is tuple:
        kinds = typing.get_args(annotation)
        if len(kinds) == len(value) and Ellipsis not in kinds:
            return tuple(_pin(k, v, names) for k, v in zip(kinds, value, strict=True))
        return value
    if is_module(value) and isinstance(annotation, type) and isinstance(value, annotation):
        scope = vars(sys.modules[annotation.__module__])
        module: Any = value
        return attrs.evolve(
            module,
            **{
                name: _pin(kind, getattr(value, name), scope)
                for name, kind in annotations(annotation).items()
            },
        )
    return value


def _alias(placement: Placement, names: dict[str, Any]) -> str | None:
    for name, value in names.items():
        if value is placement:
            return name
    return None


@overload
def spmd(run: Callable[P, R]) -> Callable[P, R]: ...
@overload
def spmd(*, budget: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def spmd(run: Any = None, *, budget: str | None = None) -> Any:
    """Mark a pure function of named-dim tensors as a boundary where placements are pinned.

    On plain tensors it is the function itself.
    """
    limit = parse_budget(budget) if budget else None

    def mark(run: Callable[P, R]) -> Callable[P, R]:
        function = Function(run, limit)

        @wraps(run)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = function(*args, **kwargs)
            return result

        return call

    return mark if run is None else mark(run)
