# SPDX-License-Identifier: MIT
"""Products of a few rows with a large matrix, bound by the bytes of the matrix.

Dims: M rows of x, N outputs, K inputs.  The matrix is `w[N,K]`, or `w[2N,K]` with GLU: gate rows,
then up rows.  A program reads BN whole rows of it (a K-th part of them with SPLITS).  With NORM
the one row of x is normed on the way: `gain` multiplies each input, and the root mean square, a
scalar of the row, the sum.  With ADD the result is `residual + product`.

With Q > 0 the matrix is in float8: TALL x WIDE of its elements share a `scale[.,Q]`.  With Q = 1
rows have one scale each, which multiplies sums, the one form that `vector` takes (its TALL is 0
for other matrices); with more a tile has one, which multiplies its product.

Loops name their own `num_stages`: Triton pipelines no other loop whose loads feed no `tl.dot`.
Under PDL a program waits before it reads what another kernel wrote, and outside any loop.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .narrow import widened


@triton.jit
def _finish(
    product, up, square, residual, eps, K: tl.constexpr, NORM: tl.constexpr, GLU: tl.constexpr
):  # fmt: skip
    """Return float32 outputs from sums; `square` is the row's sum of squares, broadcastable."""
    if NORM:
        scale = tl.rsqrt(square / K + eps)
        product = product * scale
        up = up * scale
    if GLU:
        product = product * tl.sigmoid(product) * up
    return product + residual


@triton.jit
def split_sum(acc, partial, counter, tile, tiles, split, SPLITS: tl.constexpr):
    """Return the sum of a tile's parts `acc[A,B]`, one of each program, and whether to use it.

    Each leaves its part in `partial[SPLITS,tiles,A,B]`; the last to arrive adds them in order,
    and only it has the sum.  It sets `counter[tile]` back to zero.
    """
    A: tl.constexpr = acc.shape[0]
    B: tl.constexpr = acc.shape[1]
    within = tl.arange(0, A)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(partial + (split * tiles + tile) * A * B + within, acc)
    tl.debug_barrier()
    last = tl.atomic_add(counter + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        tl.debug_barrier()
        acc = tl.zeros([A, B], tl.float32)
        for i in range(SPLITS):
            acc += tl.load(partial + (i * tiles + tile) * A * B + within, cache_modifier=".cg")
        tl.store(counter + tile, 0)
    return acc, last


@triton.jit
def vector(
    x, w, scale, y, gain, residual, eps,
    N: tl.constexpr, K: tl.constexpr, TALL: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, NORM: tl.constexpr, GLU: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One row, by multiply-add: `y[N]` of `x[K]`."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    cols = tl.arange(0, BK)
    row_ok = rows < N
    at = rows[:, None].to(tl.int64) * K + cols[None, :]
    acc = tl.zeros([BN, BK], tl.float32)
    up = tl.zeros([BN, BK], tl.float32)
    square = tl.zeros([BK], tl.float32)
    if PDL:
        gdc_wait()
    for k in tl.range(0, K, BK, num_stages=STAGES):
        if K % BK == 0 and N % BN == 0:
            value = tl.load(x + k + cols).to(tl.float32)
            weight = tl.load(w + at + k)
        else:
            col_ok = k + cols < K
            ok = row_ok[:, None] & col_ok[None, :]
            value = tl.load(x + k + cols, mask=col_ok, other=0.0).to(tl.float32)
            weight = tl.load(w + at + k, mask=ok, other=0.0)
        if NORM:
            square += value * value
            if K % BK == 0:
                value *= tl.load(gain + k + cols).to(tl.float32)
            else:
                value *= tl.load(gain + k + cols, mask=k + cols < K, other=0.0).to(tl.float32)
        acc += weight.to(tl.float32) * value[None, :]
        if GLU:
            if K % BK == 0 and N % BN == 0:
                weight = tl.load(w + N * K + at + k)
            else:
                weight = tl.load(w + N * K + at + k, mask=ok, other=0.0)
            up += weight.to(tl.float32) * value[None, :]
    if PDL:
        gdc_launch_dependents()
    before = tl.zeros([BN], tl.float32)
    if ADD:
        before = tl.load(residual + rows, mask=row_ok, other=0.0).to(tl.float32)
    product, other = tl.sum(acc, 1), tl.sum(up, 1)
    if TALL:
        product *= tl.load(scale + rows // TALL, mask=row_ok, other=0.0)
        if GLU:
            other *= tl.load(scale + (N + rows) // TALL, mask=row_ok, other=0.0)
    out = _finish(product, other, tl.sum(square), before, eps, K, NORM, GLU)
    tl.store(y + rows, out.to(y.dtype.element_ty), mask=row_ok)


@triton.jit(do_not_specialize=["M"])
def matrix(
    x, w, scale, y, residual, partial, counter, M, x_stride,
    N: tl.constexpr, K: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, Q: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, GLU: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Up to BM rows, by small matrix products: `y[M,N]` of `x[M,K]`.

    With SPLITS > 1 each of so many programs sums a part of K into `partial[SPLITS,tiles,BM,BN]`
    and the last to arrive adds them in order; not together with GLU.
    """
    tl.static_assert(SPLITS == 1 or not GLU, "a gate needs the whole sum")
    tl.static_assert(Q <= 1 or (TALL % BN == 0 and WIDE % BK == 0), "a tile has one scale")
    tl.static_assert(Q <= 1 or N % BN == 0 or not GLU, "a tile has one scale")
    tile = tl.program_id(0)
    split = tl.program_id(1)
    PART: tl.constexpr = (K + SPLITS * BK - 1) // (SPLITS * BK) * BK
    rows = tile * BN + tl.arange(0, BN)
    cols = split * PART + tl.arange(0, BK)
    ms = tl.arange(0, BM)
    row_ok = rows < N
    live = ms < M
    at = rows[:, None].to(tl.int64) * K + cols[None, :]
    x_at = ms[:, None] * x_stride + cols[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    EVEN: tl.constexpr = K % (SPLITS * BK) == 0 and N % BN == 0
    if PDL:
        gdc_wait()
    for k in tl.range(0, PART, BK, num_stages=STAGES):
        if EVEN:
            value = tl.load(x + x_at + k, mask=live[:, None], other=0.0)
            weight = tl.load(w + at + k)
        else:
            col_ok = k + cols < K
            ok = row_ok[:, None] & col_ok[None, :]
            value = tl.load(x + x_at + k, mask=live[:, None] & col_ok[None, :], other=0.0)
            weight = tl.load(w + at + k, mask=ok, other=0.0)
        weight = widened(weight, value.dtype, PDL)
        if Q > 1:
            own = scale + tile * BN // TALL * Q + (split * PART + k) // WIDE
            acc += tl.dot(value, weight.T, input_precision="ieee") * tl.load(own)
        else:
            acc = tl.dot(value, weight.T, acc, input_precision="ieee")
        if GLU:
            if EVEN:
                weight = tl.load(w + N * K + at + k)
            else:
                weight = tl.load(w + N * K + at + k, mask=ok, other=0.0)
            weight = widened(weight, value.dtype, PDL)
            if Q > 1:
                own = scale + (N + tile * BN) // TALL * Q + k // WIDE
                up += tl.dot(value, weight.T, input_precision="ieee") * tl.load(own)
            else:
                up = tl.dot(value, weight.T, up, input_precision="ieee")
    if PDL:
        gdc_launch_dependents()
    last = True
    if SPLITS > 1:
        acc, last = split_sum(acc, partial, counter, tile, tl.num_programs(0), split, SPLITS)
    if last:
        out_at = ms[:, None].to(tl.int64) * N + rows[None, :]
        out_ok = live[:, None] & row_ok[None, :]
        if Q == 1:
            acc *= tl.load(scale + rows // TALL, mask=row_ok, other=0.0)[None, :]
            if GLU:
                up *= tl.load(scale + (N + rows) // TALL, mask=row_ok, other=0.0)[None, :]
        before = tl.zeros([BM, BN], tl.float32)
        if ADD:
            before = tl.load(residual + out_at, mask=out_ok, other=0.0).to(tl.float32)
        out = _finish(acc, up, 0.0, before, 0.0, K, False, GLU)
        tl.store(y + out_at, out.to(y.dtype.element_ty), mask=out_ok)
