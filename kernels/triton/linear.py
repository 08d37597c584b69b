# SPDX-License-Identifier: MIT
"""Projections of few tokens, alone and with what stands before and after them in a layer.

One row is normed within the product; more take the norm as a launch of its own, which costs less
than its repetition in every program.  Above MAX_ROWS the product is a library's.
Weights are row-major `[out, in]`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .device import MERGES, counters, device_of
from .norm import rms_norm
from .pointwise import silu_mul
from .skinny import matrix, vector
from .tile import matrix_tile, vector_tile

MAX_ROWS = 16


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`."""
    if _is_many(x, w):
        return functional.linear(x, w)
    return _skinny(x, w)


def norm_linear(x: Tensor, w_norm: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x[n,d], w_norm[d]) . w[o,d]^T` `[n,o]`; the norm is rounded once."""
    if _is_many(x, w):
        return functional.linear(rms_norm(x, w_norm, eps), w)
    if x.shape[0] > 1:
        return _skinny(rms_norm(x, w_norm, eps), w)
    return _skinny(x, w, gain=w_norm, eps=eps)


def linear_add(x: Tensor, w: Tensor, residual: Tensor) -> Tensor:
    """Return `residual[n,o] + x[n,i] . w[o,i]^T`, rounded once."""
    if _is_many(x, w):
        return torch.addmm(residual, x, w.t())
    return _skinny(x, w, residual=residual)


def norm_gate_up(x: Tensor, w_norm: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `silu(gate) * up` `[n,f]`, both of `rms_norm(x[n,d], w_norm[d]) . w[2f,d]^T`.

    The first f rows of `w` are the gate's.
    """
    if _is_many(x, w):
        return silu_mul(functional.linear(rms_norm(x, w_norm, eps), w))
    if x.shape[0] > 1:
        return _skinny(rms_norm(x, w_norm, eps), w, gated=True)
    return _skinny(x, w, gain=w_norm, eps=eps, gated=True)


def _is_many(x: Tensor, w: Tensor) -> bool:
    return x.shape[0] > MAX_ROWS or x.shape[0] == 0 or not w.is_contiguous() or x.dim() != 2


def _skinny(
    x: Tensor,
    w: Tensor,
    *,
    gain: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> Tensor:
    device = device_of(x)
    if x.stride(1) != 1:
        x = x.contiguous()
    m, k = x.shape
    rows = w.shape[0]
    n = rows // 2 if gated else rows
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if residual is not None:
        residual = residual.contiguous()
    flags = (gated, residual is not None, device.has_dependent_launch)
    normed = gain is not None
    # An operand that a kernel does not read still has to be a pointer.
    gain, residual = x if gain is None else gain, x if residual is None else residual
    if m == 1:
        tile = vector_tile(rows, k, device)
        vector[(-(-n // tile.outputs),)](
            x, w, y, gain, residual, eps,
            n, k, tile.outputs, tile.inputs, tile.stages, normed, *flags,
            **device.options(tile.warps),
        )  # fmt: skip
        return y
    tile = matrix_tile(rows, k, device, x.element_size(), gated)
    tiles = -(-n // tile.outputs)
    assert tile.splits == 1 or tiles <= MERGES
    partial, arrived = y, y
    if tile.splits > 1:
        shape = (tile.splits, tiles, MAX_ROWS, tile.outputs)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrived = counters(x)
    matrix[(tiles, tile.splits)](
        x, w, y, residual, partial, arrived, m, x.stride(0),
        n, k, MAX_ROWS, tile.outputs, tile.inputs, tile.splits, tile.stages, *flags,
        **device.options(tile.warps),
    )  # fmt: skip
    return y
