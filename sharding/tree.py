# SPDX-License-Identifier: MIT
"""Trees: frozen classes of tensors (`@module`), and how to declare, walk and rebuild them."""

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, dataclass_transform

import attrs
import torch

from .error import AnnotationError
from .host import HostInt, Joined
from .spec import Placement, Spec

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def module(cls: type[T]) -> type[T]:
    """Make a frozen class whose fields are placed tensors, modules, or tuples of modules."""
    return attrs.frozen(cls, kw_only=True, eq=False)


@attrs.frozen(eq=False)
class Declared:
    """A tensor that a model declares: its annotation, global sizes (None: known at run time)."""

    placement: Placement
    sizes: tuple[int | None, ...]
    dtype: torch.dtype

    @property
    def spec(self) -> Spec:
        return self.placement.spec


@cache
def annotations(cls: Any) -> Mapping[str, Any]:
    """Return the evaluated field annotations of a module class, those it inherits first."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        found.update(inspect.get_annotations(each, eval_str=True))
    return found


def declare(
    cls: type[T],
    sizes: Mapping[str, int | None],
    dtype: torch.dtype,
    present: Collection[str] = (),
    **given: Any,
) -> T:
    """Build a `cls` of `Declared` leaves; fields that are `given` are taken as they are.

    A dim's size is `sizes[name]`; a field `tuple[M, ...]` has `sizes[field]` equal elements; a
    field that may be None is None unless its name is in `present`.

    Raises:
        AnnotationError: a dim has no size, or a field is neither placed tensor nor module.
    """

    def build(name: str, kind: Any) -> Any:
        if isinstance(kind, Placement):
            if kind.optional and name not in present:
                return None
            parts = {dim.name: dim.segments or (dim.name,) for dim in kind.spec.dims}
            missing = [each for names in parts.values() for each in names if each not in sizes]
            if missing:
                raise AnnotationError(
                    f"{kind.line}: no size for dim {missing[0]!r} of {cls.__name__}.{name}; "
                    f"sizes are given for {', '.join(sorted(sizes))}"
                )
            shape = tuple(_size(names, sizes) for names in parts.values())
            return Declared(kind, shape, kind.dtype or dtype)
        if kind is int:
            return HostInt(f"{cls.__name__}.{name}")
        if isinstance(kind, type) and attrs.has(kind):
            return declare(kind, sizes, dtype, present)
        if typing.get_origin(kind) is tuple:
            # Equal elements share one object: what is done once for a layer is not done again.
            count = sizes.get(name)
            if count is None:
                raise AnnotationError(f"{cls.__name__}.{name}: sizes lack the count {name!r}")
            return (build(name, typing.get_args(kind)[0]),) * count
        if isinstance(kind, types.UnionType):
            members = [member for member in typing.get_args(kind) if member is not types.NoneType]
            return build(name, members[0]) if name in present else None
        raise AnnotationError(f"{cls.__name__}.{name}: {kind!r} is no placed tensor or module")

    kinds: Any = cls
    fields = annotations(kinds)
    return cls(
        **{
            name: given[name] if name in given else build(name, kind)
            for name, kind in fields.items()
        }
    )


def _size(names: tuple[str, ...], sizes: Mapping[str, int | None]) -> int | None:
    """Return the size of a dim, or of the direct sum of several."""
    if len(names) == 1:
        return sizes[names[0]]
    return Joined(tuple(sizes[name] or 0 for name in names))


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, leaf) in field order; None and a host integer are empty trees."""
    if tree is None or isinstance(tree, (int, HostInt)):
        return
    if isinstance(tree, (tuple, list)):
        for index, item in enumerate(tree):
            yield from leaves(item, f"{path}.{index}" if path else str(index))
    elif is_module(tree):
        for field in attrs.fields(type(tree)):
            below = f"{path}.{field.name}" if path else field.name
            yield from leaves(getattr(tree, field.name), below)
    else:
        yield path, tree


def map_leaves(function: Callable[[str, Any], Any], tree: Any, path: str = "") -> Any:
    """Return `tree` with each leaf replaced by `function(path, leaf)`."""
    if tree is None or isinstance(tree, (int, HostInt)):
        return tree
    if isinstance(tree, (tuple, list)):
        items = (
            map_leaves(function, item, f"{path}.{i}" if path else str(i))
            for i, item in enumerate(tree)
        )
        return type(tree)(items)
    if is_module(tree):
        return type(tree)(
            **{
                field.name: map_leaves(
                    function,
                    getattr(tree, field.name),
                    f"{path}.{field.name}" if path else field.name,
                )
                for field in attrs.fields(type(tree))
            }
        )
    return function(path, tree)


def is_module(tree: Any) -> bool:
    """Return whether `tree` is an instance of an attrs class that holds leaves."""
    return attrs.has(type(tree)) and not isinstance(tree, Declared)
