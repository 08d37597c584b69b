# SPDX-License-Identifier: MIT
"""Causal depthwise convolution whose last inputs are kept per request: the torch reference."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register


class StateRows(Protocol):
    """What ops with a state per request read of a step's batch; see `ops/batch.py` for shapes."""

    @property
    def query_starts(self) -> Tensor: ...
    @property
    def context_lens(self) -> Tensor: ...
    @property
    def state_blocks(self) -> Tensor: ...


@register("causal_conv", backend="torch")
def causal_conv(x: Tensor, w: Tensor, inputs: Tensor, batch: StateRows) -> Tensor:
    """Return `silu(y)[n,...]`, `y_t = sum_i w[...,i] x_(t-taps+1+i)`, for `x[n,...]`, `w[...,x]`.

    `inputs[b,...,x-1]` holds the last taps - 1 inputs of each request and is written in place; a
    request that begins has zeros before it.  Products are in float32 at least.  Rows of `x` that
    belong to no request come back as zeros.
    """
    out = torch.zeros_like(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    taps = w.shape[-1]
    blocks = batch.state_blocks.tolist()
    starts = batch.query_starts.tolist()
    for row, context in enumerate(batch.context_lens.tolist()):
        begin, end = starts[row], starts[row + 1]
        if begin == end:
            continue
        before = inputs[blocks[row]]
        if context == end - begin:
            before = torch.zeros_like(before)
        series = torch.cat((before.to(x.dtype), x[begin:end].movedim(0, -1)), dim=-1)
        inputs[blocks[row]] = series[..., 1 - taps :].to(inputs.dtype)
        windows = series.to(wide).unfold(-1, taps, 1)
        y = (windows * w.to(wide).unsqueeze(-2)).sum(-1)
        out[begin:end] = functional.silu(y).movedim(-1, 0).to(x.dtype)
    return out
