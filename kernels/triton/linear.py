# SPDX-License-Identifier: MIT
"""Projections of few tokens, alone and with what stands before and after them in a layer.

One row is normed within the product (not where blocks of it have scales of their own); more take
the norm as a launch of its own, which costs less than its repetition in every program.  Above
MAX_ROWS the product is a library's.
Weights are row-major `[out, in]`.
"""

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from ..float8 import Float8Matrix, Matrix
from ..registry import select
from . import float8
from .device import MERGES, counters, device_of
from .norm import rms_norm
from .pointwise import silu_mul
from .skinny import matrix, vector
from .tile import FLOAT8_INPUTS, FLOAT8_ROWS, matrix_tile, vector_tile

MAX_ROWS = 16


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`."""
    return _many(x, w) if _is_many(x, w) else _skinny(x, w)


def float8_linear(x: Tensor, w: Float8Matrix) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`; blocks of `w` are whole rows or 128 inputs wide."""
    return float8.product(x, w) if _is_many(x, w) else _skinny(x, w)


def scaled_linear(x: Tensor, w: Float8Matrix) -> Tensor:
    """Return `float8_linear(x, w)`, above MAX_ROWS with `x` rounded to float8 as well."""
    return float8.scaled_product(x, w) if _is_many(x, w) else _skinny(x, w)


def norm_linear(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `rms_norm(x[n,d], w_norm[d]) . w[o,d]^T` `[n,o]`; the norm is rounded once."""
    if _is_many(x, w):
        return _many(rms_norm(x, w_norm, eps), w)
    if x.shape[0] > 1 or _has_blocks(w):
        return _skinny(rms_norm(x, w_norm, eps), w)
    return _skinny(x, w, gain=w_norm, eps=eps)


def linear_add(x: Tensor, w: Matrix, residual: Tensor) -> Tensor:
    """Return `residual[n,o] + x[n,i] . w[o,i]^T`, rounded once where `w` is not in float8."""
    if not _is_many(x, w):
        return _skinny(x, w, residual=residual)
    if isinstance(w, Float8Matrix):
        return residual + _many(x, w)
    return torch.addmm(residual, x, w.t())


def norm_gate_up(x: Tensor, w_norm: Tensor, w: Matrix, eps: float) -> Tensor:
    """Return `silu(gate) * up` `[n,f]`, both of `rms_norm(x[n,d], w_norm[d]) . w[2f,d]^T`.

    The first f rows of `w` are the gate's.
    """
    if _is_many(x, w, gated=True):
        return silu_mul(_many(rms_norm(x, w_norm, eps), w))
    if x.shape[0] > 1 or _has_blocks(w):
        return _skinny(rms_norm(x, w_norm, eps), w, gated=True)
    return _skinny(x, w, gain=w_norm, eps=eps, gated=True)


def _is_many(x: Tensor, w: Matrix, gated: bool = False) -> bool:
    """Return whether the product is none of few rows, or one whose tiles would have many scales."""
    data = w.data if isinstance(w, Float8Matrix) else w
    if x.shape[0] > MAX_ROWS or x.shape[0] == 0 or not data.is_contiguous() or x.dim() != 2:
        return True
    if not isinstance(w, Float8Matrix) or not _has_blocks(w):
        return False
    tall, wide = w.block
    return tall % FLOAT8_ROWS + wide % FLOAT8_INPUTS + gated * (len(data) // 2 % FLOAT8_ROWS) > 0


def _has_blocks(w: Matrix) -> bool:
    return isinstance(w, Float8Matrix) and w.scale.shape[1] > 1


def _many(x: Tensor, w: Matrix) -> Tensor:
    if isinstance(w, Float8Matrix):
        # Of its kernels the one that was asked for.
        y: Tensor = select("float8_linear", x.device.type, x.dtype)(x, w)
        return y
    return functional.linear(x, w)


def _skinny(
    x: Tensor,
    w: Matrix,
    *,
    gain: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
) -> Tensor:
    device = device_of(x)
    if x.stride(1) != 1:
        x = x.contiguous()
    narrow = isinstance(w, Float8Matrix)
    data, scale = (w.data, w.scale) if isinstance(w, Float8Matrix) else (w, w)
    form = (*w.block, w.scale.shape[1]) if isinstance(w, Float8Matrix) else (1, 1, 0)
    m, k = x.shape
    rows = data.shape[0]
    n = rows // 2 if gated else rows
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if residual is not None:
        residual = residual.contiguous()
    flags = (gated, residual is not None, device.has_dependent_launch)
    normed = gain is not None
    # An operand that a kernel does not read still has to be a pointer.
    gain, residual = x if gain is None else gain, x if residual is None else residual
    if m == 1 and form[2] <= 1:
        tile = vector_tile(rows, k, device, narrow)
        vector[(-(-n // tile.outputs),)](
            x, data, scale, y, gain, residual, eps,
            n, k, form[0] * form[2], tile.outputs, tile.inputs, tile.stages, normed, *flags,
            **device.options(tile.warps),
        )  # fmt: skip
        return y
    tile = matrix_tile(rows, k, device, x.element_size(), gated, narrow)
    if form[2] > 1:
        tile = attrs.evolve(tile, inputs=min(tile.inputs, FLOAT8_INPUTS))
    tiles = -(-n // tile.outputs)
    assert tile.splits == 1 or tiles <= MERGES
    partial, arrived = y, y
    if tile.splits > 1:
        shape = (tile.splits, tiles, MAX_ROWS, tile.outputs)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrived = counters(x)
    matrix[(tiles, tile.splits)](
        x, data, scale, y, residual, partial, arrived, m, x.stride(0),
        n, k, *form, MAX_ROWS, tile.outputs, tile.inputs, tile.splits, tile.stages, *flags,
        **device.options(tile.warps),
    )  # fmt: skip
    return y
