# SPDX-License-Identifier: MIT
"""Experts of a mixture: products of the tokens that chose an expert with its matrices.

Dims: N tokens, A experts a token, E experts here, D model, J expert mlp; an assignment is one
(token, expert).  A program computes one tile of assignments of one expert.  Few tokens: a tile is
one assignment, nothing is sorted.  Many: assignments are sorted by expert, expert e's tiles begin
at number `begin[e] // BM + e`, so that a launch of `N * A // BM + E` holds them all.  Nothing is
padded, the host reads nothing, and sums are in the order of a token's experts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of
from .linear import linear, norm_linear
from .norm import rms_norm
from .router import softmax_router

MAX_UNSORTED = 8


@triton.jit
def _assignments(
    tile, ids, order, ends, total, start,
    E: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    """Return (expert from 0, assignments `[BM]`, which of them are real) of a tile."""
    m = tl.arange(0, BM)
    if SORTED:
        e = tl.arange(0, BE)
        begins = tl.load(ends + e - 1, mask=(e > 0) & (e < E), other=0)
        first = tl.where(e < E, begins // BM + e, 2147483647)
        expert = tl.sum((first <= tile).to(tl.int32)) - 1
        begin = tl.sum(tl.where(e == expert, begins, 0))
        at = begin + (tile - (begin // BM + expert)) * BM + m
        live = at < tl.load(ends + expert)
        which = tl.load(order + at, mask=live, other=0).to(tl.int32)
    else:
        expert = tl.load(ids + tile).to(tl.int32) - start
        which = tile + m
        live = (m == 0) & (expert >= 0) & (expert < E)
    return expert, which, live


@triton.jit(do_not_specialize=["total", "start"])
def expert_hidden(
    x, gain, ids, order, ends, w_gate, w_up, hidden, total, start, eps,
    A: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, J: tl.constexpr,
    BM: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    NORM: tl.constexpr, SORTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`hidden[N*A,J] = silu(x w_gate) * (x w_up)` of `x[N,D]`, `w_gate`, `w_up` `[E,D,J]`.

    With NORM rows are normed on the way, `gain[D]` being the norm's weight.
    """
    if PDL:
        gdc_wait()
    expert, which, live = _assignments(
        tl.program_id(1), ids, order, ends, total, start, E, BE, BM, SORTED
    )
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    k = tl.arange(0, BK)
    if tl.sum(live.to(tl.int32)) > 0:
        base = tl.cast(expert, tl.int64) * (D * J)
        rows = x + (which // A)[:, None] * D
        gate = tl.zeros([BM, BJ], tl.float32)
        up = tl.zeros([BM, BJ], tl.float32)
        square = tl.zeros([BM], tl.float32)
        for n in tl.range(0, D, BK, num_stages=STAGES):
            at = n + k
            value = tl.load(rows + at[None, :], mask=live[:, None] & (at < D)[None, :], other=0.0)
            if NORM:
                wide = value.to(tl.float32)
                square += tl.sum(wide * wide, 1)
                times = tl.load(gain + at, mask=at < D, other=0.0).to(tl.float32)
                value = (wide * times[None, :]).to(value.dtype)
            place = base + at[:, None] * J + j[None, :]
            ok = (at < D)[:, None] & (j < J)[None, :]
            weight = tl.load(w_gate + place, mask=ok, other=0.0)
            gate = tl.dot(value, weight, gate, input_precision="ieee")
            weight = tl.load(w_up + place, mask=ok, other=0.0)
            up = tl.dot(value, weight, up, input_precision="ieee")
        if NORM:
            scale = tl.rsqrt(square / D + eps)[:, None]
            gate = gate * scale
            up = up * scale
        out = gate * tl.sigmoid(gate) * up
        to = hidden + which[:, None].to(tl.int64) * J + j[None, :]
        tl.store(to, out.to(hidden.dtype.element_ty), mask=live[:, None] & (j < J)[None, :])
    if PDL:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["total", "start"])
def expert_down(
    hidden, ids, order, ends, weights, w_down, out, total, start,
    E: tl.constexpr, BE: tl.constexpr, D: tl.constexpr, J: tl.constexpr, BM: tl.constexpr,
    BD: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, SORTED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`out[N*A,D] = weights[N*A] * (hidden[N*A,J] w_down[E,J,D])`; other ranks' rows stay."""
    if PDL:
        gdc_wait()
    expert, which, live = _assignments(
        tl.program_id(1), ids, order, ends, total, start, E, BE, BM, SORTED
    )
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    k = tl.arange(0, BK)
    if tl.sum(live.to(tl.int32)) > 0:
        base = tl.cast(expert, tl.int64) * (D * J)
        rows = hidden + which[:, None].to(tl.int64) * J
        acc = tl.zeros([BM, BD], tl.float32)
        for n in tl.range(0, J, BK, num_stages=STAGES):
            at = n + k
            value = tl.load(rows + at[None, :], mask=live[:, None] & (at < J)[None, :], other=0.0)
            ok = (at < J)[:, None] & (d < D)[None, :]
            weight = tl.load(w_down + base + at[:, None] * D + d[None, :], mask=ok, other=0.0)
            acc = tl.dot(value, weight, acc, input_precision="ieee")
        share = tl.load(weights + which, mask=live, other=0.0).to(tl.float32)
        to = out + which[:, None].to(tl.int64) * D + d[None, :]
        acc = acc * share[:, None]
        tl.store(to, acc.to(out.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])
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


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int = 0,
) -> Tensor:
    """Return `sum_a weights[n,a] * mlp_ids[n,a](x[n,d])` `[n,d]`; see the reference."""
    return _experts(x, ids, weights, w_gate, w_up, w_down, start)


def norm_moe_add(
    x: Tensor,
    w_norm: Tensor,
    w_router: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    active: int,
    renormalise: bool,
    eps: float,
) -> Tensor:
    """Return `x[n,d]` plus the update of its norm's experts: five launches for few tokens."""
    x = x.contiguous()
    few = x.shape[0] <= MAX_UNSORTED
    normed = x if few else rms_norm(x, w_norm, eps)
    scores = norm_linear(x, w_norm, w_router, eps) if few else linear(normed, w_router)
    ids, weights = softmax_router(scores, active, renormalise)
    gain = w_norm if few else None
    return _experts(normed, ids, weights, w_gate, w_up, w_down, 0, gain, eps, residual=x)


def _experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int,
    gain: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    n, d = x.shape
    y = torch.empty(n, d, dtype=x.dtype, device=x.device)
    if not n:
        return y
    here, _, j = w_gate.shape
    active = ids.shape[1]
    total = n * active
    x, ids, weights = x.contiguous(), ids.contiguous(), weights.contiguous()
    w_gate, w_up, w_down = w_gate.contiguous(), w_up.contiguous(), w_down.contiguous()
    device = device_of(x)
    pdl = device.has_dependent_launch
    is_sorted = n > MAX_UNSORTED
    order = ends = ids
    rows, tiles = 16, total
    if is_sorted:
        order, ends = _by_expert(ids, start, here)
        mean = total // here
        rows = 16 if mean <= 16 else 32 if mean <= 32 else 64 if mean <= 64 else 128
        tiles = total // rows + here
    columns, depth, stages, warps = _tile(rows, x.element_size(), device.max_stages)
    hidden = torch.empty(total, j, dtype=x.dtype, device=x.device)
    parts = torch.empty(total, d, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(here)
    options = device.options(warps)
    expert_hidden[(triton.cdiv(j, columns), tiles)](
        x, x if gain is None else gain, ids, order, ends, w_gate, w_up, hidden, total, start, eps,
        active, here, block, d, j, rows, columns, depth, stages, gain is not None, is_sorted, pdl,
        **options,
    )  # fmt: skip
    expert_down[(triton.cdiv(d, columns), tiles)](
        hidden, ids, order, ends, weights, w_down, parts, total, start,
        here, block, d, j, rows, columns, depth, stages, is_sorted, pdl, **options,
    )  # fmt: skip
    width = min(1024, triton.next_power_of_2(d))
    expert_sum[(triton.cdiv(d, width), n)](
        parts, y if residual is None else residual, ids, y, start,
        active, here, d, width, residual is not None, pdl, **device.options(4),
    )  # fmt: skip
    return y


def _by_expert(ids: Tensor, start: int, here: int) -> tuple[Tensor, Tensor]:
    """Return assignments sorted by expert, those of other ranks last, and where each expert ends.

    The counts are of whole numbers, so that their order does not matter.
    """
    flat = ids.flatten().long() - start
    flat = torch.where((flat < 0) | (flat >= here), here, flat)
    order = flat.argsort(stable=True)
    counts = torch.zeros(here + 1, dtype=torch.int32, device=ids.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    return order.int(), counts.cumsum(0, dtype=torch.int32)


def _tile(rows: int, itemsize: int, max_stages: int) -> tuple[int, int, int, int]:
    """Return (columns, inputs a step, stages, warps) of a tile of `rows` assignments."""
    if itemsize > 2:
        return 32, 32, min(2, max_stages), 4
    if rows == 16:  # bound by the bytes of the matrices: many programs, deep pipelines
        return 32, 128, min(4, max_stages), 4
    if rows <= 64:
        return 64, 64, min(3, max_stages), 4
    return 128, 64, min(3, max_stages), 8
