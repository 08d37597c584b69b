# SPDX-License-Identifier: MIT
"""Root-mean-square norms of rows, alone and after the residual add."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of


@triton.jit
def norm_row(
    x, residual, w, y, total, eps,
    D: tl.constexpr, BD: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row of D elements; with ADD `total = residual + x` is normed and stored too."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    ok = d < D
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    value = tl.load(x + row * D + d, mask=ok, other=0.0)
    if ADD:
        before = tl.load(residual + row * D + d, mask=ok, other=0.0).to(tl.float32)
        value = (before + value.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(total + row * D + d, value, mask=ok)
    wide = value.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / D + eps)
    gain = tl.load(w + d, mask=ok, other=0.0)
    # Rounded to the dtype of the weight first, as the reference is.
    out = normed.to(gain.dtype).to(tl.float32) * gain.to(tl.float32)
    tl.store(y + row * D + d, out.to(y.dtype.element_ty), mask=ok)


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `w * cast(x / sqrt(mean_d(x^2) + eps))` for `x[...,d]`, `w[d]`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _launch(x, x, w, y, y, eps, add=False)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `(rms_norm(residual + x), residual + x)`, both `[n,d]`."""
    x, residual = x.contiguous(), residual.contiguous()
    y, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, w, y, total, eps, add=True)
    return y, total


def _launch(
    x: Tensor, residual: Tensor, w: Tensor, y: Tensor, total: Tensor, eps: float, add: bool
) -> None:
    d = x.shape[-1]
    rows = x.numel() // d
    if not rows:
        return
    device = device_of(x)
    block = triton.next_power_of_2(d)
    options = device.options(min(max(block // 512, 1), 16))
    norm_row[(rows,)](
        x, residual, w, y, total, eps, d, block, add, device.has_dependent_launch, **options
    )
