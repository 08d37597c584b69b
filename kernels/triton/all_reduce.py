# SPDX-License-Identifier: MIT
"""Sums over ranks whose memory each rank can read, in rank order; every rank gets the same bits.

Ranks share one `Exchange` each: flags, then two halves of data.  A program of a launch owns one
region of each half on every rank, so programs of different ranks meet in pairs, never all at once.
A program writes its part of `x`, raises a flag at each peer, waits for theirs, and sums what all
wrote; of a large `x` it has several parts, one a turn.  It uses the halves in turn: a peer that has
raised the flag of this turn has read what was written two turns ago, since its own turns follow one
another.
"""

from typing import Any

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of

REGION_BYTES = 4096  # a part, where programs have one each
WIDE_BYTES = 16384  # where they have several: each turn waits for peers
PROGRAMS = 256
MOST_BYTES = 1 << 28
_ROUNDS = 2  # flags a turn: one for what ranks wrote, one for what each has summed
_BLOCK = 4096


@attrs.frozen(eq=False)
class Exchange:
    """Memory of every rank at the addresses by which this rank reads it.

    `addresses` int64 `[ranks]`; each is memory of zeros before the first launch, `exchange_bytes`
    for `all_reduce`.
    `turns` int32 `[PROGRAMS]`, this rank's own: how often each program has run.
    """

    addresses: Tensor
    turns: Tensor
    rank: int

    @classmethod
    def of(cls, addresses: Tensor, rank: int) -> "Exchange":
        """Return the exchange of ranks that have run no launch yet."""
        turns = torch.zeros(PROGRAMS, dtype=torch.int32, device=addresses.device)
        return cls(addresses, turns, rank)


def exchange_bytes(ranks: int) -> int:
    """Return the bytes of memory that each rank gives: flags, two halves, and two of its sums."""
    return 4 * _ROUNDS * ranks * PROGRAMS + 4 * PROGRAMS * WIDE_BYTES


@triton.jit
def _meet(flags, own, pid, turn, RANK: tl.constexpr, RANKS: tl.constexpr, PROGRAMS: tl.constexpr,
          ROUND: tl.constexpr):  # fmt: skip
    """Tell every peer's program `pid` that this one has come to `turn`, and wait for theirs."""
    tl.debug_barrier()
    place: tl.constexpr = ROUND * RANKS * PROGRAMS
    for r in tl.static_range(RANKS):
        if r != RANK:
            peer = tl.load(flags + r).to(tl.pointer_type(tl.int32))
            at = peer + place + RANK * PROGRAMS + pid
            tl.atomic_xchg(at, turn, sem="release", scope="sys")
    for r in tl.static_range(RANKS):
        if r != RANK:
            at = own + place + r * PROGRAMS + pid
            # Turns wrap around; their difference does not.
            while tl.atomic_add(at, 0, sem="acquire", scope="sys") - turn < 0:
                pass
    tl.debug_barrier()


@triton.jit
def sum_ranks(
    x, residual, y, addresses, turns, size,
    RANK: tl.constexpr, RANKS: tl.constexpr, REGION: tl.constexpr, STRIDE: tl.constexpr,
    PROGRAMS: tl.constexpr, ADDS: tl.constexpr, TWICE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[size]`, the sum of the ranks' `x[size]`, REGION elements a program and turn.

    Programs' regions lie STRIDE elements apart, whatever REGION of a launch.  ADDS: the rounded
    sum is added to `residual[size]`.  TWICE: a rank sums its part of a region only, and reads the
    other sums from their ranks.
    """
    pid = tl.program_id(0)
    e = tl.arange(0, REGION)
    own = tl.load(addresses + RANK).to(tl.pointer_type(tl.int32))
    flag_count: tl.constexpr = 2 * RANKS * PROGRAMS
    mine = tl.multiple_of((own + flag_count).to(x.dtype), 16)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    turn = tl.load(turns + pid)
    for start in range(pid * REGION, size, tl.num_programs(0) * REGION):
        turn += 1
        at = start + e
        base = ((turn & 1) * PROGRAMS + pid) * STRIDE
        tl.store(mine + base + e, tl.load(x + at, mask=at < size, other=0.0))
        _meet(addresses, own, pid, turn, RANK, RANKS, PROGRAMS, 0)
        if TWICE:
            PART: tl.constexpr = REGION // RANKS
            f = RANK * PART + tl.arange(0, PART)
            part = tl.zeros((PART,), tl.float32)
            for r in tl.static_range(RANKS):
                peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
                data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
                part += tl.load(data + base + f, volatile=True).to(tl.float32)
            summed = base + 2 * PROGRAMS * STRIDE
            tl.store(mine + summed + f, part.to(x.dtype.element_ty))
            _meet(addresses, own, pid, turn, RANK, RANKS, PROGRAMS, 1)
            for r in tl.static_range(RANKS):
                peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
                data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
                g = r * PART + tl.arange(0, PART)
                value = tl.load(data + summed + g, volatile=True)
                finish(value, residual, y, start + g, size, ADDS)
        else:
            total = tl.zeros((REGION,), tl.float32)
            for r in tl.static_range(RANKS):
                peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
                data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
                total += tl.load(data + base + e, volatile=True).to(tl.float32)
            finish(total.to(x.dtype.element_ty), residual, y, at, size, ADDS)
    tl.store(turns + pid, turn)


@triton.jit
def finish(total, residual, y, at, size, ADDS: tl.constexpr):
    """Store a sum, rounded as it is without a residual."""
    ok = at < size
    if ADDS:
        kept = tl.load(residual + at, mask=ok, other=0.0).to(tl.float32)
        total = (kept + total.to(tl.float32)).to(total.dtype)
    tl.store(y + at, total, mask=ok)


def can_sum(x: Tensor) -> bool:
    """Whether `all_reduce` takes `x`: 16- or 32-bit floats, at most MOST_BYTES of them."""
    return x.is_floating_point() and x.itemsize in (2, 4) and 0 < x.nbytes <= MOST_BYTES


def operands(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both, contiguous; `x` stands in for a residual that is none."""
    x = x.contiguous()
    kept = x if residual is None else residual.contiguous()
    assert (kept.shape, kept.dtype) == (x.shape, x.dtype)
    return x, kept


def all_reduce(
    x: Tensor, exchange: Exchange, twice: bool = False, residual: Tensor | None = None
) -> Tensor:
    """Return the sum in float32, in rank order, of the ranks' `x`; `twice` moves it in two hops.

    It is rounded to x's dtype, and then added to `residual`, of x's type, if there is one.  All
    ranks call it with the same shape, in the same order.  Reads nothing on the host.
    """
    assert can_sum(x), (x.dtype, x.shape)
    x, kept = operands(x, residual)
    y = torch.empty_like(x)
    device = device_of(x)
    wide = x.nbytes > PROGRAMS * REGION_BYTES
    region = (WIDE_BYTES if wide else REGION_BYTES) // x.itemsize
    grid = (min(triton.cdiv(x.numel(), region), PROGRAMS),)
    sum_ranks[grid](
        x, kept, y, exchange.addresses, exchange.turns, x.numel(),
        exchange.rank, len(exchange.addresses), region, WIDE_BYTES // x.itemsize, PROGRAMS,
        residual is not None, twice, device.has_dependent_launch,
        **device.options(8 if wide else 4),
    )  # fmt: skip
    return y


@triton.jit
def sum_parts(
    parts, residual, y, size,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[size]`, the sum over PARTS of `parts[PARTS,size]` in float32, in order.

    ADDS: the rounded sum is added to `residual[size]`.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    total = tl.load(parts + at, mask=ok, other=0.0).to(tl.float32)
    stride = tl.cast(size, tl.int64)
    for part in tl.static_range(1, PARTS):
        more = tl.load(parts + part * stride + at, mask=ok, other=0.0)
        total += more.to(tl.float32)
    finish(total.to(y.dtype.element_ty), residual, y, at, size, ADDS)


def rank_sum(parts: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the sum `[...]` of `parts[r,...]` in float32, in order; rounded, plus `residual`."""
    parts = parts.contiguous()
    y = torch.empty_like(parts[0])
    if y.numel():
        device = device_of(y)
        kept = parts if residual is None else residual.contiguous()
        grid = (triton.cdiv(y.numel(), _BLOCK),)
        sum_parts[grid](
            parts, kept, y, y.numel(), len(parts), _BLOCK, residual is not None,
            device.has_dependent_launch, **device.options(8),
        )  # fmt: skip
    return y


def all_reduce_add(c: Any, axis: str, x: Tensor, residual: Tensor) -> Tensor:
    """Return `residual` plus the sum of `x` over the ranks of `axis`, by what sums for a rank."""
    y: Tensor = c.all_reduce_add(x, axis, residual)
    return y
