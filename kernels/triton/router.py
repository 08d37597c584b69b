# SPDX-License-Identifier: MIT
"""Choice of experts by softmax."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..router import softmax_router as reference
from .device import device_of


@triton.jit
def choose(
    logits, ids, weights, factor,
    E: tl.constexpr, BE: tl.constexpr, A: tl.constexpr, BA: tl.constexpr, SHARE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`ids`, `weights` `[n,A]`: the likeliest of `logits[n,E]`; ties go to the lower expert."""
    row = tl.program_id(0)
    e = tl.arange(0, BE)
    a = tl.arange(0, BA)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(logits + row * E + e, mask=e < E, other=float("-inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x))
    p = p / tl.sum(p)
    left = tl.where(e < E, p, -1.0)
    found = tl.zeros([BA], tl.int32)
    kept = tl.zeros([BA], tl.float32)
    for i in tl.static_range(A):
        best = tl.max(left)
        which = tl.min(tl.where(left == best, e, BE))
        found = tl.where(a == i, which, found)
        kept = tl.where(a == i, best, kept)
        left = tl.where(e == which, -2.0, left)
    if SHARE:
        kept = kept / tl.sum(kept)
    tl.store(ids + row * A + a, found, mask=a < A)
    out = (kept * factor).to(weights.dtype.element_ty)
    tl.store(weights + row * A + a, out, mask=a < A)


def softmax_router(
    logits: Tensor,
    active: int,
    renormalise: bool,
    groups: int = 1,
    kept_groups: int = 1,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: the likeliest experts of `logits[n,e]`.

    See the reference, which computes what keeps only some groups.
    """
    n, count = logits.shape
    if kept_groups < groups or not n:
        return reference(logits, active, renormalise, groups, kept_groups, factor)
    logits = logits.contiguous()
    ids = torch.empty(n, active, dtype=torch.int32, device=logits.device)
    weights = torch.empty(n, active, dtype=logits.dtype, device=logits.device)
    device = device_of(logits)
    choose[(n,)](
        logits, ids, weights, factor, count, triton.next_power_of_2(count), active,
        triton.next_power_of_2(active), renormalise, device.has_dependent_launch,
        **device.options(1),
    )  # fmt: skip
    return ids, weights
