# SPDX-License-Identifier: MIT
"""Rotary position embedding."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(
    rule("n, i -> n r, n r", shard="n"),
    sizes=lambda sizes, args: {"r": None if sizes["i"] is None else 2 * sizes["i"]},
    dtype=lambda dtype: torch.float32,
)
def rope_angles(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 `cos[n,r]`, `sin[n,r]` of `position * inv_freq[i]`, twice: r = 2 i."""
    pair: tuple[Tensor, Tensor] = kernel("rope_angles", inv_freq)(positions, inv_freq)
    return pair


@register_rule(rule("n ... h, n r, n r -> n ... h", shard="n ...", linear=((0,),)))
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the first r elements of `x[n,...,h]` by its row's angles `[n,r]`."""
    run = kernel("rope", x)
    width = cos.shape[-1]
    if width == x.shape[-1]:
        y: Tensor = run(x, cos, sin)
        return y
    return torch.cat((run(x[..., :width], cos, sin), x[..., width:]), dim=-1)


@register_rule(rule("n ... h, n r, n r -> n ... h", shard="n ...", linear=((0,), (1, 2))))
def rope_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (even, odd) of `x[n,...,h]` by its row's angles `[n,r]`, r = h."""
    y: Tensor = kernel("rope_pairs", x)(x, cos, sin)
    return y
