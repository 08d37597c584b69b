# SPDX-License-Identifier: MIT
"""Gated activation of a SwiGLU MLP: the torch reference."""

from torch import Tensor
from torch.nn import functional

from .registry import register


@register("silu_mul", backend="torch")
def silu_mul(x: Tensor) -> Tensor:
    """Return `silu(gate) * up` `[n,f]` for `x[n,2f]` with the gate half first."""
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up
