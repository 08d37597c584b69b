# SPDX-License-Identifier: MIT
"""The gated delta rule chunk by chunk: what a chunk's tokens do to each other is known beforehand.

Dims as in `delta_net.py`; C tokens a chunk, numbered so that request r's chunks begin at
`starts[r] // C + r`.  See `kernels/delta_rule.py` for the formulas: the first launch solves every
chunk's triangular system at once, the second carries the state from chunk to chunk by products.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention import request_block
from .delta_net import StateRows
from .device import device_of
from .extend_attention import tile_of

CHUNK = 32


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    states: Tensor,
    batch: StateRows,
    scale: float,
) -> Tensor:
    """Return `out[n,l,w,u]` for `q[n,l,p]`, `k[n,l,p]`, `v[n,l,w,u]`, `decay`, `beta` `[n,l,w]`.

    `states[b,l,w,p,u]`, float32, is written in place.  Sums are taken in another order than token
    by token, in float32.
    """
    q, k, v, decay, beta = (x.contiguous() for x in (q, k, v, decay, beta))
    assert states[:1].is_contiguous()
    out = torch.zeros_like(v)
    n, heads, per, width = v.shape
    requests = len(batch.context_lens)
    device = device_of(v)
    pdl = device.has_dependent_launch
    chunks = n // CHUNK + requests + 1
    shape = (chunks, heads * per, CHUNK, CHUNK)
    inverse, reads = (torch.empty(shape, dtype=torch.float32, device=v.device) for _ in range(2))
    inner = q.shape[2]
    block = triton.next_power_of_2(max(inner, 16))
    solve_chunk[(chunks, heads * per)](
        q, k, decay, beta, batch.query_starts, batch.context_lens, inverse, reads, n, requests,
        heads, per, inner, block, CHUNK, request_block(requests), pdl, **device.options(4),
    )  # fmt: skip
    columns = 32  # of a state, whose columns do not meet
    walk_chunks[(requests, heads * per, triton.cdiv(width, columns))](
        q, k, v, decay, beta, states, batch.query_starts, batch.context_lens, batch.state_blocks,
        inverse, reads, out, states.stride(0), scale, heads, per, inner, block, width, columns,
        CHUNK, pdl, **device.options(4),
    )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=["tokens", "requests"], do_not_specialize_on_alignment=["starts", "lengths"]
)
def solve_chunk(
    q, k, decay, beta, starts, lengths, inverse, reads, tokens, requests,
    L: tl.constexpr, W: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr,
    BR: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`inverse[chunks,L*W,C,C]` of each chunk's system, `reads[...]` of its queries and keys."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    request, base, stop, _length, offset = tile_of(
        starts, lengths, tile, tokens, 0, requests, C, BR
    )
    if (request < requests) & (base + offset < stop):
        c = tl.arange(0, C)
        p = tl.arange(0, BP)
        token = (base + offset + c).to(tl.int64)
        ok = token < stop
        at = ((token * L + head // W) * P)[:, None] + p[None, :]
        held = ok[:, None] & (p < P)[None, :]
        keys = tl.load(k + at, mask=held, other=0.0).to(tl.float32)
        queries = tl.load(q + at, mask=held, other=0.0).to(tl.float32)
        unit = token * L * W + head
        total = tl.cumsum(tl.load(decay + unit, mask=ok, other=0.0).to(tl.float32), 0)
        rate = tl.load(beta + unit, mask=ok, other=0.0).to(tl.float32)
        lower = c[:, None] >= c[None, :]
        # Differences above the diagonal are positive and may overflow: masked before `exp`.
        gaps = tl.where(lower, total[:, None] - total[None, :], float("-inf"))
        fade = tl.exp(gaps)
        system = tl.dot(keys, keys.T, input_precision="ieee") * fade * rate[:, None]
        system = tl.where(c[:, None] > c[None, :], system, 0.0)
        solved = (c[:, None] == c[None, :]).to(tl.float32)
        for i in range(1, C):
            row = tl.sum(tl.where((c == i)[:, None], system, 0.0), 0)
            new = (c == i).to(tl.float32) - tl.sum(row[:, None] * solved, 0)
            solved = tl.where((c == i)[:, None], new[None, :], solved)
        seen = tl.dot(queries, keys.T, input_precision="ieee") * fade
        to = (tile * L * W + head).to(tl.int64) * C * C + c[:, None] * C + c[None, :]
        tl.store(inverse + to, solved)
        tl.store(reads + to, seen)


@triton.jit(do_not_specialize_on_alignment=["starts", "lengths", "blocks"])
def walk_chunks(
    q, k, v, decay, beta, states, starts, lengths, blocks, inverse, reads, out, state_stride,
    scale, L: tl.constexpr, W: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, U: tl.constexpr,
    BU: tl.constexpr, C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`out[n,L,W,U]` and `states[.,L,W,P,U]` after a request's tokens, of BU columns of a head."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    c = tl.arange(0, C)
    p = tl.arange(0, BP)
    u = tl.program_id(2) * BU + tl.arange(0, BU)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    zero = tl.load(starts)
    first = tl.load(starts + request)
    stop = tl.load(starts + request + 1)
    if first < stop:
        fresh = tl.load(lengths + request) == stop - first
        inside = (p < P)[:, None] & (u < U)[None, :]
        place = states + tl.load(blocks + request).to(tl.int64) * state_stride
        place = place + (head * P + p[:, None]) * U + u[None, :]
        state = tl.load(place, mask=inside & (not fresh), other=0.0).to(tl.float32)
        tile = (first - zero) // C + request
        for begin in range(first, stop, C):
            token = (begin + c).to(tl.int64)
            ok = token < stop
            at = ((token * L + head // W) * P)[:, None] + p[None, :]
            held = ok[:, None] & (p < P)[None, :]
            keys = tl.load(k + at, mask=held, other=0.0).to(tl.float32)
            queries = tl.load(q + at, mask=held, other=0.0).to(tl.float32)
            unit = token * L * W + head
            values = unit[:, None] * U + u[None, :]
            shown = ok[:, None] & (u < U)[None, :]
            value = tl.load(v + values, mask=shown, other=0.0).to(tl.float32)
            rates = tl.load(decay + unit, mask=ok, other=0.0).to(tl.float32)
            rate = tl.load(beta + unit, mask=ok, other=0.0).to(tl.float32)
            total = tl.cumsum(rates, 0)
            end = tl.sum(rates, 0)
            square = (tile * L * W + head).to(tl.int64) * C * C + c[:, None] * C + c[None, :]
            solved = tl.load(inverse + square)
            seen = tl.load(reads + square)
            grown = tl.exp(total)[:, None]
            known = tl.dot(keys, state, input_precision="ieee") * grown
            written = tl.dot(solved, rate[:, None] * (value - known), input_precision="ieee")
            result = tl.dot(queries, state, input_precision="ieee") * grown
            result = tl.dot(seen, written, result, input_precision="ieee")
            tl.store(out + values, (result * scale).to(out.dtype.element_ty), mask=shown)
            left = tl.exp(end - total)[:, None]
            state = tl.dot(keys.T, written * left, state * tl.exp(end), input_precision="ieee")
            tile += 1
        tl.store(place, state.to(states.dtype.element_ty), mask=inside)
