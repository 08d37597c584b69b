# SPDX-License-Identifier: MIT
"""Products with matrices in float8, of more rows than `skinny.py` takes.

Either activations are rounded to float8 too, which is what tensor cores are fastest at, or they
stay as they are: some rows then read the eight bits, and an element of a tile becomes one of theirs
before it is multiplied; many rows read a copy in sixteen.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..float8 import Float8Matrix
from .device import MERGES, counters, device_of
from .narrow import kept, widened
from .skinny import split_sum

# Above so many rows the copy costs less than the conversions of every tile.
MAX_ROWS = 384
# Above so many the rounding of activations costs less than conversions.
MAX_WIDE_ROWS = 32
_ALIGNED = 4  # rows: a column of their scales begins at 16 bytes


@triton.jit(do_not_specialize=["M"])
def float8_matrix(
    x, w, scale, y, partial, counter, M, x_stride,
    N: tl.constexpr, K: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[M,N]` of `x[M,K]` and `w[N,K]`, of which TALL x WIDE elements share a `scale[.,Q]`.

    Rows of `w` are the left operand, so that what was widened in registers stays there.  SPLITS
    programs sum parts of K into `partial[SPLITS,tiles,BN,BM]`; the last to arrive adds them up.
    """
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    split = tl.program_id(2)
    PART: tl.constexpr = (K + SPLITS * BK - 1) // (SPLITS * BK) * BK
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    ms = tl.program_id(1) * BM + tl.arange(0, BM)
    cols = split * PART + tl.arange(0, BK)
    row_ok, live = rows < N, ms < M
    at = rows[:, None].to(tl.int64) * K + cols[None, :]
    x_at = ms[:, None].to(tl.int64) * x_stride + cols[None, :]
    scales = scale + rows // TALL * Q
    acc = tl.zeros([BN, BM], tl.float32)
    EVEN: tl.constexpr = K % (SPLITS * BK) == 0 and N % BN == 0
    if PDL:
        gdc_wait()
    for k in tl.range(0, PART, BK, num_stages=STAGES):
        if EVEN:
            value = tl.load(x + x_at + k, mask=live[:, None], other=0.0)
            weight = tl.load(w + at + k)
        else:
            col_ok = k + cols < K
            value = tl.load(x + x_at + k, mask=live[:, None] & col_ok[None, :], other=0.0)
            weight = tl.load(w + at + k, mask=row_ok[:, None] & col_ok[None, :], other=0.0)
        weight = widened(weight, value.dtype, PDL)
        if Q == 1:
            acc = tl.dot(weight, value.T, acc, input_precision="ieee")
        else:
            own = tl.load(scales + (split * PART + k) // WIDE, mask=row_ok, other=0.0)
            acc += tl.dot(weight, value.T, input_precision="ieee") * own[:, None]
    if PDL:
        gdc_launch_dependents()
    last = True
    if SPLITS > 1:
        tiles = tl.num_programs(0) * tl.num_programs(1)
        acc, last = split_sum(acc, partial, counter, tile, tiles, split, SPLITS)
    if last:
        if Q == 1:
            acc *= tl.load(scales, mask=row_ok, other=0.0)[:, None]
        out = ms[:, None].to(tl.int64) * N + rows[None, :]
        tl.store(y + out, acc.T.to(y.dtype.element_ty), mask=live[:, None] & row_ok[None, :])


@triton.jit
def float8_row(
    w, scale, y, K: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr,
    BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[N,K]`, BK elements of a row of `w[N,K]` times their scales."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    own = tl.load(scale + row // TALL * Q + k // WIDE, mask=k < K, other=0.0)
    value = tl.load(w + row * K + k, mask=k < K, other=0.0).to(tl.float32) * own
    tl.store(y + row * K + k, value.to(y.dtype.element_ty), mask=k < K)


def product(x: Tensor, w: Float8Matrix) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`; blocks of `w` are whole rows or 128 inputs wide."""
    n, k = x.shape
    rows = w.data.shape[0]
    if n > MAX_ROWS:
        return functional.linear(x, dequantised(w, x.dtype))
    y = torch.empty(n, rows, dtype=x.dtype, device=x.device)
    if not n:
        return y
    if x.stride(1) != 1:
        x = x.contiguous()
    device = device_of(x)
    height, outputs, inputs, stages, warps = _tile(n, x.element_size())
    assert w.scale.shape[1] == 1 or w.block[1] % inputs == 0, w.block
    grid = (triton.cdiv(rows, outputs), triton.cdiv(n, height))
    tiles = grid[0] * grid[1]
    assert tiles <= MERGES
    # As many parts of K as fill the device, of four steps at least.
    splits = max(1, min(4, 2 * device.processors // tiles, k // (4 * inputs)))
    partial, arrived = y, y
    if splits > 1:
        shape = (splits, tiles, outputs, height)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrived = counters(x)
    float8_matrix[(*grid, splits)](
        x, w.data, w.scale, y, partial, arrived, n, x.stride(0), rows, k, *w.block,
        w.scale.shape[1], height, outputs, inputs, splits, min(stages, device.max_stages),
        device.has_dependent_launch, **device.options(warps),
    )  # fmt: skip
    return y


def _tile(n: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """Return (rows of x, outputs, inputs, stages, warps) of a program."""
    height = 16 if n <= 16 else 32 if n <= 32 else 64 if n <= 64 else 128
    if itemsize > 2:
        return min(height, 64), 64, 64, 2, 4
    return height, 64, 128, 3, 4


def dequantised(w: Float8Matrix, dtype: torch.dtype) -> Tensor:
    """Return the matrix `[o,i]` in `dtype`."""
    rows, k = w.data.shape
    y = torch.empty(rows, k, dtype=dtype, device=w.data.device)
    device = device_of(y)
    float8_row[(rows, triton.cdiv(k, 1024))](
        w.data, w.scale, y, k, *w.block, w.scale.shape[1], 1024, device.has_dependent_launch,
        **device.options(4),
    )  # fmt: skip
    return y


@triton.jit
def rounded_groups(
    x, y, scale, stride, x_stride, K: tl.constexpr, WIDTH: tl.constexpr, BW: tl.constexpr,
    GROUPS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[M,K]` in e4m3, and `scale[K // WIDTH,M]`, by which groups of WIDTH give `x[M,K]` again.

    Of M rows; groups of `scale` lie `stride` numbers apart.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    e = tl.arange(0, BW)
    at = group[:, None] * WIDTH + e[None, :]
    ok = (at < K) & (e < WIDTH)[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    value = tl.load(x + row * x_stride + at, mask=ok, other=0.0).to(tl.float32)
    own = tl.maximum(tl.max(tl.abs(value), 1), 1e-12) / 448.0
    tl.store(scale + group.to(tl.int64) * stride + row, own, mask=group * WIDTH < K)
    tl.store(y + row * K + at, kept(value / own[:, None], y.dtype.element_ty), mask=ok)


def rounded(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return `x[n,k]` in float8, and the scales `[n,k/width]` of its groups, column by column.

    Behind them stand some rows of anything, up to a multiple of 4.
    """
    n, k = x.shape
    tall = triton.cdiv(n, _ALIGNED) * _ALIGNED
    y = torch.empty(tall, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(k // width, tall, dtype=torch.float32, device=x.device)
    device = device_of(x)
    wide = triton.next_power_of_2(width)
    groups = min(triton.next_power_of_2(k // width), max(1, 4096 // wide))
    rounded_groups[(n, triton.cdiv(k // width, groups))](
        x, y, scale, tall, x.stride(0), k, width, wide, groups, device.has_dependent_launch,
        **device.options(min(16, max(4, wide // 2048))),
    )  # fmt: skip
    return y, scale.t()


def scaled_product(x: Tensor, w: Float8Matrix) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]` of float8 with float8: `x` is rounded to it first.

    Rows of `x` have a scale each, or groups of 128 inputs where blocks of `w` have (DeepSeek-V3
    technical report, 3.3.2).  What torch has no product for keeps `x` as it is.
    """
    rows, k = w.data.shape
    if x.shape[0] <= MAX_WIDE_ROWS or rows % 16 or k % 16:
        return product(x, w)
    if x.stride(1) != 1:
        x = x.contiguous()
    tall, wide = w.block
    if w.scale.shape[1] == 1:
        small, own = rounded(x, k)
        scale = w.scale if tall == 1 else w.scale.repeat_interleave(tall, 0)[:rows]
        scale = scale.t().contiguous()
    elif (tall, wide) == (128, 128) and rows % 128 == 0 and _has_block_products(x.device):
        small, own = rounded(x, wide)
        scale = w.scale.t()
    else:
        return product(x, w)
    y: Tensor = torch._scaled_mm(small, w.data.t(), scale_a=own, scale_b=scale, out_dtype=x.dtype)
    return y[: x.shape[0]]


@cache
def _has_block_products(device: torch.device) -> bool:
    """Whether the library multiplies by blocks of 128 x 128: cuBLAS of CUDA 12.9, on Hopper."""
    version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
    return version >= (12, 9) and torch.cuda.get_device_capability(device)[0] == 9
