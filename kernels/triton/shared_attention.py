# SPDX-License-Identifier: MIT
"""Attention of many requests' new tokens to blocks that they share, each block read once.

Dims as in `decode_attention.py`.  A part is a range of keys that some requests have in the same
blocks; program (tile, head, part) attends with the G queries of up to BM // G of these requests.
What it finds goes to `part_o[R,P,K,G,D]`, `part_ml[R,P,K,G,2]` at the part's number among those of
its requests, and is merged where each request's own keys are (`decode`).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .decode_attention import LOG2E, normed_and_turned
from .extend_attention import fold


@triton.jit(
    do_not_specialize=["table_stride", "most_parts"],
    do_not_specialize_on_alignment=["starts", "table", "parts", "rows"],
)
def attend_shared(
    q, q_gain, cos, sin, k_cache, v_cache, starts, table, parts, rows, part_o, part_ml, q_stride,
    block_stride, table_stride, most_parts, scale, eps,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, S: tl.constexpr,
    R: tl.constexpr, NORM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Attend to `parts[N,5]` with heads of `q[tokens,K,G,D]`; see `ops/batch.py` for the columns.

    A part of no requests costs nothing.
    """
    T: tl.constexpr = BM // G
    head = tl.program_id(1)
    DTYPE: tl.constexpr = q.dtype.element_ty
    part = parts + tl.program_id(2) * 5
    offset = tl.program_id(0) * T
    if PDL:
        gdc_wait()
    first = tl.load(part)
    count = tl.load(part + 1)
    begin = tl.load(part + 2)
    end = tl.load(part + 3)
    number = tl.load(part + 4)
    if offset < count:
        i = tl.arange(0, BM)
        d = tl.arange(0, BD)
        live = (i < T * G) & (offset + i // G < count)
        g = i % G
        request = tl.load(rows + (first + offset + i // G) * 3, mask=live, other=0)
        row = tl.load(starts + request, mask=live, other=0).to(tl.int64)
        turn = (row * R)[:, None]
        query = normed_and_turned(
            q + (row * q_stride + (head * G + g) * D)[:, None], q_gain, cos + turn, sin + turn,
            live[:, None], d, eps, D, R, NORM, DTYPE,
        )  # fmt: skip
        query = (query * (scale * LOG2E)).to(DTYPE)
        m = tl.full([BM], float("-inf"), tl.float32)
        mass = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, BD], tl.float32)
        # All of them have these blocks in the same places.
        pages = table + tl.load(rows + first * 3) * table_stride
        free = begin
        if D == BD:
            free = begin + (end - begin) // BN * BN
            for n in tl.range(begin, free, BN, num_stages=STAGES):
                m, mass, acc = fold(
                    query, k_cache, v_cache, pages, head, n, end, i, m, mass, acc, d,
                    block_stride, D, S, BN, 0, False, False, PDL,
                )  # fmt: skip
        for n in tl.range(free, end, BN, num_stages=STAGES):
            m, mass, acc = fold(
                query, k_cache, v_cache, pages, head, n, end, i, m, mass, acc, d,
                block_stride, D, S, BN, 0, True, False, PDL,
            )  # fmt: skip
        if PDL:
            gdc_launch_dependents()
        place = ((request.to(tl.int64) * most_parts + number) * K + head) * G + g
        ok = live[:, None] & (d < D)[None, :]
        tl.store(part_o + place[:, None] * D + d[None, :], acc, mask=ok)
        tl.store(part_ml + place * 2, m, mask=live)
        tl.store(part_ml + place * 2 + 1, mass, mask=live)
