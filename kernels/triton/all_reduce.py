# SPDX-License-Identifier: MIT
"""Sums over ranks whose memory each rank can read, in rank order; every rank gets the same bits.

Ranks share one `Exchange` each: flags, then two halves of data.  A program of a launch owns one
region of each half on every rank, so programs of different ranks meet in pairs, never all at once.
A program writes its part of `x`, raises a flag at each peer, waits for theirs, and sums what all
wrote.  It uses the halves in turn: a peer that has raised the flag of this turn has read what was
written two turns ago, since its own launches follow one another.
"""

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of

REGION_BYTES = 4096
PROGRAMS = 128
MOST_BYTES = PROGRAMS * REGION_BYTES
_ROUNDS = 2  # flags a turn: one for what ranks wrote, one for what each has summed
_BLOCK = 4096


@attrs.frozen(eq=False)
class Exchange:
    """Memory of every rank at the addresses by which this rank reads it.

    `addresses` int64 `[ranks]`; each is `exchange_bytes(ranks)` of zeros before the first launch.
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
    return 4 * _ROUNDS * ranks * PROGRAMS + 4 * MOST_BYTES


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
    x, y, addresses, turns, size,
    RANK: tl.constexpr, RANKS: tl.constexpr, REGION: tl.constexpr, PROGRAMS: tl.constexpr,
    TWICE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`y[size]`, the sum of the ranks' `x[size]`, REGION elements a program.

    TWICE: a rank sums its part of a region only, and reads the other sums from their ranks.
    """
    pid = tl.program_id(0)
    e = tl.arange(0, REGION)
    at = pid * REGION + e
    own = tl.load(addresses + RANK).to(tl.pointer_type(tl.int32))
    flag_count: tl.constexpr = 2 * RANKS * PROGRAMS
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    turn = tl.load(turns + pid) + 1
    place = ((turn & 1) * PROGRAMS + pid) * REGION + e
    mine = tl.multiple_of((own + flag_count).to(x.dtype), 16)
    tl.store(mine + place, tl.load(x + at, mask=at < size, other=0.0))
    _meet(addresses, own, pid, turn, RANK, RANKS, PROGRAMS, 0)
    if TWICE:
        PART: tl.constexpr = REGION // RANKS
        f = RANK * PART + tl.arange(0, PART)
        base = ((turn & 1) * PROGRAMS + pid) * REGION
        part = tl.zeros((PART,), tl.float32)
        for r in tl.static_range(RANKS):
            peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
            data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
            part += tl.load(data + base + f, volatile=True).to(tl.float32)
        summed = base + 2 * PROGRAMS * REGION
        tl.store(mine + summed + f, part.to(x.dtype.element_ty))
        _meet(addresses, own, pid, turn, RANK, RANKS, PROGRAMS, 1)
        for r in tl.static_range(RANKS):
            peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
            data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
            g = r * PART + tl.arange(0, PART)
            value = tl.load(data + summed + g, volatile=True)
            tl.store(y + pid * REGION + g, value, mask=pid * REGION + g < size)
    else:
        total = tl.zeros((REGION,), tl.float32)
        for r in tl.static_range(RANKS):
            peer = tl.load(addresses + r).to(tl.pointer_type(tl.int32))
            data = tl.multiple_of((peer + flag_count).to(x.dtype), 16)
            total += tl.load(data + place, volatile=True).to(tl.float32)
        tl.store(y + at, total.to(x.dtype.element_ty), mask=at < size)
    tl.store(turns + pid, turn)


def can_sum(x: Tensor) -> bool:
    """Whether `all_reduce` takes `x`: 16- or 32-bit floats, at most MOST_BYTES of them."""
    return x.is_floating_point() and x.itemsize in (2, 4) and 0 < x.nbytes <= MOST_BYTES


def all_reduce(x: Tensor, exchange: Exchange, twice: bool = False) -> Tensor:
    """Return the sum in float32, in rank order, of the ranks' `x`; `twice` moves it in two hops.

    All ranks call it with the same shape, in the same order.  Reads nothing on the host.
    """
    assert can_sum(x), (x.dtype, x.shape)
    x = x.contiguous()
    y = torch.empty_like(x)
    device = device_of(x)
    region = REGION_BYTES // x.itemsize
    grid = (triton.cdiv(x.numel(), region),)
    sum_ranks[grid](
        x, y, exchange.addresses, exchange.turns, x.numel(),
        exchange.rank, len(exchange.addresses), region, PROGRAMS, twice,
        device.has_dependent_launch, **device.options(4),
    )  # fmt: skip
    return y


@triton.jit
def sum_parts(parts, y, size, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """`y[size]`, the sum over PARTS of `parts[PARTS,size]` in float32, in order."""
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
    tl.store(y + at, total.to(y.dtype.element_ty), mask=ok)


def rank_sum(parts: Tensor) -> Tensor:
    """Return the sum `[...]` of `parts[r,...]` in float32, in order."""
    parts = parts.contiguous()
    y = torch.empty_like(parts[0])
    if y.numel():
        device = device_of(y)
        grid = (triton.cdiv(y.numel(), _BLOCK),)
        sum_parts[grid](
            parts, y, y.numel(), len(parts), _BLOCK, device.has_dependent_launch,
            **device.options(8),
        )  # fmt: skip
    return y
