# SPDX-License-Identifier: MIT
"""Experts of many tokens, by matrix products of tiles of assignments.

Dims as in `experts.py`.  Assignments are sorted by expert, expert e's tiles begin at number
`begin[e] // BM + e`, so that a launch of `N * A // BM + E` holds them all.  Nothing is padded and
the host reads nothing.  With few rows a tile stands as columns: tensor cores take 64 rows of the
matrix at once, or 16 rows of tokens.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _assignments(tile, order, ends, E: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr):
    """Return (expert from 0, assignments `[BM]`, which of them are real) of a tile."""
    m = tl.arange(0, BM)
    e = tl.arange(0, BE)
    begins = tl.load(ends + e - 1, mask=(e > 0) & (e < E), other=0)
    first = tl.where(e < E, begins // BM + e, 2147483647)
    expert = tl.sum((first <= tile).to(tl.int32)) - 1
    begin = tl.sum(tl.where(e == expert, begins, 0))
    at = begin + (tile - (begin // BM + expert)) * BM + m
    live = at < tl.load(ends + expert)
    return expert, tl.load(order + at, mask=live, other=0), live


@triton.jit
def _product(weight, value, acc, TURN: tl.constexpr):
    """Return `acc + weight[rows,k] . value[BM,k]^T`; without TURN transposed."""
    if TURN:
        acc = tl.dot(weight, value.T, acc, input_precision="ieee")
    else:
        acc = tl.dot(value, weight.T, acc, input_precision="ieee")
    return acc


@triton.jit
def expert_hidden(
    x, order, ends, w_gate, w_up, hidden,
    A: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, J: tl.constexpr,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    TURN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`hidden[N*A,J] = silu(w_gate x) * (w_up x)` of `x[N,D]`, `w_gate`, `w_up` `[E,J,D]`."""
    if PDL:
        gdc_wait()
    expert, which, live = _assignments(tl.program_id(1), order, ends, E, BE, BM)
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    k = tl.arange(0, BK)
    EVEN: tl.constexpr = D % BK == 0 and J % BJ == 0
    if tl.sum(live.to(tl.int32)) > 0:
        rows = x + (which // A)[:, None].to(tl.int64) * D
        at = tl.cast(expert, tl.int64) * (J * D) + j[:, None] * D
        gate = tl.zeros([BJ, BM], tl.float32) if TURN else tl.zeros([BM, BJ], tl.float32)
        up = gate
        for n in tl.range(0, D, BK, num_stages=STAGES):
            col = (n + k)[None, :]
            if EVEN:
                value = tl.load(rows + col, mask=live[:, None], other=0.0)
                first = tl.load(w_gate + at + col)
            else:
                ok = (j < J)[:, None] & (col < D)
                value = tl.load(rows + col, mask=live[:, None] & (col < D), other=0.0)
                first = tl.load(w_gate + at + col, mask=ok, other=0.0)
            gate = _product(first, value, gate, TURN)
            if EVEN:
                second = tl.load(w_up + at + col)
            else:
                second = tl.load(w_up + at + col, mask=ok, other=0.0)
            up = _product(second, value, up, TURN)
        out = (gate * tl.sigmoid(gate) * up).to(hidden.dtype.element_ty)
        to = hidden + which[:, None].to(tl.int64) * J + j[None, :]
        held = live[:, None] & (j < J)[None, :]
        if TURN:
            tl.store(to, out.T, mask=held)
        else:
            tl.store(to, out, mask=held)
    if PDL:
        gdc_launch_dependents()


@triton.jit
def expert_down(
    hidden, order, ends, weights, w_down, out,
    E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, J: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, TURN: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`out[N*A,D] = weights[N*A] * (w_down[E,D,J] hidden[N*A,J])`; other ranks' rows stay."""
    if PDL:
        gdc_wait()
    expert, which, live = _assignments(tl.program_id(1), order, ends, E, BE, BM)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    k = tl.arange(0, BK)
    EVEN: tl.constexpr = J % BK == 0 and D % BD == 0
    if tl.sum(live.to(tl.int32)) > 0:
        rows = hidden + which[:, None].to(tl.int64) * J
        at = tl.cast(expert, tl.int64) * (D * J) + d[:, None] * J
        acc = tl.zeros([BD, BM], tl.float32) if TURN else tl.zeros([BM, BD], tl.float32)
        for n in tl.range(0, J, BK, num_stages=STAGES):
            col = (n + k)[None, :]
            if EVEN:
                value = tl.load(rows + col, mask=live[:, None], other=0.0)
                weight = tl.load(w_down + at + col)
            else:
                ok = (d < D)[:, None] & (col < J)
                value = tl.load(rows + col, mask=live[:, None] & (col < J), other=0.0)
                weight = tl.load(w_down + at + col, mask=ok, other=0.0)
            acc = _product(weight, value, acc, TURN)
        share = tl.load(weights + which, mask=live, other=0.0).to(tl.float32)
        to = out + which[:, None].to(tl.int64) * D + d[None, :]
        held = live[:, None] & (d < D)[None, :]
        if TURN:
            acc = acc * share[None, :]
            tl.store(to, acc.to(out.dtype.element_ty).T, mask=held)
        else:
            acc = acc * share[:, None]
            tl.store(to, acc.to(out.dtype.element_ty), mask=held)
    if PDL:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["start"])
def expert_sum(
    parts, residual, ids, y, start,
    A: tl.constexpr, E: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ADD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`y[N,D] = sum_a parts[N,A,D]` over the experts that are here, in order; and the residual."""
    token = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BD], tl.float32)
    for a in tl.static_range(A):
        expert = tl.load(ids + token * A + a) - start
        ok = (d < D) & (expert >= 0) & (expert < E)
        acc += tl.load(parts + (token * A + a) * D + d, mask=ok, other=0.0).to(tl.float32)
    if ADD:
        acc += tl.load(residual + token * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + token * D + d, acc.to(y.dtype.element_ty), mask=d < D)
