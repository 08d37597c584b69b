# SPDX-License-Identifier: MIT
"""The two ops of a gated delta net that keep a state per request; the references say what they are.

Dims: n tokens, l key heads, w value heads a key head, p key dim, u value dim, x taps.  A request's
tokens are taken in order by the programs that hold its state: a token each turn in the delta rule,
many at once in the convolution.
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .device import device_of


class StateRows(Protocol):
    """What ops with a state per request read of a step's batch; see `ops/batch.py` for shapes."""

    @property
    def query_starts(self) -> Tensor: ...
    @property
    def context_lens(self) -> Tensor: ...
    @property
    def state_blocks(self) -> Tensor: ...


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

    `states[b,l,w,p,u]`, float32, is written in place.
    """
    q, k, v, decay, beta = (x.contiguous() for x in (q, k, v, decay, beta))
    assert states[:1].is_contiguous()
    out = torch.zeros_like(v)
    _, heads, per, width = v.shape
    device = device_of(v)
    columns = 16  # of a state, whose columns do not meet
    pdl = device.has_dependent_launch
    grid = (len(batch.context_lens), heads * per, triton.cdiv(width, columns))
    delta_rule[grid](
        q, k, v, decay, beta, states, batch.query_starts, batch.context_lens, batch.state_blocks,
        out, states.stride(0), scale, heads, per, q.shape[2], triton.next_power_of_2(q.shape[2]),
        width, columns, pdl, **device.options(1),
    )  # fmt: skip
    return out


def causal_conv(x: Tensor, w: Tensor, inputs: Tensor, batch: StateRows) -> Tensor:
    """Return silu of the convolution of `x[n,...]` with `w[...,x]`, and keep the last `inputs`."""
    taps = w.shape[-1]
    x, w = x.contiguous(), w.contiguous()
    assert inputs[:1].is_contiguous()
    out = torch.zeros_like(x)
    channels = w.numel() // taps
    device = device_of(x)
    tokens = 16 if len(x) > len(batch.context_lens) else 1
    pdl = device.has_dependent_launch
    convolve[len(batch.context_lens), triton.cdiv(channels, 64)](
        x, w, inputs, batch.query_starts, batch.context_lens, batch.state_blocks, out,
        inputs.stride(0), channels, taps, triton.next_power_of_2(taps), tokens, 64, pdl,
        **device.options(2),
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize_on_alignment=["starts", "lengths", "blocks"])
def delta_rule(
    q, k, v, decay, beta, states, starts, lengths, blocks, out, state_stride, scale,
    L: tl.constexpr, W: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, U: tl.constexpr,
    BU: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`out[n,L,W,U]` and `states[.,L,W,P,U]` after a request's tokens, of BU columns of a head."""
    request = tl.program_id(0)
    head = tl.program_id(1)
    p = tl.arange(0, BP)
    u = tl.program_id(2) * BU + tl.arange(0, BU)
    if PDL:
        gdc_wait()
    first = tl.load(starts + request)
    stop = tl.load(starts + request + 1)
    if first < stop:
        fresh = tl.load(lengths + request) == stop - first
        held = (p < P)[:, None] & (u < U)[None, :]
        place = states + tl.load(blocks + request).to(tl.int64) * state_stride
        place = place + (head * P + p[:, None]) * U + u[None, :]
        state = tl.load(place, mask=held & (not fresh), other=0.0).to(tl.float32)
        for t in range(first, stop):
            token = tl.cast(t, tl.int64)
            keys = (token * L + head // W) * P + p
            key = tl.load(k + keys, mask=p < P, other=0.0).to(tl.float32)
            query = tl.load(q + keys, mask=p < P, other=0.0).to(tl.float32)
            unit = token * L * W + head
            value = tl.load(v + unit * U + u, mask=u < U, other=0.0).to(tl.float32)
            state = state * tl.exp(tl.load(decay + unit).to(tl.float32))
            rate = tl.load(beta + unit).to(tl.float32)
            written = rate * (value - tl.sum(state * key[:, None], 0))
            state += key[:, None] * written[None, :]
            found = tl.sum(state * query[:, None], 0) * scale
            tl.store(out + unit * U + u, found.to(out.dtype.element_ty), mask=u < U)
        tl.store(place, state.to(states.dtype.element_ty), mask=held)
    if PDL:
        gdc_launch_dependents()


@triton.jit(do_not_specialize_on_alignment=["starts", "lengths", "blocks"])
def convolve(
    x, w, inputs, starts, lengths, blocks, out, state_stride, channels,
    TAPS: tl.constexpr, BX: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`out[n,channels]`, `inputs[.,channels,TAPS-1]` after a request's tokens, of BC channels."""
    request = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tl.arange(0, BX)
    real = c < channels
    if PDL:
        gdc_wait()
    first = tl.load(starts + request).to(tl.int64)
    count = tl.load(starts + request + 1) - tl.load(starts + request)
    if count > 0:
        fresh = tl.load(lengths + request) == count
        place = inputs + tl.load(blocks + request).to(tl.int64) * state_stride
        own = place + c * (TAPS - 1)
        for t in range(0, count, BT):
            token = t + tl.arange(0, BT)
            live = (token < count)[:, None] & real[None, :]
            total = tl.zeros([BT, BC], tl.float32)
            for tap in tl.static_range(TAPS):
                at = token - (TAPS - 1) + tap
                now = tl.load(
                    x + (first + at)[:, None] * channels + c[None, :],
                    mask=live & (at >= 0)[:, None], other=0.0,
                ).to(tl.float32)  # fmt: skip
                before = tl.load(
                    own[None, :] + (at + TAPS - 1)[:, None],
                    mask=live & (at < 0)[:, None] & (not fresh), other=0.0,
                ).to(x.dtype.element_ty).to(tl.float32)  # fmt: skip
                weight = tl.load(w + c * TAPS + tap, mask=real, other=0.0).to(tl.float32)
                total += (now + before) * weight[None, :]
            silu = total / (1 + tl.exp(-total))
            to = out + (first + token)[:, None] * channels + c[None, :]
            tl.store(to, silu.to(out.dtype.element_ty), mask=live)
        at = count - (TAPS - 1) + i
        kept = real[:, None] & (i < TAPS - 1)[None, :]
        now = tl.load(
            x + (first + at)[None, :] * channels + c[:, None],
            mask=kept & (at >= 0)[None, :], other=0.0,
        ).to(tl.float32)  # fmt: skip
        before = tl.load(
            own[:, None] + (at + TAPS - 1)[None, :],
            mask=kept & (at < 0)[None, :] & (not fresh), other=0.0,
        ).to(tl.float32)  # fmt: skip
        # All old inputs are read before one is overwritten.
        tl.debug_barrier()
        tl.store(own[:, None] + i[None, :], (now + before).to(inputs.dtype.element_ty), mask=kept)
    if PDL:
        gdc_launch_dependents()
