# SPDX-License-Identifier: MIT
"""The sum over ranks of what each computed: the torch reference."""

import torch
from torch import Tensor

from .registry import register


@register("rank_sum", backend="torch")
def rank_sum(parts: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the sum `[...]` of `parts[r,...]` in order: in float32 or wider, integers in int64.

    Rounded to its dtype, it is added to `residual[...]` if there is one.
    """
    exact = torch.float32 if parts.is_floating_point() else torch.int64
    total = parts[0].to(torch.promote_types(parts.dtype, exact))
    for part in parts[1:]:
        total = total + part.to(total.dtype)
    y = total.to(parts.dtype)
    return y if residual is None else residual + y
