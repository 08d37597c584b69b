# SPDX-License-Identifier: MIT
"""Attention of one new token a request over a paged cache, split over the keys.

Dims: R requests, K kv heads, G query heads each, D head dim, S slots a block.  Program (request,
kv head, split) reads one range of keys for all G heads; splits are equal shares of the step's
tokens, counted on the device, so that one launch fits any lengths.  The last split holds the new
key and value, which it writes to the cache and takes from registers: no other program waits.  The
last program to arrive merges the parts of its head in order,
and those of keys that were read once for many requests (`shared_attention.py`).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .narrow import kept, widened

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def normed_and_turned(
    base, gain, cos, sin, live, d, eps,
    D: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Return float32 `[rows,BD]` heads at `base[rows,1]`: normed by `gain`, first R rotated.

    Each step is rounded to DTYPE as the ops that stand alone round.  `cos`, `sin` are pointers to
    the angles, of one row for all or `[rows,1]`.
    """
    other = tl.where(d < R // 2, d + R // 2, tl.where(d < R, d - R // 2, d))
    ok = live & (d < D)[None, :]
    value = tl.load(base + d[None, :], mask=ok, other=0.0).to(tl.float32)
    if R:
        turned = tl.load(base + other[None, :], mask=ok, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(value * value, 1) / D + eps)[:, None]
        own = tl.load(gain + d, mask=d < D, other=0.0).to(tl.float32)
        value = ((value * scale).to(DTYPE).to(tl.float32) * own[None, :]).to(DTYPE).to(tl.float32)
        if R:
            own = tl.load(gain + other, mask=d < D, other=0.0).to(tl.float32)
            turned = (turned * scale).to(DTYPE).to(tl.float32) * own[None, :]
            turned = turned.to(DTYPE).to(tl.float32)
    if R:
        turns = (d < R)[None, :]
        c = tl.load(cos + d[None, :], mask=turns, other=1.0)
        s = tl.load(sin + d[None, :], mask=turns, other=0.0)
        value = value * c + turned * (s * tl.where(d < R // 2, -1.0, 1.0)[None, :])
    return value


@triton.jit
def folded(
    part_o, part_ml, first, stride, count, m, mass, acc, g, d,
    G: tl.constexpr, D: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Fold `count` parts into BP softmaxes `m[BP,g]`, `mass[BP,g]`, `acc[BP,g,d]`, of base 2.

    Head g of part i is row `first + i * stride + g` of `part_o[.,D]` and `part_ml[.,2]`.  Parts go
    to the softmaxes in turn: no thread waits for another before the last part is in.
    """
    for i in range(0, count, BP):
        p = i + tl.arange(0, BP)
        at = (first + p * stride)[:, None] + g[None, :]
        held = (p < count)[:, None] & (g < G)[None, :]
        mi = tl.load(part_ml + at * 2, mask=held, other=float("-inf"), cache_modifier=".cg")
        li = tl.load(part_ml + at * 2 + 1, mask=held, other=0.0, cache_modifier=".cg")
        oi = tl.load(
            part_o + at[:, :, None] * D + d[None, None, :],
            mask=held[:, :, None] & (d < D)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        top = tl.maximum(m, mi)
        safe = tl.where(top == float("-inf"), 0.0, top)
        fade = tl.exp2(m - safe)
        grow = tl.exp2(mi - safe)
        acc = acc * fade[:, :, None] + oi * grow[:, :, None]
        mass = mass * fade + li * grow
        m = top
    return m, mass, acc


@triton.jit
def merged(m, mass, acc):
    """Return `[g,d]`, the softmaxes of `folded` made one."""
    top = tl.max(m, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)  # of heads that are none
    grow = tl.exp2(m - safe[None, :])
    total = tl.sum(mass * grow, 0)
    return tl.sum(acc * grow[:, :, None], 0) / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit(
    do_not_specialize=["tokens", "requests", "most_splits", "most_parts", "table_stride"],
    do_not_specialize_on_alignment=["slots", "starts", "lengths", "table", "rows"],
)
def decode(
    q, k, v, q_gain, k_gain, cos, sin, k_cache, v_cache, slots, starts, lengths, table, sinks, out,
    part_o, part_ml, counter, rows, shared_o, shared_ml, tokens, requests, q_stride, k_stride,
    v_stride, block_stride, table_stride, most_splits, most_parts, scale, eps,
    K: tl.constexpr, G: tl.constexpr, GM: tl.constexpr, GP: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, S: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr, SHARED: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
    BP: tl.constexpr, SHARES: tl.constexpr, MIN: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`out[tokens,K,G,D]` of `q[tokens,K,G,D]`, `k`, `v` `[tokens,K,D]`, given by row strides.

    SHARES programs are to be filled; no split is below MIN tokens.  A request without a query and
    a token without a request cost nothing but zeros.  With SHARED the leading keys of a request
    were attended to by `attend_shared`, whose parts are merged here.
    """
    request = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    g = tl.arange(0, GP)
    d = tl.arange(0, BD)
    DTYPE: tl.constexpr = out.dtype.element_ty
    group = (g < G)[:, None] & (d < D)[None, :]
    if PDL:
        gdc_wait()
    used = tl.load(starts + requests)
    if (split == 0) & (request >= used) & (request < tokens):
        pad = out + ((request * K + head).to(tl.int64) * G + g[:, None]) * D + d[None, :]
        tl.store(pad, tl.zeros([GP, BD], DTYPE), mask=group)
    # Loads that do not wait for each other: a chain of them costs more than what they fetch.
    real = request < requests
    token = tl.load(starts + request, mask=real, other=0)
    stop = tl.load(starts + request + 1, mask=real, other=0)
    length = tl.load(lengths + request, mask=real, other=0)
    length = tl.where(stop > token, length, 0)
    r = tl.arange(0, BR)
    lens = tl.load(lengths + r, mask=r < requests, other=0)
    if SHARED:
        lens -= tl.load(rows + r * 3 + 1, mask=r < requests, other=0)
    total = tl.sum(lens)
    low = 0
    if WINDOW:
        low = tl.maximum(length - WINDOW, 0)
        total = tl.minimum(total, requests * WINDOW)
    if SHARED:
        low = tl.load(rows + request * 3 + 1, mask=real, other=0)
    before = tl.maximum(length - 1 - low, 0)
    share = tl.maximum(tl.cdiv(total * K, SHARES), MIN)
    splits = tl.minimum(tl.maximum((before + share // 2) // share, 1), most_splits)
    step = tl.cdiv(tl.cdiv(before, splits), BN) * BN
    splits = tl.maximum(tl.cdiv(before, tl.maximum(step, 1)), 1)
    if (length > 0) & (split < splits):
        row = tl.cast(token, tl.int64)
        heads = q + row * q_stride + (head * G + g[:, None]) * D
        live = (g < G)[:, None]
        query = normed_and_turned(
            heads, q_gain, cos + row * R, sin + row * R, live, d, eps, D, R, NORM, DTYPE
        ).to(DTYPE)
        m = tl.full([GP], float("-inf"), tl.float32)
        mass = tl.zeros([GP], tl.float32)
        acc = tl.zeros([GP, BD], tl.float32)
        c = scale * LOG2E
        if split == splits - 1:
            one = tl.zeros([1], tl.int32)
            at = k + row * k_stride + (head + one[:, None]) * D
            new = normed_and_turned(
                at, k_gain, cos + row * R, sin + row * R, one[:, None] == 0, d, eps, D, R, NORM,
                DTYPE,
            )  # fmt: skip
            new_k = kept(new.to(DTYPE), k_cache.dtype.element_ty)
            value = tl.load(v + row * v_stride + head * D + d, mask=d < D, other=0.0)
            new_v = kept(value, v_cache.dtype.element_ty)
            slot = tl.load(slots + row)
            home = (slot // S) * block_stride + (head * S + slot % S) * D
            tl.store(k_cache + home + d[None, :], new_k, mask=(d < D)[None, :])
            tl.store(v_cache + home + d, new_v, mask=d < D)
            m = tl.sum(query.to(tl.float32) * new_k.to(DTYPE).to(tl.float32), 1) * c
            mass = tl.full([GP], 1.0, tl.float32)
            acc = acc + new_v.to(DTYPE).to(tl.float32)[None, :]
            if SINKS:
                # One more logit without a value.
                sink = tl.load(sinks + head * G + g, mask=g < G, other=0.0).to(tl.float32) * LOG2E
                top = tl.maximum(m, sink)
                mass = tl.exp2(m - top) + tl.exp2(sink - top)
                acc = acc * tl.exp2(m - top)[:, None]
                m = top
        pages = table + request * table_stride
        begin = low + split * step
        end = tl.minimum(begin + step, length - 1)
        for n in tl.range(begin, end, BN, num_stages=STAGES):
            at = n + tl.arange(0, BN)
            ok = at < end
            block = tl.load(pages + at // S, mask=ok, other=0).to(tl.int64)
            place = block * block_stride + (head * S + at % S) * D
            held = ok[:, None] & (d < D)[None, :]
            keys = tl.load(k_cache + place[:, None] + d[None, :], mask=held, other=0.0)
            keys = widened(keys, DTYPE, PDL)
            x = tl.dot(query, keys.T, input_precision="ieee") * c
            x = tl.where(ok[None, :], x, float("-inf"))
            values = tl.load(v_cache + place[:, None] + d[None, :], mask=held, other=0.0)
            values = widened(values, DTYPE, PDL)
            top = tl.maximum(m, tl.max(x, 1))
            p = tl.exp2(x - top[:, None])
            fade = tl.exp2(m - top)
            mass = mass * fade + tl.sum(p, 1)
            acc = tl.dot(p.to(DTYPE), values, acc * fade[:, None], input_precision="ieee")
            m = top
        if PDL:
            gdc_launch_dependents()
        if (splits == 1) & (not SHARED):
            to = out + ((row * K + head) * G + g[:, None]) * D + d[None, :]
            tl.store(to, (acc / mass[:, None]).to(DTYPE), mask=group)
        else:
            unit = request * K + head
            mine = (unit * most_splits + split) * G + g
            tl.store(part_o + mine[:, None].to(tl.int64) * D + d[None, :], acc, mask=group)
            tl.store(part_ml + mine * 2, m, mask=g < G)
            tl.store(part_ml + mine * 2 + 1, mass, mask=g < G)
            tl.debug_barrier()
            seen = tl.atomic_add(counter + unit, 1, sem="acq_rel", scope="gpu")
            if seen == splits - 1:
                tl.debug_barrier()
                tl.store(counter + unit, 0)
                e = tl.arange(0, GM)
                m_all = tl.full([BP, GM], float("-inf"), tl.float32)
                mass_all = tl.zeros([BP, GM], tl.float32)
                acc_all = tl.zeros([BP, GM, BD], tl.float32)
                own = (unit * most_splits).to(tl.int64) * G
                m_all, mass_all, acc_all = folded(
                    part_o, part_ml, own, G, splits, m_all, mass_all, acc_all, e, d, G, D, BP
                )
                if SHARED:
                    first = (request.to(tl.int64) * most_parts * K + head) * G
                    m_all, mass_all, acc_all = folded(
                        shared_o, shared_ml, first, K * G, tl.load(rows + request * 3 + 2),
                        m_all, mass_all, acc_all, e, d, G, D, BP,
                    )  # fmt: skip
                to_all = out + ((row * K + head) * G + e[:, None]) * D + d[None, :]
                ok_all = (e < G)[:, None] & (d < D)[None, :]
                tl.store(to_all, merged(m_all, mass_all, acc_all).to(DTYPE), mask=ok_all)
