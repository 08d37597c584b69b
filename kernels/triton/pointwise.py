# SPDX-License-Identifier: MIT
"""Table lookup, gated activation and rotation: every element by itself."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of

_BLOCK = 1024


@triton.jit
def silu_mul_row(x, y, F: tl.constexpr, BF: tl.constexpr, PDL: tl.constexpr):
    """`y[n,F] = silu(x[n,:F]) * x[n,F:]`, BF elements of a row."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BF + tl.arange(0, BF)
    ok = f < F
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(x + row * (2 * F) + f, mask=ok, other=0.0)
    up = tl.load(x + row * (2 * F) + F + f, mask=ok, other=0.0)
    wide = gate.to(tl.float32)
    active = (wide * tl.sigmoid(wide)).to(gate.dtype).to(tl.float32)
    tl.store(y + row * F + f, (active * up.to(tl.float32)).to(gate.dtype), mask=ok)


def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up` `[n,f]` for `x[n,2f]` with the gate half first."""
    x = x.contiguous()
    n, f = x.shape[0], x.shape[1] // 2
    y = torch.empty(n, f, dtype=x.dtype, device=x.device)
    if n:
        device = device_of(x)
        grid = (n, triton.cdiv(f, _BLOCK))
        silu_mul_row[grid](x, y, f, _BLOCK, device.has_dependent_launch, **device.options(4))
    return y


@triton.jit(do_not_specialize_on_alignment=["tokens"])
def table_row(tokens, table, y, start, count, D: tl.constexpr, BD: tl.constexpr, PDL: tl.constexpr):
    """`y[n,D]`: BD elements of the row that a token names, zeros if it is not in the slice."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    at = tl.load(tokens + row).to(tl.int64) - start
    ok = (d < D) & (at >= 0) & (at < count)
    value = tl.load(table + at * D + d, mask=ok, other=0.0)
    tl.store(y + row * D + d, value, mask=d < D)


def embedding(tokens: Tensor, table: Tensor, start: int = 0) -> Tensor:
    """Return rows `table[tokens[n] - start]` `[n,d]`; ids outside the slice give zero rows."""
    table = table.contiguous()
    count, d = table.shape
    y = torch.empty(tokens.shape[0], d, dtype=table.dtype, device=table.device)
    if len(y):
        device = device_of(table)
        grid = (len(y), triton.cdiv(d, _BLOCK))
        table_row[grid](
            tokens, table, y, start, count, d, _BLOCK,
            device.has_dependent_launch, **device.options(4),
        )  # fmt: skip
    return y


@triton.jit
def rotate_heads(
    x, cos, sin, y, heads, row_stride, head_stride,
    H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, PAIRS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[n,heads,H]`: BK heads of a row, whose halves, or PAIRS, are turned by its angles."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BK + tl.arange(0, BK)
    h = tl.arange(0, BH)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    ok = (head < heads)[:, None] & (h < H)[None, :]
    if PAIRS:
        angle = h // 2
        other = h ^ 1
        sign = tl.where(h % 2 == 0, -1.0, 1.0)
    else:
        angle = h
        other = tl.where(h < H // 2, h + H // 2, h - H // 2)
        sign = tl.where(h < H // 2, -1.0, 1.0)
    c = tl.load(cos + row * H + angle, mask=h < H, other=0.0)
    s = tl.load(sin + row * H + angle, mask=h < H, other=0.0) * sign
    base = x + row * row_stride + head[:, None] * head_stride
    value = tl.load(base + h[None, :], mask=ok, other=0.0)
    turned = tl.load(base + other[None, :], mask=ok, other=0.0).to(tl.float32)
    out = value.to(tl.float32) * c[None, :] + turned * s[None, :]
    at = (row * heads + head[:, None]) * H + h[None, :]
    tl.store(y + at, out.to(value.dtype), mask=ok)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of `x[n,...,h]` by angles given as `cos[n,h]`, `sin[n,h]`."""
    return _rotated(x, cos, sin, False)


def rope_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of `x[n,...,h]` by the first halves of `cos[n,h]`, `sin[n,h]`."""
    return _rotated(x, cos, sin, True)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
    n, h = x.shape[0], x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    flat = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    if flat.stride(2) != 1:
        flat = flat.contiguous()
    device = device_of(x)
    block = min(triton.next_power_of_2(flat.shape[1]), 16)
    grid = (n, triton.cdiv(flat.shape[1], block))
    rotate_heads[grid](
        flat, cos.contiguous(), sin.contiguous(), y, flat.shape[1], flat.stride(0), flat.stride(1),
        h, triton.next_power_of_2(h), block, pairs, device.has_dependent_launch,
        **device.options(4),
    )  # fmt: skip
    return y
