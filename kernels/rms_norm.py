# SPDX-License-Identifier: MIT
"""Root-mean-square norm, alone and fused with the residual add: torch references."""

import torch
from torch import Tensor

from .registry import register


@register("rms_norm", backend="torch", features=("wide_weight",))
def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `w * cast(x / sqrt(mean_d(x^2) + eps))` for `x[n,d]`, `w[d]`.

    The statistics are in float32 at least; the product with `w` is in the dtype of `w`, so that
    a float32 weight on narrower rows rounds once.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (w * normed.to(w.dtype)).to(x.dtype)


@register("add_rms_norm", backend="torch", features=("wide_weight",))
def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `(rms_norm(residual + x), residual + x)` for `x[n,d]`, `residual[n,d]`."""
    residual = residual + x
    return rms_norm(residual, w, eps), residual


@register("squares", backend="torch")
def squares(x: Tensor) -> Tensor:
    """Return the sum of squares of each row of `x[n,...]`, in float32 or wider."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)


@register("stack_totals", backend="torch")
def stack_totals(left: Tensor, right: Tensor) -> Tensor:
    """Return `[n,2]` of `left[n]`, `right[n]`."""
    return torch.stack((left, right), dim=-1)


@register("rms_norm_by_total", backend="torch")
def rms_norm_by_total(
    x: Tensor, totals: Tensor, w: Tensor, column: int, width: int, eps: float
) -> Tensor:
    """Return `w * cast(x / sqrt(totals[n,column] / width + eps))` for `x[n,...]`, `w[...]`.

    The total is the sum of squares over all `width` elements of a row, of which `x` may be a part.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(totals[:, column] / width + eps)
    normed = wide * scale.view(-1, *[1] * (x.dim() - 1))
    return w * normed.to(x.dtype)
