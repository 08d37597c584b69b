# SPDX-License-Identifier: MIT
"""Attention over a paged cache of latents, absorbed: queries go to the latents of all heads.

Dims: n tokens, K heads, C latent, R rotated part, S slots a block.  A program has BM rows: T tokens
of one request by H heads, and one range of the keys that its last token sees.  A cached row serves
as key of every head and, its first C numbers, as value: it is loaded once.  Tiles are numbered as
in `extend_attention.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention import Rows, request_block
from .device import Device, device_of
from .extend_attention import LOG2E, MERGED, merge, tile_of
from .narrow import kept, widened

# Below this many keys a part of a context is not worth a program of its own.
_MIN_SPLIT = 64
_MAX_SPLITS = 64


def latent_attention(
    qh: Tensor,
    qr: Tensor,
    latent: Tensor,
    kr: Tensor,
    w_key: Tensor,
    w_value: Tensor,
    cache: Tensor,
    batch: Rows,
    scale: float,
) -> Tensor:
    """Write `latent[n,c]`, `kr[n,r]` to the cache, attend with `qh[n,k,h]`, `qr[n,k,r]`.

    Returns `o[n,k,u]`; see the reference.  Nothing is expanded: many new tokens cost more here than
    they need to.
    """
    n, heads, _ = qh.shape
    width, turned = latent.shape[1], kr.shape[1]
    if not n:
        return qh.new_empty(0, heads, w_value.shape[1])
    assert cache[:1].is_contiguous()
    device = device_of(qh)
    size = cache.shape[1]
    pdl = device.has_dependent_launch
    whole = width + turned
    keep_latents[(n,)](
        latent.contiguous(), kr.contiguous(), cache, batch.cache_slots, cache.stride(0),
        width, turned, size, triton.next_power_of_2(whole), pdl, **device.options(4),
    )  # fmt: skip
    query = torch.bmm(qh.transpose(0, 1), w_key)  # [k, n, c]
    qr = qr.contiguous()
    requests = batch.context_lens.shape[0]
    rows, tile, stages, warps = _tile(device, n, heads, width, qh.element_size())
    group = min(rows, triton.next_power_of_2(heads))
    tall = rows // group
    tiles = n // tall + requests + 1
    across = triton.cdiv(heads, group)
    busy = max(1, -(-n // tall)) * across
    splits = min(-(-batch.max_context // _MIN_SPLIT), 2 * device.processors // busy, _MAX_SPLITS)
    splits = max(1, splits)
    out = torch.empty_like(query)
    part_o, part_lse = out, out
    if splits > 1:
        part_o = torch.empty((splits, *out.shape), dtype=torch.float32, device=out.device)
        part_lse = torch.empty(part_o.shape[:-1], dtype=torch.float32, device=out.device)
    block = request_block(requests)
    wide = triton.next_power_of_2(width)
    attend_latents[(tiles, across, splits)](
        query, qr, cache, batch.query_starts, batch.context_lens, batch.block_tables, out, part_o,
        part_lse, n, requests, cache.stride(0), batch.block_tables.stride(0), splits, scale,
        heads, group, width, wide, turned, max(16, triton.next_power_of_2(turned)), size, block,
        rows, tile, splits > 1, stages, pdl, **device.options(warps),
    )  # fmt: skip
    if splits > 1:
        some = max(1, 512 // wide)
        merge[(triton.cdiv(heads * n, some),)](
            part_o, part_lse, out, 0, heads * n, splits, width, wide, MERGED, some, pdl,
            **device.options(4),
        )  # fmt: skip
    return torch.bmm(out, w_value.transpose(1, 2)).transpose(0, 1).contiguous()


def _tile(
    device: Device, tokens: int, heads: int, width: int, itemsize: int
) -> tuple[int, int, int, int]:
    """Return (rows, keys a step, stages, warps): a query tile and the keys' stages share memory."""
    if device.processors <= 4:  # the interpreter
        return 16, 16, 1, 4
    tall = tokens * heads > 2048 and itemsize <= 2 and device.shared_bytes >= 160 << 10
    rows, tile, warps = (64, 32, 8) if tall else (16, 32, 4)
    stages = min(2, device.max_stages)
    while (rows + stages * tile) * (width + 64) * itemsize > device.shared_bytes and tile > 16:
        tile //= 2
    return rows, tile, stages, warps


@triton.jit(do_not_specialize_on_alignment=["slots"])
def keep_latents(
    latent, kr, cache, slots, block_stride,
    C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, BX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write a token's `latent[n,C]` and, behind it, its rotated key `kr[n,R]` to its slot."""
    token = tl.program_id(0).to(tl.int64)
    x = tl.arange(0, BX)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots + token)
    plain = tl.load(latent + token * C + x, mask=x < C, other=0.0)
    turned = tl.load(kr + token * R + x - C, mask=(x >= C) & (x < C + R), other=0.0)
    value = tl.where(x < C, plain, turned.to(plain.dtype))
    to = cache + (slot // S) * block_stride + (slot % S) * (C + R) + x
    tl.store(to, kept(value, cache.dtype.element_ty), mask=x < C + R)


@triton.jit(
    do_not_specialize=["tokens", "requests", "splits", "table_stride"],
    do_not_specialize_on_alignment=["starts", "lengths", "table"],
)
def attend_latents(
    q, qr, cache, starts, lengths, table, out, part_o, part_lse, tokens, requests, block_stride,
    table_stride, splits, scale,
    K: tl.constexpr, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, R: tl.constexpr,
    BD: tl.constexpr, S: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPLIT: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`out[K,tokens,C]` of `q[K,tokens,C]`, `qr[tokens,K,R]`; with SPLIT its parts and their lse.

    Parts are `part_o[splits,K,tokens,C]`, `part_lse[splits,K,tokens]` (of base 2).  Rows of no
    request come out as zeros.
    """
    T: tl.constexpr = BM // H
    X: tl.constexpr = C + R
    split = tl.program_id(2)
    DTYPE: tl.constexpr = out.dtype.element_ty
    if PDL:
        gdc_wait()
    request, base, stop, length, offset = tile_of(
        starts, lengths, tl.num_programs(0) - 1 - tl.program_id(0), tokens, 0, requests, T, BR
    )
    count = stop - base
    if offset < count:
        i = tl.arange(0, BM)
        token = offset + i // H
        head = tl.program_id(1) * H + i % H
        c = tl.arange(0, BC)
        d = tl.arange(0, BD)
        live = (token < count) & (head < K) & (i < T * H)
        row = (base + token).to(tl.int64)
        unit = head * tokens.to(tl.int64) + row
        held = live[:, None] & (c < C)[None, :]
        query = tl.load(q + unit[:, None] * C + c[None, :], mask=held, other=0.0)
        turned = tl.load(
            qr + ((row * K + head) * R)[:, None] + d[None, :],
            mask=live[:, None] & (d < R)[None, :], other=0.0,
        )  # fmt: skip
        prefix = length - count
        end = tl.minimum(prefix + tl.minimum(offset + T, count), length)
        step = tl.cdiv(tl.cdiv(end, BN), splits) * BN
        begin = split * step
        end = tl.minimum(begin + step, end)
        seen = prefix + token
        pages = table + request * table_stride
        k = scale * LOG2E
        m = tl.full([BM], float("-inf"), tl.float32)
        mass = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, BC], tl.float32)
        for n in tl.range(begin, end, BN, num_stages=STAGES):
            at = n + tl.arange(0, BN)
            ok = at < end
            block = tl.load(pages + at // S, mask=ok, other=0).to(tl.int64)
            place = (block * block_stride + (at % S) * X)[:, None]
            latents = tl.load(
                cache + place + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0.0
            )
            keys = tl.load(
                cache + place + (C + d)[None, :], mask=ok[:, None] & (d < R)[None, :], other=0.0
            )
            latents, keys = widened(latents, DTYPE, PDL), widened(keys, DTYPE, PDL)
            x = tl.dot(query, latents.T, input_precision="ieee")
            x = tl.dot(turned, keys.T, x, input_precision="ieee") * k
            x = tl.where((at[None, :] <= seen[:, None]) & ok[None, :], x, float("-inf"))
            top = tl.maximum(m, tl.max(x, 1))
            safe = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(x - safe[:, None])
            fade = tl.exp2(m - safe)
            mass = mass * fade + tl.sum(p, 1)
            acc = tl.dot(p.to(DTYPE), latents, acc * fade[:, None], input_precision="ieee")
            m = top
        result = acc / tl.where(mass == 0, 1.0, mass)[:, None]
        if not SPLIT:
            tl.store(out + unit[:, None] * C + c[None, :], result.to(DTYPE), mask=held)
        else:
            part = unit + split * tokens.to(tl.int64) * K
            tl.store(part_o + part[:, None] * C + c[None, :], result, mask=held)
            lse = tl.where(mass == 0, float("-inf"), m + tl.log2(mass))
            tl.store(part_lse + part, lse, mask=live)
    if PDL:
        gdc_launch_dependents()
