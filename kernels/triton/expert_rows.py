# SPDX-License-Identifier: MIT
"""Experts of few tokens, by multiply-add: bound by the bytes of the matrices that were chosen.

Dims as in `experts.py`.  A program computes some outputs of one assignment, or of one token, from
whole rows of a matrix.  Tokens come first in the grid: programs that run together read the same
rows where tokens chose the same expert.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit(do_not_specialize=["start"])
def row_hidden(
    x, gain, ids, w_gate, w_up, hidden, start, eps,
    A: tl.constexpr, E: tl.constexpr, D: tl.constexpr, J: tl.constexpr, BJ: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`hidden[N*A,J] = silu(w_gate x) * (w_up x)` of `x[N,D]`, `w_gate`, `w_up` `[E,J,D]`.

    With NORM rows are normed on the way, `gain[D]` being the norm's weight.
    """
    which = tl.program_id(0)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    k = tl.arange(0, BK)
    EVEN: tl.constexpr = D % BK == 0 and J % BJ == 0
    if PDL:
        gdc_wait()
    expert = tl.load(ids + which).to(tl.int32) - start
    if (expert >= 0) & (expert < E):
        row = x + (which // A).to(tl.int64) * D
        at = expert.to(tl.int64) * (J * D) + j[:, None] * D + k[None, :]
        gate = tl.zeros([BJ, BK], tl.float32)
        up = tl.zeros([BJ, BK], tl.float32)
        square = tl.zeros([BK], tl.float32)
        for n in tl.range(0, D, BK, num_stages=STAGES):
            if EVEN:
                value = tl.load(row + n + k).to(tl.float32)
                first = tl.load(w_gate + at + n)
                second = tl.load(w_up + at + n)
            else:
                ok = (j < J)[:, None] & (n + k < D)[None, :]
                value = tl.load(row + n + k, mask=n + k < D, other=0.0).to(tl.float32)
                first = tl.load(w_gate + at + n, mask=ok, other=0.0)
                second = tl.load(w_up + at + n, mask=ok, other=0.0)
            if NORM:
                square += value * value
                value *= tl.load(gain + n + k, mask=n + k < D, other=0.0).to(tl.float32)
            gate += first.to(tl.float32) * value[None, :]
            up += second.to(tl.float32) * value[None, :]
        opened = tl.sum(gate, 1)
        passed = tl.sum(up, 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(square) / D + eps)
            opened *= scale
            passed *= scale
        out = opened * tl.sigmoid(opened) * passed
        tl.store(hidden + which.to(tl.int64) * J + j, out.to(hidden.dtype.element_ty), mask=j < J)
    if PDL:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["start"])
def row_update(
    hidden, ids, weights, w_down, residual, y, start,
    A: tl.constexpr, E: tl.constexpr, D: tl.constexpr, J: tl.constexpr, BD: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[N,D] = sum_a weights[N,a] * (w_down hidden[N,a])`, `w_down[E,D,J]`; and the residual."""
    token = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    k = tl.arange(0, BK)
    PARTS: tl.constexpr = (J + BK - 1) // BK
    acc = tl.zeros([BD, BK], tl.float32)
    if PDL:
        gdc_wait()
    for i in tl.range(0, A * PARTS, num_stages=STAGES):
        which = token * A + i // PARTS
        n = i % PARTS * BK + k
        expert = tl.load(ids + which).to(tl.int32) - start
        here = (expert >= 0) & (expert < E) & (n < J)
        share = tl.load(weights + which).to(tl.float32)
        value = tl.load(hidden + which.to(tl.int64) * J + n, mask=here, other=0.0)
        at = expert.to(tl.int64) * (D * J) + d[:, None] * J + n[None, :]
        weight = tl.load(w_down + at, mask=here[None, :] & (d < D)[:, None], other=0.0)
        acc += weight.to(tl.float32) * (value.to(tl.float32) * share)[None, :]
    if PDL:
        gdc_launch_dependents()
    out = tl.sum(acc, 1)
    to = token.to(tl.int64) * D + d
    if ADD:
        out += tl.load(residual + to, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + to, out.to(y.dtype.element_ty), mask=d < D)
