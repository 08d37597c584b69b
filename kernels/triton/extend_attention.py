# SPDX-License-Identifier: MIT
"""Attention of several new tokens a request over a paged cache that holds them already.

Dims as in `decode_attention.py`.  The G query heads of a kv head are packed: a program has BM rows,
T = BM // G tokens of one request, and one range of the keys that its last token sees.  Tiles are
numbered so that request r's begin at `starts[r] // T + r`: a launch of `tokens // T + requests + 1`
tiles holds them all, whatever the lengths; the last number is for tokens of no request.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .decode_attention import normed_and_turned
from .narrow import kept, widened

LOG2E = tl.constexpr(1.4426950408889634)
# Parts that a merge loads at once.
MERGED = 8


@triton.jit(
    do_not_specialize=["first", "requests"],
    do_not_specialize_on_alignment=["slots", "starts"],
)
def prepare(
    q, k, v, q_gain, k_gain, cos, sin, k_cache, v_cache, slots, starts, turned, first, requests,
    q_stride, k_stride, v_stride, block_stride, eps,
    K: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, NORM: tl.constexpr, TURN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write one token's key and value of a head to the cache, and with TURN its queries.

    Queries go to `turned[tokens,K,G,D]`, normed and rotated.
    """
    token = (first + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)
    g = tl.arange(0, GP)
    d = tl.arange(0, BD)
    DTYPE: tl.constexpr = turned.dtype.element_ty
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if token < tl.load(starts + requests):
        if TURN:
            heads = q + token * q_stride + (head * G + g[:, None]) * D
            query = normed_and_turned(
                heads, q_gain, cos + token * R, sin + token * R, (g < G)[:, None], d, eps,
                D, R, NORM, DTYPE,
            )  # fmt: skip
            to = turned + ((token * K + head) * G + g[:, None]) * D + d[None, :]
            tl.store(to, query.to(DTYPE), mask=(g < G)[:, None] & (d < D)[None, :])
        one = tl.zeros([1], tl.int32)
        at = k + token * k_stride + (head + one[:, None]) * D
        key = normed_and_turned(
            at, k_gain, cos + token * R, sin + token * R, one[:, None] == 0, d, eps, D, R, NORM,
            DTYPE,
        )  # fmt: skip
        value = tl.load(v + token * v_stride + head * D + d, mask=d < D, other=0.0)
        slot = tl.load(slots + token)
        home = (slot // S) * block_stride + (head * S + slot % S) * D
        new = kept(key.to(DTYPE), k_cache.dtype.element_ty)
        tl.store(k_cache + home + d[None, :], new, mask=(d < D)[None, :])
        tl.store(v_cache + home + d, kept(value, v_cache.dtype.element_ty), mask=d < D)


@triton.jit(
    do_not_specialize=["skipped", "table_stride"],
    do_not_specialize_on_alignment=["lengths", "table"],
)
def gather(
    k_cache, v_cache, lengths, table, k_row, v_row, skipped, block_stride, row_stride,
    table_stride, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, S: tl.constexpr,
    BN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Lay the keys and values of requests from `skipped` on in rows `k_row`, `v_row`.

    Head h of the i-th of them has its row at `(i * K + h) * row_stride`, D numbers a token, of the
    rows' dtype; behind its length there are zeros up to the next multiple of BN.
    """
    at = tl.program_id(0) * BN + tl.arange(0, BN)
    head = tl.program_id(1)
    request = tl.program_id(2)
    d = tl.arange(0, BD)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    length = tl.load(lengths + skipped + request)
    if tl.program_id(0) * BN < length:
        ok = at < length
        pages = table + (skipped + request) * table_stride
        block = tl.load(pages + at // S, mask=ok, other=0).to(tl.int64)
        held = ok[:, None] & (d < D)[None, :]
        place = (block * block_stride + (head * S + at % S) * D)[:, None] + d[None, :]
        row = (request * K + head).to(tl.int64) * row_stride + at[:, None] * D + d[None, :]
        keys = tl.load(k_cache + place, mask=held, other=0.0)
        whole = (d < D)[None, :]
        tl.store(k_row + row, widened(keys, k_row.dtype.element_ty, PDL), mask=whole)
        values = tl.load(v_cache + place, mask=held, other=0.0)
        tl.store(v_row + row, widened(values, v_row.dtype.element_ty, PDL), mask=whole)


@triton.jit
def fold(
    query, k_cache, v_cache, pages, head, n, end, seen, m, mass, acc, d, block_stride,
    D: tl.constexpr, S: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    CAUSAL: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    """Fold keys `n` to `n + BN` into the softmax `m`, `mass`, `acc`, of base 2.

    With S = 0 keys and values lie in a row, not in blocks of S.  With MASK keys from `end` on do
    not count, and with CAUSAL none that a row has not `seen`.
    """
    at = n + tl.arange(0, BN)
    DTYPE: tl.constexpr = query.dtype
    if MASK:
        ok = at < end
        held = ok[:, None] & (d < D)[None, :]
    if S == 0:
        place = at[:, None] * D + d[None, :]
    elif MASK:
        block = tl.load(pages + at // S, mask=ok, other=0).to(tl.int64)
        place = (block * block_stride + (head * S + at % S) * D)[:, None] + d[None, :]
    else:
        block = tl.load(pages + at // S).to(tl.int64)
        place = (block * block_stride + (head * S + at % S) * D)[:, None] + d[None, :]
    keys = tl.load(k_cache + place, mask=held, other=0.0) if MASK else tl.load(k_cache + place)
    keys = widened(keys, DTYPE, HOPPER)
    x = tl.dot(query, keys.T, input_precision="ieee")
    if MASK:
        visible = ok[None, :]
        if CAUSAL:
            visible = (at[None, :] <= seen[:, None]) & visible
        if WINDOW:
            visible = visible & (at[None, :] > seen[:, None] - WINDOW)
        x = tl.where(visible, x, float("-inf"))
    top = tl.maximum(m, tl.max(x, 1))
    safe = top
    if MASK:
        safe = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(x - safe[:, None])
    fade = tl.exp2(m - safe)
    mass = mass * fade + tl.sum(p, 1)
    values = tl.load(v_cache + place, mask=held, other=0.0) if MASK else tl.load(v_cache + place)
    values = widened(values, DTYPE, HOPPER)
    acc = tl.dot(p.to(DTYPE), values, acc * fade[:, None], input_precision="ieee")
    return top, mass, acc


@triton.jit
def tile_of(starts, lengths, tile, tokens, skipped, requests, T: tl.constexpr, BR: tl.constexpr):
    """Return (request, its first token, the one behind its last, its length, the tile's offset).

    Requests count from `skipped`; the last is for the tokens of none, whose length is 0.
    """
    r = tl.arange(0, BR)
    first = tl.load(starts + skipped)
    some = requests - skipped
    begins = tl.load(starts + skipped + r, mask=r <= some, other=0) - first
    order = tl.where(r <= some, begins // T + r, 2147483647)
    request = tl.sum((order <= tile).to(tl.int32)) - 1
    base = tl.load(starts + skipped + request)
    stop = tokens
    length = 0
    if request < some:
        stop = tl.load(starts + skipped + request + 1)
        length = tl.load(lengths + skipped + request)
    offset = (tile - ((base - first) // T + request)) * T
    return request, base, stop, length, offset


@triton.jit(
    do_not_specialize=["tokens", "skipped", "requests", "splits", "table_stride"],
    do_not_specialize_on_alignment=["starts", "lengths", "table"],
)
def extend(
    q, k_cache, v_cache, starts, lengths, table, sinks, out, part_o, part_lse, tokens, skipped,
    requests, q_stride, block_stride, table_stride, splits, scale,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, S: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, SPLIT: tl.constexpr, LEAST: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """`out[tokens,K,G,D]` of requests from `skipped` on; with SPLIT its parts and their lse.

    Parts are `part_o[splits,tokens,K,G,D]`, `part_lse[splits,tokens,K,G]` (of base 2), of at least
    LEAST keys each but one; a part of none has no `part_o`, and -inf.  Rows of no request come out
    as zeros.
    """
    T: tl.constexpr = BM // G
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    DTYPE: tl.constexpr = out.dtype.element_ty
    if PDL:
        gdc_wait()
    request, base, stop, length, offset = tile_of(
        starts, lengths, tile, tokens, skipped, requests, T, BR
    )
    count = stop - base
    if offset < count:
        i = tl.arange(0, BM)
        token = offset + i // G
        g = i % G
        d = tl.arange(0, BD)
        live = (token < count) & (i < T * G)
        row = (base + token).to(tl.int64)
        prefix = length - count
        # A request's own part of the keys; a token of no request has none.
        end = tl.minimum(prefix + tl.minimum(offset + T, count), length)
        low = 0
        if WINDOW:
            low = tl.maximum(prefix + offset - WINDOW + 1, 0) // BN * BN
        parts = splits
        if SPLIT:
            parts = tl.minimum(splits, tl.maximum((end - low) // LEAST, 1))
        step = tl.cdiv(tl.cdiv(end - low, BN), parts) * BN
        begin = low + split * step
        end = tl.minimum(begin + step, end)
        ok = live[:, None] & (d < D)[None, :]
        if SPLIT:
            ok = ok & (begin < end)
        unit = (row * K + head) * G + g
        query = tl.load(
            q + (row * q_stride + (head * G + g) * D)[:, None] + d[None, :], mask=ok, other=0.0
        )
        # Scaled here, not in the loop: what the loop keeps has to fit in registers.
        query = (query.to(tl.float32) * (scale * LOG2E)).to(DTYPE)
        m = tl.full([BM], float("-inf"), tl.float32)
        mass = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, BD], tl.float32)
        if SINKS:  # noqa: SIM102  (the outer one is a constant)
            if split == 0:
                m = tl.load(sinks + head * G + g).to(tl.float32) * LOG2E
                mass = tl.full([BM], 1.0, tl.float32)
        seen = prefix + token
        pages = table + (skipped + request) * table_stride
        if S == 0:  # laid out by `gather`
            first = (request * K + head).to(tl.int64) * block_stride
            k_cache += first
            v_cache += first
        free = begin
        if WINDOW == 0 and D == BD:
            # Keys that every row sees need no mask.
            free = tl.maximum(begin, tl.minimum(end, prefix + offset + 1) // BN * BN)
            for n in tl.range(begin, free, BN, num_stages=STAGES):
                m, mass, acc = fold(
                    query, k_cache, v_cache, pages, head, n, end, seen, m, mass, acc, d,
                    block_stride, D, S, BN, WINDOW, False, True, PDL,
                )  # fmt: skip
        for n in tl.range(free, end, BN, num_stages=STAGES):
            m, mass, acc = fold(
                query, k_cache, v_cache, pages, head, n, end, seen, m, mass, acc, d,
                block_stride, D, S, BN, WINDOW, True, True, PDL,
            )  # fmt: skip
        result = (acc / tl.where(mass == 0, 1.0, mass)[:, None]).to(DTYPE)
        if not SPLIT:
            if length == 0:
                result = tl.zeros([BM, BD], DTYPE)
            tl.store(out + unit[:, None] * D + d[None, :], result, mask=ok)
        else:
            part = unit + split * tokens.to(tl.int64) * (K * G)
            tl.store(part_o + part[:, None] * D + d[None, :], result, mask=ok)
            lse = tl.where((mass == 0) | (length == 0), float("-inf"), m + tl.log2(mass))
            tl.store(part_lse + part, lse, mask=live)
    if PDL:
        gdc_launch_dependents()


@triton.jit(do_not_specialize=["first", "rows", "splits"])
def merge(
    part_o, part_lse, out, first, rows, splits, D: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
    BR: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`out[rows,D]`, from row `first` on, of `splits` parts and their log-sum-exps of base 2.

    A part of -inf is not read.
    """
    r = first + tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    d = tl.arange(0, BD)
    live = r < rows
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    m = tl.full([BR], float("-inf"), tl.float32)
    mass = tl.zeros([BR], tl.float32)
    acc = tl.zeros([BR, BD], tl.float32)
    for i in range(0, splits, BP):
        # All weights, then all parts, are on their way before one of them is waited for.
        lses, parts = (), ()
        top = m
        for p in tl.static_range(BP):
            held = live & (i + p < splits)
            lse = tl.load(part_lse + r + (i + p) * rows, mask=held, other=float("-inf"))
            top = tl.maximum(top, lse)
            lses += (lse,)  # type: ignore
        for p in tl.static_range(BP):
            place = (r + (i + p) * rows)[:, None] * D + d[None, :]
            some = (lses[p] > float("-inf"))[:, None] & (d < D)[None, :]  # type: ignore
            parts += (tl.load(part_o + place, mask=some, other=0.0),)  # type: ignore
        safe = tl.where(top == float("-inf"), 0.0, top)
        fade = tl.exp2(m - safe)
        mass *= fade
        acc *= fade[:, None]
        for p in tl.static_range(BP):
            weight = tl.exp2(lses[p] - safe)
            mass += weight
            acc += parts[p] * weight[:, None]
        m = top
    acc /= tl.where(mass == 0, 1.0, mass)[:, None]
    ok = live[:, None] & (d < D)[None, :]
    tl.store(out + r[:, None] * D + d[None, :], acc.to(out.dtype.element_ty), mask=ok)
