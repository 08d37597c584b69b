# SPDX-License-Identifier: MIT
"""Rotary position embedding."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(
    rule("n, i -> n h, n h", shard="n"),
    sizes=lambda sizes: {"h": None if sizes["i"] is None else 2 * sizes["i"]},
    dtype=lambda dtype: torch.float32,
)
def rope_angles(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 `cos[n,h]`, `sin[n,h]` of `position * inv_freq`, `h` = twice `inv_freq[i]`."""
    angles = positions.float().unsqueeze(-1) * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@register_rule(rule("n ... h, n h, n h -> n ... h", shard="n ...", linear=((0,),)))
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of `x[n,...,h]` by the angles of its row's position."""
    y: Tensor = kernel("rope", x)(x, cos, sin)
    return y
