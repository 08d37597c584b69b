# SPDX-License-Identifier: MIT
"""Experts of a mixture, each token by those that its router chose.

Dims: n tokens, a active experts of a token, e experts, d model, j expert mlp.  Sharded over e a
rank computes the share of its own experts, from the given `start` on; over j its part of each.
Either way a sum is owed.
"""

from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(
    rule(
        "n d, n a, n a, e j d, e j d, e d j -> n d",
        shard="n e j",
        sums="e j",
        linear=((2,),),
        offset="e",
        routes=True,
    )
)
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int = 0,
) -> Tensor:
    """Return `sum_a weights[n,a] * mlp_ids[n,a](x[n,d])` `[n,d]`, gated by SiLU.

    `ids` int32; `w_gate[e,j,d]`, `w_up[e,j,d]`, `w_down[e,d,j]` begin at expert `start`.
    """
    y: Tensor = kernel("experts", x)(x, ids, weights, w_gate, w_up, w_down, start)
    return y


@register_rule(
    rule(
        "n d, n a, n a, e j d, e j d, e d j, e j, e j -> n d",
        shard="n e j",
        sums="e j",
        linear=((2,),),
        offset="e",
        routes=True,
    )
)
def clamped_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    b_gate: Tensor,
    b_up: Tensor,
    limit: float,
    slope: float,
    start: int = 0,
) -> Tensor:
    """Return as `experts` does, with `b_gate[e,j]`, `b_up[e,j]` and GPT-OSS' clamped activation."""
    run = kernel("clamped_experts", x)
    y: Tensor = run(x, ids, weights, w_gate, w_up, w_down, b_gate, b_up, limit, slope, start)
    return y


@register_rule(
    rule("n a, n a, e d -> n d", shard="n e d", sums="e", linear=((1,), (2,)), offset="e"),
    dtype_of=2,
)
def expert_bias(ids: Tensor, weights: Tensor, bias: Tensor, start: int = 0) -> Tensor:
    """Return `sum_a weights[n,a] * bias[ids[n,a]]` `[n,d]`; `bias[e,d]` begins at `start`."""
    y: Tensor = kernel("expert_bias", bias)(ids, weights, bias, start)
    return y
