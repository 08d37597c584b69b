# SPDX-License-Identifier: MIT
"""The products of a layer by a library, whatever the rows; what stands around them by kernels."""

import torch
from torch import Tensor
from torch.nn import functional

from .norm import rms_norm
from .pointwise import silu_mul


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`."""
    return functional.linear(x, w)


def norm_linear(x: Tensor, w_norm: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x[n,d], w_norm[d]) . w[o,d]^T` `[n,o]`."""
    return functional.linear(rms_norm(x, w_norm, eps), w)


def linear_add(x: Tensor, w: Tensor, residual: Tensor) -> Tensor:
    """Return `residual[n,o] + x[n,i] . w[o,i]^T`, rounded once."""
    return torch.addmm(residual, x, w.t())


def norm_gate_up(x: Tensor, w_norm: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `silu(gate) * up` `[n,f]` of `rms_norm(x[n,d], w_norm[d]) . w[2f,d]^T`."""
    return silu_mul(functional.linear(rms_norm(x, w_norm, eps), w))
