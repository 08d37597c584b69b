# SPDX-License-Identifier: MIT
"""Kinds of Partial: how what ranks hold of a value makes the whole one.

sum     the sum in rank order                 max   the greatest element, NaN if any is
argmax  pairs `[..., 2]` of a value and an    lse   shares of attention, merged by the weights of
        index: the pair of the greatest             their softmax (`merge.py`)
        value, the smaller index among equals
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SUM, MAX, ARGMAX, LSE = KINDS = ("sum", "max", "argmax", "lse")


def reduced(parts: Sequence[Tensor], kind: str) -> Tensor:
    """Return the whole of equally shaped `parts`, in rank order; `kind` is sum, max or argmax.

    Sums are taken in float32 or wider, integers in int64.
    """
    if kind == MAX:
        return torch.stack(list(parts)).amax(0)
    if kind == ARGMAX:
        whole = parts[0]
        for part in parts[1:]:
            whole = torch.where(_precedes(part, whole)[..., None], part, whole)
        return whole
    assert kind == SUM, kind
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
