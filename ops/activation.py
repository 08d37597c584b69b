# SPDX-License-Identifier: MIT
"""Gated activations."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(
    rule("... f, ... f -> ... f", shard="... f", linear=((1,),), alone=((0,), (1,))),
    packed="silu_mul_packed",
)
def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return `silu(gate) * up`, both `[n,f]`."""
    return silu_mul_packed(torch.cat((gate, up), dim=-1))


@register_rule(rule("... -> ...", shard="..."))
def sigmoid(x: Tensor) -> Tensor:
    """Return `1 / (1 + exp(-x))`."""
    return x.sigmoid()


@register_rule(
    rule("n p -> n f", shard="n"),
    sizes=lambda sizes, args: {"f": None if sizes["p"] is None else sizes["p"] // 2},
)
def silu_mul_packed(gate_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` for `gate_up[n,2f]`, gate first."""
    y: Tensor = kernel("silu_mul", gate_up)(gate_up)
    return y
