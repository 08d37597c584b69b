# SPDX-License-Identifier: MIT
"""Ops: named functions on tensors with a factor rule, which traced values record instead of run."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import attrs
import torch
from torch import Tensor

from .rule import Rule

P = ParamSpec("P")
R = TypeVar("R")
Sizes = Mapping[str, int | None]


@attrs.frozen(eq=False)
class Op:
    """One op of the closed set.

    `sizes` gives the sizes of factors that only results have, from the operands' sizes and the
    call's arguments; `dtype` the results' dtype, or a tuple of one for each, from that of operand
    `dtype_of`; `donates` pairs operand and result indices that are one buffer; `result` rebuilds
    the author's result from the arguments and the flat results; `text` prints a call
    (`"{0} + {1}"`); `packed` names the op that takes this one's operands side by side in one
    tensor; `after_add` the op that computes this one of a sum of two values, given apart, and
    returns the sum too; `share` the function that computes this one's share of a rank, told its
    place and the number of ranks (`Rule.merges`); `definition` what a composite is in other ops;
    `collective` marks one with collectives among them, whose caller is its first argument; `hosts`
    says of which factor an int among the arguments is, by position (`host.py`); `region` has the
    declared types of per-rank code (`region.py`), whose rule then only names its dims.
    """

    name: str
    rule: Rule
    run: Callable[..., Any]
    sizes: Callable[[Sizes, tuple[Any, ...]], Sizes] = lambda sizes, args: {}
    dtype: Callable[[torch.dtype], torch.dtype | tuple[torch.dtype, ...]] = lambda dtype: dtype
    dtype_of: int = 0
    donates: tuple[tuple[int, int], ...] = ()
    result: Callable[[tuple[Any, ...], tuple[Any, ...]], Any] | None = None
    text: str = ""
    packed: str = ""
    after_add: str = ""
    share: str = ""
    definition: Callable[..., Any] | None = None
    collective: bool = False
    hosts: Mapping[int, str] = attrs.field(factory=dict)
    region: Any = None


class Recorder:
    """A value that stands for a tensor: ops called on it are handed to `record`."""

    names: tuple[str, ...]

    def record(self, op: Op, args: tuple[Any, ...], rule: Rule | None = None) -> Any:
        """Take note of `op(*args)` and return what stands for its result."""
        raise NotImplementedError


OPS: dict[str, Op] = {}


def register_rule(rule: Rule, **fields: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make the decorated function on tensors an op with this rule.

    Called on tensors it runs; called on a `Recorder` as its first argument it records.  Keyword
    names are those of `Op`.
    """

    def add(run: Callable[P, R]) -> Callable[P, R]:
        op = Op(run.__name__, rule, run, **fields)
        assert op.name not in OPS, f"op {op.name!r} is registered twice"
        OPS[op.name] = op

        @wraps(run)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if isinstance(args[0], Tensor):
                return run(*args, **kwargs)
            return cast(R, dispatch(op, args, kwargs))

        return call

    return add


def dispatch(
    op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], rule: Rule | None = None
) -> Any:
    """Record `op` on the first `Recorder` among its arguments, or run it if there is none."""
    for arg in args:
        if isinstance(arg, Recorder):
            return arg.record(op, (*args, *kwargs.values()), rule)
    return op.run(*args, **kwargs)
