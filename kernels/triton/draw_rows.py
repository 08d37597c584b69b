# SPDX-License-Identifier: MIT
"""Draws of many rows, each by one program: a search for the last key that is kept.

A search finds the greatest key from which counts, or masses, reach a
target, two bits a pass: a pass reads the row from the second-level cache, and three sums stay in
registers.  Bits below those of the logit are looked at only where equal logits straddle the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of
from .token_key import key_of, mass_of, score_of


@triton.jit
def _search(
    logits, mass, target, V, BITS: tl.constexpr, BV: tl.constexpr, WEIGHED: tl.constexpr
):  # fmt: skip
    """Return the greatest key from which the sum of ones, or of `mass`, reaches `target`, or 0."""
    floor = tl.zeros([], tl.int64)
    v = tl.arange(0, BV)
    shift = tl.full([], BITS + 30, tl.int32)
    while shift >= 0:
        step = tl.full([], 1, tl.int64) << shift
        one = tl.zeros([BV], tl.int64)
        two = tl.zeros([BV], tl.int64)
        three = tl.zeros([BV], tl.int64)
        level = tl.zeros([BV], tl.int32)
        for start in range(0, V, BV):
            token = start + v
            ok = token < V
            x = tl.load(logits + token, mask=ok, other=float("-inf")).to(tl.float32)
            key = tl.where(ok, key_of(x, token, BITS), -1)
            if WEIGHED:
                weight = tl.load(mass + token, mask=ok, other=0)
            else:
                weight = tl.full([BV], 1, tl.int64)
            one += tl.where(key >= floor + step, weight, 0)
            two += tl.where(key >= floor + 2 * step, weight, 0)
            three += tl.where(key >= floor + 3 * step, weight, 0)
            level += ((key >> BITS) == (floor >> BITS)).to(tl.int32)
        digit = (tl.sum(one) >= target).to(tl.int64)
        digit += (tl.sum(two) >= target).to(tl.int64)
        digit += (tl.sum(three) >= target).to(tl.int64)
        # Once the logit is known, its only token needs no more bits.
        done = (shift < BITS) & (tl.sum(level) <= 1)
        floor = tl.where(done, floor, floor + digit * step)
        shift = tl.where(done, -1, shift - 2)
    return floor


@triton.jit
def draw_row(
    logits, temperature, top_k, top_p, seed, position, mass, pairs, V, stride,
    BITS: tl.constexpr, BV: tl.constexpr, FILTERED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`pairs[rows,2]`: the greatest score of a row of `logits[rows,V]` and its token.

    `mass[rows,V]` int64 is memory for a search over masses.
    """
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BV)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    logits += row * stride
    mass += row * V
    heat = tl.load(temperature + row).to(tl.float64)
    divisor = tl.where(heat > 0, heat, 1.0)
    tops = tl.full([BV], float("-inf"), tl.float32)
    nans = tl.zeros([BV], tl.int32)
    for start in range(0, V, BV):
        x = tl.load(logits + start + v, mask=start + v < V, other=float("-inf")).to(tl.float32)
        nans += (x != x).to(tl.int32)
        tops = tl.maximum(tops, x)
    top = tl.max(tops, 0)
    finite = (tl.sum(nans) == 0) & (top > float("-inf")) & (top < float("inf"))
    counted = tl.zeros([], tl.int64)
    massed = tl.zeros([], tl.int64)
    if FILTERED:
        k = tl.load(top_k + row).to(tl.int64)
        share = tl.load(top_p + row).to(tl.float64)
        if finite & (k > 0) & (k < V):
            counted = _search(logits, mass, k, V, BITS, BV, False)
        if finite & (share < 1):
            totals = tl.zeros([BV], tl.int64)
            for start in range(0, V, BV):
                token = start + v
                ok = token < V
                x = tl.load(logits + token, mask=ok, other=float("-inf")).to(tl.float32)
                kept = ok & (key_of(x, token, BITS) >= counted)
                weight = tl.where(kept, mass_of(x, top, divisor), 0)
                tl.store(mass + token, weight, mask=ok)
                totals += weight
            wanted = tl.sum(totals).to(tl.float64) * share
            target = wanted.to(tl.int64)
            target += (target.to(tl.float64) < wanted).to(tl.int64)
            tl.debug_barrier()
            massed = _search(logits, mass, tl.maximum(target, 1), V, BITS, BV, True)
    seeded, at = tl.load(seed + row), tl.load(position + row)
    best = tl.full([BV], float("-inf"), tl.float64)
    chosen = tl.full([BV], 2147483647, tl.int32)
    for start in range(0, V, BV):
        token = start + v
        ok = token < V
        x = tl.load(logits + token, mask=ok, other=float("-inf")).to(tl.float32)
        score = score_of(x, token, heat, seeded, at)
        if FILTERED:
            key = key_of(x, token, BITS)
            ok = ok & (key >= counted) & (key >= massed)
        better = ok & (score > best)
        best = tl.where(better, score, best)
        chosen = tl.where(better, token, chosen)
    greatest = tl.max(best, 0)
    found = tl.min(tl.where(best == greatest, chosen, 2147483647), 0)
    nothing = tl.full([], float("nan"), tl.float64)
    tl.store(pairs + row * 2, tl.where(finite, greatest, nothing))
    tl.store(pairs + row * 2 + 1, tl.where(finite, found, 0).to(tl.float64))


def draw_by_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    position: Tensor,
    filtered: bool,
) -> Tensor:
    """Return what `draw_tokens` does for m >= 1 rows, each contiguous."""
    m, vocabulary = logits.shape
    pairs = torch.empty(m, 2, dtype=torch.float64, device=logits.device)
    device = device_of(logits)
    mass = torch.empty((m, vocabulary) if filtered else 1, dtype=torch.int64, device=logits.device)
    bits = -(-(vocabulary - 1).bit_length() // 2) * 2
    block = min(4096, triton.next_power_of_2(vocabulary))
    draw_row[(m,)](
        logits, temperature, top_k, top_p, seed, position, mass, pairs, vocabulary,
        logits.stride(0), bits, block, filtered, device.has_dependent_launch,
        **device.options(16),
    )  # fmt: skip
    return pairs
