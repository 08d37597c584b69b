# SPDX-License-Identifier: MIT
"""Layouts: a mesh, and what it changes in the placements that the model's annotations give."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from .error import AnnotationError
from .mesh import Mesh, parse_mesh
from .spec import Dim, Spec, direct_sums, parse_spec


def _mesh(value: str | Mesh) -> Mesh:
    return parse_mesh(value) if isinstance(value, str) else value


def _axes(text: str) -> tuple[str, ...]:
    return tuple(axis for axis in text.split("+") if axis)


def _frozen(value: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({direct_sums(name): text for name, text in value.items()})


@attrs.frozen
class Layout:
    """How a model is spread over ranks.

    `place` overrides, by dim name, the axes of parameters and caches (`{"k": "kv", "g": "rep"}`;
    an empty string replicates).  `types` overrides, by alias name, the boundary types of the
    model's functions (`{"Hidden": "n@tp d"}` is sequence parallelism).  `requests` names the axes
    along which ranks serve different requests (data parallelism): every ragged dim, which counts
    tokens, rows or cache blocks of requests, is sharded over them before all else.  `stages` names
    the axis of a pipeline: ranks along it run different layers and hand on what these carry.

    Raises:
        MeshError: the mesh has no such axis.
        AnnotationError: something is placed on the axis of a pipeline.
    """

    mesh: Mesh = attrs.field(default=parse_mesh("tp=1"), converter=_mesh)
    place: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen)
    types: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen)
    requests: str = ""
    stages: str = ""

    def __attrs_post_init__(self) -> None:
        requests, stages = (self.mesh.expand(_axes(t)) for t in (self.requests, self.stages))
        object.__setattr__(self, "mesh", attrs.evolve(self.mesh, requests=requests, stages=stages))
        placed = {f"dim {dim!r}": _axes(axes) for dim, axes in self.place.items()}
        placed |= {f"type {name}": parse_spec(text).axes for name, text in self.types.items()}
        placed["requests"] = _axes(self.requests)
        for what, axes in placed.items() if stages else ():
            if both := set(self.mesh.expand(axes)) & set(stages):
                raise AnnotationError(
                    f"layout places {what} on {'+'.join(sorted(both))}, the axis of its pipeline: "
                    f"stages run other layers and share no value; place it on another axis"
                )

    def but(self, **changes: Any) -> "Layout":
        """Return this layout with some fields replaced; `place` and `types` are merged."""
        for name in ("place", "types"):
            if name in changes:
                changes[name] = {**getattr(self, name), **changes[name]}
        return attrs.evolve(self, **changes)

    @property
    def token_multiple(self) -> int:
        """What a group's tokens must be a multiple of: boundary types may shard them."""
        dims = [dim for text in self.types.values() for dim in parse_spec(text).dims]
        own = [set(self.mesh.expand(dim.axes)) for dim in dims if dim.name == "n"]
        requests = set(self.mesh.requests)
        return math.lcm(*(self.mesh.size(tuple(axes - requests)) for axes in own))

    def stationary(self, spec: Spec) -> Spec:
        """Return the placement of a parameter or cache whose annotation is `spec`."""
        return self.resolve(attrs.evolve(spec, dims=tuple(self._placed(dim) for dim in spec.dims)))

    def boundary(self, alias: str | None, spec: Spec) -> Spec:
        """Return the placement that a boundary annotated `spec`, under `alias`, asks for."""
        if alias is not None and alias in self.types:
            override = parse_spec(self.types[alias])
            if override.names != spec.names:
                raise AnnotationError(
                    f"layout type {alias}={self.types[alias]!r} must keep the dims of {str(spec)!r}"
                )
            spec = attrs.evolve(
                override,
                dims=tuple(
                    attrs.evolve(new, ragged=new.ragged or old.ragged)
                    for old, new in zip(spec.dims, override.dims, strict=True)
                ),
            )
        return self.resolve(spec)

    def resolve(self, spec: Spec) -> Spec:
        """Return `spec` with every axis written as mesh factors; size-1 axes vanish.

        What is ragged is spread over the axes of `requests` first.
        """
        dims = tuple(self._spread(dim) for dim in spec.dims)
        partial = self.mesh.ordered(set(self.mesh.expand(spec.partial)))
        return attrs.evolve(spec, dims=dims, partial=partial)

    def _spread(self, dim: Dim) -> Dim:
        axes = self.mesh.expand(dim.axes)
        if dim.ragged:
            requests = self.mesh.requests
            axes = (*requests, *(axis for axis in axes if axis not in requests))
        return attrs.evolve(dim, axes=axes, ragged=False)

    def _placed(self, dim: Dim) -> Dim:
        if dim.name not in self.place:
            return dim
        return attrs.evolve(dim, axes=_axes(self.place[dim.name]))
