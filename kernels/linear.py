# SPDX-License-Identifier: MIT
"""Linear projection: the torch reference."""

from torch import Tensor
from torch.nn import functional

from .registry import register


@register("linear", backend="torch")
def linear(x: Tensor, w: Tensor) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`; `w` is row-major `[out, in]`."""
    return functional.linear(x, w)
