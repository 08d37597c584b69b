# SPDX-License-Identifier: MIT
"""Assignments of tokens to experts in the order of the experts."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of

# Every assignment is compared with every other: more are sorted by a library.
_MOST = 4096
_ROWS, _COLUMNS = 32, 256


@triton.jit(do_not_specialize=["total", "start"])
def ranks(
    ids, order, ends, total, start,
    E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Put BM assignments into `order`, and say where BM experts end."""
    mine = tl.program_id(0) * BM + tl.arange(0, BM)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    own = tl.load(ids + mine, mask=mine < total, other=0).to(tl.int32) - start
    own = tl.where((own < 0) | (own >= E), E, own)
    rank = tl.zeros([BM], tl.int32)
    end = tl.zeros([BM], tl.int32)
    for n in range(0, total, BN):
        at = n + tl.arange(0, BN)
        other = tl.load(ids + at, mask=at < total, other=0).to(tl.int32) - start
        other = tl.where((other < 0) | (other >= E), E, other)
        other = tl.where(at < total, other, E + 1)
        before = other[None, :] < own[:, None]
        before |= (other[None, :] == own[:, None]) & (at[None, :] < mine[:, None])
        rank += tl.sum(before.to(tl.int32), 1)
        end += tl.sum((other[None, :] <= mine[:, None]).to(tl.int32), 1)
    tl.store(order + rank, mine, mask=mine < total)
    tl.store(ends + mine, end, mask=mine < E)


def by_expert(ids: Tensor, start: int, here: int) -> tuple[Tensor, Tensor]:
    """Return assignments sorted by expert, and where each of the `here` experts ends; both int32.

    Experts count from `start`; those of other ranks come last.  Equals keep their order.
    """
    total = ids.numel()
    if total > _MOST:
        return _sorted(ids, start, here)
    device = device_of(ids)
    order = torch.empty(total, dtype=torch.int32, device=ids.device)
    ends = torch.empty(here, dtype=torch.int32, device=ids.device)
    pdl = device.has_dependent_launch
    ranks[(triton.cdiv(max(total, here), _ROWS),)](
        ids, order, ends, total, start, here, _ROWS, _COLUMNS, pdl, **device.options(4)
    )
    return order, ends


def _sorted(ids: Tensor, start: int, here: int) -> tuple[Tensor, Tensor]:
    flat = ids.flatten().long() - start
    flat = torch.where((flat < 0) | (flat >= here), here, flat)
    order = flat.argsort(stable=True)
    counts = torch.zeros(here + 1, dtype=torch.int32, device=ids.device)
    # Counts are of whole numbers, so that their order does not matter.
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    return order.int(), counts.cumsum(0, dtype=torch.int32)[:here]
