# SPDX-License-Identifier: MIT
"""Draws of few rows, each by many programs: a search by digits for the last key that is kept.

P programs share a row: each launch adds up what a digit of the keys has in its part, and the next
one reads from all parts which digit the search goes on with.  Counts and masses are whole, so the
order of sums does not matter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of
from .token_key import key_of, mass_of, score_of

_ALL = tl.constexpr(1 << 62)  # more than any row's mass or number of tokens
_DIGIT_BITS = 4
_MOST_PARTS = 64


@triton.jit
def _descended(floor, target, totals, shift, D: tl.constexpr):
    """Return the search's `floor` and `target` after a digit whose values weigh `totals[D]`.

    It is the largest from which on upwards they reach the target, else 0; nothing reaches `_ALL`.
    """
    digits = tl.arange(0, D)
    # above[d]: the weight of digit d and of all larger ones.
    above = tl.sum(tl.where(digits[None, :] >= digits[:, None], totals[None, :], 0), 1)
    digit = tl.maximum(tl.sum((above >= target).to(tl.int64)) - 1, 0)
    beyond = tl.sum(tl.where(digits > digit, totals, 0))
    return floor | (digit << shift), target - beyond


@triton.jit
def _totals(sums, row, P, D: tl.constexpr, BP: tl.constexpr):
    """Return `[D]`, what all parts of a row found in `sums[rows,P,D]`."""
    p = tl.arange(0, BP)
    at = (row * P + p[:, None]) * D + tl.arange(0, D)[None, :]
    return tl.sum(tl.load(sums + at, mask=(p < P)[:, None], other=0), 0)


@triton.jit
def _top(tops, row, P, BP: tl.constexpr):
    """Return the greatest logit of a row, and whether all its logits let tokens be drawn."""
    p = tl.arange(0, BP)
    found = tl.load(tops + row * P + p, mask=p < P, other=float("-inf"))
    top = tl.max(found, 0)
    nans = tl.sum((found != found).to(tl.int32))
    return top, (nans == 0) & (top > float("-inf")) & (top < float("inf"))


@triton.jit
def find_top(logits, tops, V, stride, PART, BV: tl.constexpr, PDL: tl.constexpr):
    """`tops[rows,P]`: the greatest logit of a part of a row of `logits[rows,V]`, NaN if one is."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    v = part * PART + tl.arange(0, BV)
    end = tl.minimum((part + 1) * PART, V)
    best = tl.full([BV], float("-inf"), tl.float32)
    nans = tl.zeros([BV], tl.int32)
    for start in range(0, PART, BV):
        x = tl.load(logits + row * stride + start + v, mask=start + v < end, other=float("-inf"))
        nans += (x != x).to(tl.int32)
        best = tl.maximum(best, x.to(tl.float32))
    top = tl.where(tl.sum(nans) > 0, float("nan"), tl.max(best, 0))
    tl.store(tops + row * tl.num_programs(1) + part, top)


@triton.jit(do_not_specialize=["shift"])
def count_digit(
    logits, tops, bounds, wanted, weights, before, sums, floors, targets, next_floors,
    next_targets, V, stride, PART, shift, FIRST: tl.constexpr, WEIGHED: tl.constexpr,
    BITS: tl.constexpr, D: tl.constexpr, DB: tl.constexpr, BV: tl.constexpr, BP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`sums[rows,P,D]`: how many tokens of a part have each digit at bit `shift`, or their mass.

    Tokens count whose key is the row's floor above that digit.  The first launch of a search takes
    its target from `wanted`, top-k, or WEIGHED the share `bounds` of all masses; later ones go on
    from `floors`, `targets` by the sums `before`, and leave theirs for the next.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    P = tl.num_programs(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    floor = tl.zeros([], tl.int64)
    if FIRST:
        _, finite = _top(tops, row, P, BP)
        if WEIGHED:
            share = tl.load(bounds + row).to(tl.float64)
            exact = tl.sum(_totals(before, row, P, D, BP)).to(tl.float64) * share
            target = exact.to(tl.int64)
            target += (target.to(tl.float64) < exact).to(tl.int64)
            target = tl.where(finite & (share < 1), tl.maximum(target, 1), _ALL)
        else:
            k = tl.load(wanted + row).to(tl.int64)
            target = tl.where(finite & (k > 0) & (k < V), k, _ALL)
    else:
        target = tl.load(targets + row)
        floor = tl.load(floors + row)
        if target < _ALL:
            totals = _totals(before, row, P, D, BP)
            floor, target = _descended(floor, target, totals, shift + DB, D)
    if part == 0:
        tl.store(next_floors + row, floor)
        tl.store(next_targets + row, target)
    if target < _ALL:
        v = part * PART + tl.arange(0, BV)
        end = tl.minimum((part + 1) * PART, V)
        digits = tl.arange(0, D)
        found = tl.zeros([BV, D], tl.int64)
        for start in range(0, PART, BV):
            token = start + v
            x = tl.load(logits + row * stride + token, mask=token < end, other=0.0)
            key = key_of(x.to(tl.float32), token, BITS)
            same = (token < end) & ((key >> (shift + DB)) == (floor >> (shift + DB)))
            if tl.max(same.to(tl.int32), 0) > 0:
                digit = (key >> shift) & (D - 1)
                weight = tl.where(same, 1, 0).to(tl.int64)
                if WEIGHED:
                    weight = tl.load(weights + row * V + token, mask=same, other=0)
                found += tl.where(digit[:, None] == digits[None, :], weight[:, None], 0)
        tl.store(sums + (row * P + part) * D + digits, tl.sum(found, 0))


@triton.jit
def weigh(
    logits, tops, temperature, before, floors, targets, kept, weights, sums, V, stride, PART,
    BITS: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, BP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`weights[rows,V]`: masses of tokens that top-k keeps; `kept[rows]`: the last one's key.

    `sums[rows,P,D]` has their sum in its first column.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    P = tl.num_programs(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    floor, target = tl.load(floors + row), tl.load(targets + row)
    if target < _ALL:
        floor, target = _descended(floor, target, _totals(before, row, P, D, BP), 0, D)
    if part == 0:
        tl.store(kept + row, floor)
    top, _ = _top(tops, row, P, BP)
    heat = tl.load(temperature + row).to(tl.float64)
    divisor = tl.where(heat > 0, heat, 1.0)
    v = part * PART + tl.arange(0, BV)
    end = tl.minimum((part + 1) * PART, V)
    total = tl.zeros([BV], tl.int64)
    for start in range(0, PART, BV):
        token = start + v
        ok = token < end
        x = tl.load(logits + row * stride + token, mask=ok, other=float("-inf")).to(tl.float32)
        held = ok & (key_of(x, token, BITS) >= floor)
        weight = tl.where(held, mass_of(x, top, divisor), 0)
        tl.store(weights + row * V + token, weight, mask=ok)
        total += weight
    digits = tl.arange(0, D)
    tl.store(sums + (row * P + part) * D + digits, tl.where(digits == 0, tl.sum(total), 0))


@triton.jit
def draw_part(
    logits, temperature, seed, position, kept, before, floors, targets, parts, V, stride, PART,
    BITS: tl.constexpr, D: tl.constexpr, BV: tl.constexpr, BP: tl.constexpr,
    FILTERED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`parts[rows,P,2]`: the greatest score of a part of a row, and its token."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    P = tl.num_programs(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    last = tl.zeros([], tl.int64)
    if FILTERED:
        floor, target = tl.load(floors + row), tl.load(targets + row)
        if target < _ALL:
            floor, target = _descended(floor, target, _totals(before, row, P, D, BP), 0, D)
        last = tl.maximum(floor, tl.load(kept + row))
    heat = tl.load(temperature + row).to(tl.float64)
    seeded, at = tl.load(seed + row), tl.load(position + row)
    v = part * PART + tl.arange(0, BV)
    end = tl.minimum((part + 1) * PART, V)
    best = tl.full([BV], float("-inf"), tl.float64)
    chosen = tl.full([BV], 2147483647, tl.int32)
    for start in range(0, PART, BV):
        token = start + v
        ok = token < end
        x = tl.load(logits + row * stride + token, mask=ok, other=float("-inf")).to(tl.float32)
        score = score_of(x, token, heat, seeded, at)
        if FILTERED:
            ok = ok & (key_of(x, token, BITS) >= last)
        better = ok & (score > best)
        best = tl.where(better, score, best)
        chosen = tl.where(better, token, chosen)
    greatest = tl.max(best, 0)
    token = tl.min(tl.where(best == greatest, chosen, 2147483647), 0)
    pair = parts + (row * P + part) * 2
    tl.store(pair, greatest)
    tl.store(pair + 1, token.to(tl.float64))


@triton.jit(do_not_specialize=["P"])
def pick_part(parts, tops, pairs, P, BP: tl.constexpr, PDL: tl.constexpr):
    """`pairs[rows,2]`: the greatest of a row's scores and the smallest token that has it.

    The score is NaN, the token 0, where logits let no token be drawn.
    """
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    _, finite = _top(tops, row, P, BP)
    p = tl.arange(0, BP)
    at = parts + (row * P + p) * 2
    score = tl.load(at, mask=p < P, other=float("-inf"))
    token = tl.load(at + 1, mask=p < P, other=2147483647.0)
    greatest = tl.max(score, 0)
    found = tl.min(tl.where(score == greatest, token, 2147483647.0), 0)
    nothing = tl.full([], float("nan"), tl.float64)
    tl.store(pairs + row * 2, tl.where(finite, greatest, nothing))
    tl.store(pairs + row * 2 + 1, tl.where(finite, found, 0.0))


def draw_by_parts(
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
    place = logits.device
    pairs = torch.empty(m, 2, dtype=torch.float64, device=place)
    device = device_of(logits)
    options, pdl = device.options(8), device.has_dependent_launch
    block = max(16, min(512, triton.next_power_of_2(vocabulary // 8)))
    parts = max(1, min(_MOST_PARTS, 2 * device.processors // m, triton.cdiv(vocabulary, block)))
    part = triton.cdiv(triton.cdiv(vocabulary, parts), block) * block
    parts = triton.cdiv(vocabulary, part)
    sizes = (vocabulary, logits.stride(0), part)
    grid = (m, parts)
    tops = torch.empty(grid, dtype=torch.float32, device=place)
    find_top[grid](logits, tops, *sizes, block, pdl, **options)
    kept = floors = targets = sums = pairs  # pointers that are not read
    bits, digits = (vocabulary - 1).bit_length(), 1 << _DIGIT_BITS
    if filtered:
        sums, after = torch.empty(2, m, parts, digits, dtype=torch.int64, device=place)
        state = torch.empty(5, m, dtype=torch.int64, device=place)
        kept, floors, targets, next_floors, next_targets = state
        weights = torch.empty(m, vocabulary, dtype=torch.int64, device=place)
        shifts = range((31 + bits) // _DIGIT_BITS * _DIGIT_BITS, -1, -_DIGIT_BITS)
        for weighed in (False, True):
            for shift in shifts:
                count_digit[grid](
                    logits, tops, top_p, top_k, weights, sums, after, floors, targets,
                    next_floors, next_targets, *sizes, shift, shift == shifts[0], weighed, bits,
                    digits, _DIGIT_BITS, block, _MOST_PARTS, pdl, **options,
                )  # fmt: skip
                sums, after = after, sums
                floors, next_floors = next_floors, floors
                targets, next_targets = next_targets, targets
            if not weighed:
                weigh[grid](
                    logits, tops, temperature, sums, floors, targets, kept, weights, after,
                    *sizes, bits, digits, block, _MOST_PARTS, pdl, **options,
                )  # fmt: skip
                sums, after = after, sums
    found = torch.empty(m, parts, 2, dtype=torch.float64, device=place)
    draw_part[grid](
        logits, temperature, seed, position, kept, sums, floors, targets, found, *sizes, bits,
        digits, block, _MOST_PARTS, filtered, pdl, **options,
    )  # fmt: skip
    pick_part[(m,)](found, tops, pairs, parts, _MOST_PARTS, pdl, **device.options(1))
    return pairs
