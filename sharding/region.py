# SPDX-License-Identifier: MIT
"""`local`: a region of per-rank code, whose operands and results have the types it declares.

Ops of a model say how they spread by a rule, and where they run follows.  A region says where it
runs, and does there what no rule describes: it is handed what a rank holds, and is told which rank
that is.  Called on whole tensors, as rank 0 of 1, the same function says what the region means.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs
import torch
from torch import Tensor

from .error import AnnotationError, VerificationError
from .infer import Inference
from .line import Line, author_line
from .mesh import Mesh, parse_mesh
from .op import Op, dispatch
from .reduction import SUM, SUM1, SUMS, reduced
from .rule import Rule
from .spec import Dim, Spec, parse_spec

P = ParamSpec("P")
R = TypeVar("R")


@attrs.frozen
class Region:
    """Declared types of a region's operands and results, and the axis along which it is told."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    over: str
    line: Line

    def told(self, mesh: Mesh) -> tuple[str, ...]:
        """Return the axes along which the function is told its place, if there are any."""
        return mesh.expand((self.over,)) if self.over else ()

    def targets(self, mesh: Mesh, specs: Sequence[Spec]) -> tuple[Spec, ...]:
        """Return the placements in which operands of these dims are taken."""
        return tuple(
            resolved(declared, mesh, spec.names)
            for declared, spec in zip(self.inputs, specs, strict=True)
        )

    def results(self, mesh: Mesh, names: Sequence[Sequence[str]]) -> tuple[Spec, ...]:
        """Return the placements of results with these dims."""
        pairs = zip(self.outputs, names, strict=True)
        return tuple(resolved(declared, mesh, dims) for declared, dims in pairs)


def local(
    text: str,
    *,
    over: str = "",
    sizes: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function on what a rank holds a region, `@local("n d@tp, d@tp -> n !tp")`.

    Operands are moved to the declared types, results have them: nothing is inferred.  With `over`
    the function also takes, as its last two arguments, the rank's place along that axis and the
    number of ranks, by default 0 and 1.  `sizes` are those of dims that no operand has.  A result
    that is Varying (`?tp`) may be read by a region that declares it, and by nothing else.

    Raises:
        AnnotationError: a type is not in the grammar, a dim has no size, or a default is missing.
    """
    line = author_line()
    left, arrow, right = text.partition("->")
    if not arrow:
        raise AnnotationError(f"{line}: local region {text!r} has no '->'")
    inputs, outputs = (
        tuple(parse_spec(part) for part in side.split(",")) for side in (left, right)
    )
    given = dict(sizes or {})
    known = {name for spec in inputs for name in spec.names} | set(given)
    for name in (name for spec in outputs for name in spec.names):
        if name not in known:
            raise AnnotationError(
                f"{line}: no operand of local region {text!r} has dim {name!r}; give sizes={{"
                f"{name!r}: ...}}"
            )
    region = Region(inputs, outputs, over, line)
    names = [tuple(spec.names for spec in side) for side in (inputs, outputs)]
    rule = Rule(names[0], names[1], frozenset())

    def mark(run: Callable[P, R]) -> Callable[P, R]:
        defaults = [p.default for p in inspect.signature(run).parameters.values()][-2:]
        if over and defaults != [0, 1]:
            raise AnnotationError(
                f"{line}: {run.__name__} is told its place over {over}: end its arguments with "
                f"'place: int = 0, ways: int = 1'"
            )
        op = Op(
            run.__name__,
            rule,
            run,
            sizes=lambda known, args: given,
            dtype=lambda first: dtype or first,
            region=region,
        )

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = dispatch(op, args, kwargs)
            return result

        call.__name__, call.__module__, call.__doc__ = run.__name__, run.__module__, run.__doc__
        call.op = op  # type: ignore[attr-defined]
        return call

    return mark


def placed(region: Region, specs: Sequence[Spec], rule: Rule, mesh: Mesh) -> Inference:
    """Return where a region takes its operands."""
    targets = region.targets(mesh, specs)
    axes = {
        factor: dim.axes
        for factors, spec in zip(rule.inputs, targets, strict=True)
        for factor, dim in zip(factors, spec.dims, strict=True)
    }
    return Inference(targets, axes, ())


def resolved(spec: Spec, mesh: Mesh, names: Sequence[str]) -> Spec:
    """Return a declared type on a mesh, of dims of these names; size-1 axes vanish."""
    dims = []
    for dim, name in zip(spec.dims, names, strict=True):
        axes = mesh.expand(dim.axes)
        if dim.ragged:
            axes = (*mesh.requests, *(axis for axis in axes if axis not in mesh.requests))
        dims.append(Dim(name, axes))
    partial = mesh.ordered(set(mesh.expand(spec.partial)))
    varying = mesh.ordered(set(mesh.expand(spec.varying)))
    return Spec(tuple(dims), partial, spec.reduce if partial else SUM, varying)


def prove(op: Op, dtypes: Sequence[torch.dtype], static: Sequence[Any], ways: int) -> bool:
    """Run a region on each rank of a small mesh, and hold it to what it means on whole tensors.

    Operands are random, `dtypes` theirs (floating ones are widened to float64), `static` the
    arguments after them.  Returns False where a type is Varying: only a whole model can be held.

    Raises:
        VerificationError: the results are not of the declared types, or denote another value.
    """
    region: Region = op.region
    specs = (*region.inputs, *region.outputs)
    if any(spec.varying for spec in specs):
        return False
    names = dict.fromkeys(
        axis for spec in specs for axis in (*spec.axes, *([region.over] if region.over else []))
    )
    mesh = parse_mesh(" ".join(f"{name}={ways}" for name in names) or "tp=1")
    size = 6 ** max(1, len(names)) * 2
    whole = [
        torch.randn([size] * len(spec.dims)).double()
        if dtype.is_floating_point
        else torch.randint(0, size, [size] * len(spec.dims)).to(dtype)
        for spec, dtype in zip(region.inputs, dtypes, strict=True)
    ]
    shards = [_parts(x, spec, mesh) for x, spec in zip(whole, region.inputs, strict=True)]
    made = []
    for rank in range(mesh.num_ranks):
        told = (mesh.index(rank, region.told(mesh)), ways) if region.over else ()
        made.append(_flat(op.run(*(parts[rank] for parts in shards), *static, *told)))
    expected = _flat(op.run(*whole, *static))
    for index, (spec, wanted) in enumerate(zip(region.outputs, expected, strict=True)):
        got = _joined([each[index] for each in made], spec, mesh)
        if got.shape != wanted.shape or not torch.allclose(got, wanted, equal_nan=True):
            raise VerificationError(
                f"{region.line}: on {mesh} result {index} of local region {op.name} is not what it "
                f"is on one device, read as '{spec}'"
            )
    return True


def _flat(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _parts(x: Tensor, spec: Spec, mesh: Mesh) -> list[Tensor]:
    """Return what each rank holds of `x`; summands are random."""
    parts = []
    generator = torch.Generator().manual_seed(7)
    for rank in range(mesh.num_ranks):
        part = x
        for index, dim in enumerate(spec.dims):
            part = part.chunk(mesh.size(dim.axes), index)[mesh.index(rank, dim.axes)]
        parts.append(part)
    if not spec.partial:
        return parts
    if spec.reduce not in SUMS:
        raise VerificationError(f"a region that takes a {spec.reduce} is not tried: pay it first")
    for group in mesh.groups(spec.partial):
        total = parts[group[0]]
        owner = torch.randint(0, len(group), total.shape, generator=generator)
        for place, rank in enumerate(group):
            if spec.reduce == SUM1:
                parts[rank] = total * (owner == place)
            elif place:
                parts[rank] = torch.randn(total.shape, generator=generator).double()
        if spec.reduce != SUM1:
            parts[group[0]] = total - sum(parts[rank] for rank in group[1:])
    return parts


def _joined(parts: list[Tensor], spec: Spec, mesh: Mesh) -> Tensor:
    """Return what values of a type on each rank denote; the same on all is asserted."""
    found = list(parts)
    for group in mesh.groups(spec.partial) if spec.partial else ():
        total = reduced([found[rank] for rank in group], spec.reduce)
        for rank in group:
            found[rank] = total
    for index in reversed(range(len(spec.dims))):
        axes = spec.dims[index].axes
        for group in mesh.groups(axes) if axes else ():
            joint = torch.cat([found[rank] for rank in group], index)
            for rank in group:
                found[rank] = joint
    for rank, each in enumerate(found):
        if each.shape != found[0].shape or not torch.equal(each, found[0]):
            raise VerificationError(
                f"rank {rank} holds another value than rank 0, read as '{spec}'"
            )
    return found[0]
