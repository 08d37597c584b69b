# SPDX-License-Identifier: MIT
"""The parts of a direct sum: `(g|u)` taken apart into `g` and `u`."""

from torch import Tensor

from ..sharding.error import TraceError, explained
from ..sharding.line import author_line
from ..sharding.op import OPS, Op, Recorder
from ..sharding.rule import parting
from ..sharding.spec import Dim
from ..sharding.value import Value


def parts(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Return the consecutive parts of the last dim of `x[...,(g|u)]`, `[...,g]` and `[...,u]`.

    `sizes` are those of the whole parts; a rank has as large a share of each as of `x`.

    Raises:
        TraceError: the last dim is no direct sum of as many parts of these sizes.
    """
    if not isinstance(x, Recorder):
        share = x.shape[-1]
        return x.split([size * share // sum(sizes) for size in sizes], -1)  # type: ignore[no-untyped-call, no-any-return]
    names = getattr(x, "names", None)
    if names is None:  # values without types: a simulated mesh
        made: tuple[Tensor, ...] = x.record(_PARTS, (x, *sizes))
        return made
    segments = Dim(names[-1]).segments
    known = x.sizes[-1] if isinstance(x, Value) else None
    if len(segments) != len(sizes) or (known is not None and tuple(known.parts) != sizes):
        raise TraceError(
            explained(
                author_line(),
                f"parts of sizes {sizes} are taken of dim {Dim(names[-1])} of size {known}",
                operands=[repr(x)],
                why="parts of other sizes would mix elements of one part with those of the next",
                fixes=["give the size of each part, in the order of the direct sum"],
            )
        )
    typed: tuple[Tensor, ...] = x.record(_PARTS, (x, *sizes), parting(segments))
    return typed


_PARTS = OPS["parts"] = Op(
    "parts",
    parting(("g", "u")),
    parts,
    sizes=lambda known, args: dict(zip(_segments(known), args[1:], strict=True)),
)


def _segments(known: object) -> tuple[str, ...]:
    (joint,) = (factor for factor in known if "__" in factor)  # type: ignore[attr-defined]
    return Dim(joint).segments
