# SPDX-License-Identifier: MIT
"""Kinds of Partial: how what ranks hold of a value makes the whole one.

sum     the sum in rank order                 max   the greatest element, NaN if any is
sum1    a sum to which at most one rank       argmax  pairs `[..., 2]` of a value and an index:
        adds to each element: exact in              that of the greatest value, the smaller
        any dtype, 0 stays 0 in many ops            index among equals
sumsq   a sum of squares, in float32 or       lse   shares of attention, merged by the weights
        wider                                       of their softmax (`merge.py`)

Each of the three sums may pass for a plain one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("sum", "sum1", "sumsq", "max", "argmax", "lse")
SUM, SUM1, SUMSQ, MAX, ARGMAX, LSE = KINDS
SUMS = frozenset((SUM, SUM1, SUMSQ))


def passes(given: str, taken: str) -> bool:
    """Return whether what is owed as `given` may be paid as `taken`."""
    return given == taken or (taken == SUM and given in SUMS)


def weakest(*kinds: str) -> str | None:
    """Return the one kind as which all of these may be paid together, or None."""
    return next((k for k in (kinds[0], SUM) if all(passes(each, k) for each in kinds)), None)


def reduced(parts: Sequence[Tensor], kind: str) -> Tensor:
    """Return the whole of equally shaped `parts`, in rank order; `kind` is any but lse.

    Sums are taken in float32 or wider, integers in int64, but where one rank adds alone.
    """
    if kind == MAX:
        return torch.stack(list(parts)).amax(0)
    if kind == ARGMAX:
        whole = parts[0]
        for part in parts[1:]:
            whole = torch.where(_precedes(part, whole)[..., None], part, whole)
        return whole
    assert kind in SUMS, kind
    if kind == SUM1:
        return torch.stack(list(parts)).sum(0, dtype=parts[0].dtype)
    exact = torch.int64 if not parts[0].is_floating_point() else torch.float32
    total = parts[0].to(torch.promote_types(parts[0].dtype, exact))
    for part in parts[1:]:
        total = total + part.to(total.dtype)
    return total.to(parts[0].dtype)


def _precedes(left: Tensor, right: Tensor) -> Tensor:
    """Return which pairs of `left` win; NaN is greater than all else, as it is for `torch.max`."""
    (value, index), (other, place) = left.unbind(-1), right.unbind(-1)
    nan, rival = value.isnan(), other.isnan()
    level = (value == other) | (nan & rival)
    return (value > other) | (nan & ~rival) | (level & (index < place))
