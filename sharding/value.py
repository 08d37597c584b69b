# SPDX-License-Identifier: MIT
"""Traced values: what an author's function is given instead of tensors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from .alternative import alternatives
from .error import TraceError, explained
from .host import Extent
from .line import Line, author_line
from .op import Op, Recorder
from .pointwise import ADD, MUL, pointwise
from .rule import Rule
from .spec import Placement

if TYPE_CHECKING:
    from .trace import Graph

Sizes = tuple[int | None, ...]
STATIONARY = ("param", "cache", "batch")


class Value(Recorder):
    """One tensor of a traced function: named dims, global sizes, dtype, and where it came from.

    `kind` is param, cache, batch, carry, constant or activation; the first three never move.
    """

    __slots__ = (
        "consumed",
        "dtype",
        "graph",
        "kind",
        "line",
        "name",
        "names",
        "placement",
        "sizes",
    )

    def __init__(
        self,
        graph: "Graph",
        name: str,
        kind: str,
        names: tuple[str, ...],
        sizes: Sizes,
        dtype: torch.dtype,
        line: Line,
        placement: Placement | None = None,
    ) -> None:
        self.graph, self.name, self.kind = graph, name, kind
        self.names, self.sizes, self.dtype, self.line = names, sizes, dtype, line
        self.placement = placement
        self.consumed: Line | None = None

    def __repr__(self) -> str:
        return f"{self.name}[{' '.join(self.names)}] from {self.line}"

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        return self.graph.record(op, args, rule)

    def pinned(self, placement: Placement, alias: str | None) -> "Value":
        """Return this value pinned to an annotation; stationary values are never moved."""
        return self if self.kind in STATIONARY else self.graph.pin(self, placement, alias)

    @property
    def shape(self) -> Sizes:
        """Return the global sizes as extents; one that is known at run time only is None."""
        pairs = zip(self.sizes, self.names, strict=True)
        return tuple(None if size is None else Extent(size, (name,)) for size, name in pairs)

    def __add__(self, other: Any) -> Any:
        return pointwise(ADD, self, other)

    def __mul__(self, other: Any) -> Any:
        return pointwise(MUL, self, other)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        known = {torch.add: ADD, torch.mul: MUL, Tensor.add: ADD, Tensor.mul: MUL}
        if function in known and not kwargs:
            return pointwise(known[function], *args)
        name = getattr(function, "__qualname__", repr(function))
        short = name.rpartition(".")[2].strip("_")
        raise TraceError(_unknown(f"torch function {name!r}", short, tuple(args)))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TraceError(_unknown(f"tensor attribute {name!r}", name, (self,)))

    def _forbidden(self, *args: Any) -> NoReturn:
        raise TraceError(
            explained(
                author_line(),
                f"the host reads the value of {self!r}",
                why="control flow on a tensor's value could differ between ranks and would hang "
                "a collective; a traced program has one control flow",
                fixes=["compute with ops instead, or make the choice from the config"],
            )
        )

    __bool__ = __int__ = __float__ = __len__ = __iter__ = __index__ = _forbidden

    def __getitem__(self, index: Any) -> NoReturn:
        raise TraceError(_unknown("tensor indexing", "getitem", (self, index)))

    def __matmul__(self, other: Any) -> NoReturn:
        raise TraceError(_unknown("operator @", "matmul", (self, other)))

    def __sub__(self, other: Any) -> NoReturn:
        raise TraceError(_unknown("operator -", "sub", (self, other)))

    def __truediv__(self, other: Any) -> NoReturn:
        raise TraceError(_unknown("operator /", "div", (self, other)))

    def _compared(self, other: Any) -> NoReturn:
        raise TraceError(_unknown("a comparison", "compare", (self, other)))

    __lt__ = __le__ = __gt__ = __ge__ = _compared

    def __neg__(self) -> NoReturn:
        raise TraceError(_unknown("operator -", "neg", (self,)))


def _unknown(what: str, name: str, args: tuple[Any, ...]) -> str:
    return explained(
        author_line(),
        f"{what} is not in the op set",
        why="without a rule nobody knows what it does to a sharded or Partial operand",
        fixes=[
            *alternatives(name, args),
            "use an op of `tokenspeed_core.ops`",
            "give it a rule: decorate a function with `tokenspeed_core.sharding.register_rule`",
        ],
    )
