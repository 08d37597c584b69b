# SPDX-License-Identifier: MIT
"""Euclidean norm: the torch reference."""

import torch
from torch import Tensor

from .registry import register


@register("l2_norm", backend="torch")
def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Return `x / sqrt(sum_p(x^2) + eps)` for `x[n,l,p]`, in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)
