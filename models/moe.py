# SPDX-License-Identifier: MIT
"""Mixtures of experts: a router picks experts for each token; their weighted outputs are summed.

Dims: n tokens, d model, e experts, j expert mlp, a active experts per token, o the experts again as
a router offers them (whole on every rank).  By default each expert is cut over its mlp;
`place={"j": "", "e": "tp"}` gives a rank whole experts instead.
"""

import torch
from torch import Tensor

from ..ops import einsum, experts, sigmoid_router, softmax_router
from ..sharding import Placed, module, spmd
from .stream import Hidden

# What routing and experts see: all tokens, unless a layout says otherwise.
Tokens = Placed[Tensor, "~n d"]


@module
class Moe:
    """The router and the experts; some routers correct their scores for the choice alone."""

    router: Placed[Tensor, "d o"]
    correction: Placed[Tensor, "o", torch.float32] | None
    w_gate: Placed[Tensor, "e j@tp d"]
    w_up: Placed[Tensor, "e j@tp d"]
    w_down: Placed[Tensor, "e d j@tp"]


def expert_sizes(count: int, width: int) -> dict[str, int | None]:
    """Return the sizes of e, o and j."""
    return {"e": count, "o": count, "j": width}


@spmd(budget="all_reduce<=1")
def softmax_moe(p: Moe, x: Tokens, active: int, renormalise: bool) -> Hidden:
    """Return the update of the `active` likeliest experts for normed `x[n,d]`."""
    scores = einsum("n d, d o -> n o", x, p.router)
    ids, weights = softmax_router(scores, active, renormalise)
    return experts(x, ids, weights, p.w_gate, p.w_up, p.w_down)


@spmd(budget="all_reduce<=1")
def sigmoid_moe(p: Moe, x: Tokens, active: int) -> Hidden:
    """Return the update of the `active` experts with the best corrected scores for `x[n,d]`."""
    assert p.correction is not None, "declared without it"
    scores = einsum("n d, d o -> n o", x, p.router)
    ids, weights = sigmoid_router(scores, p.correction, active)
    return experts(x, ids, weights, p.w_gate, p.w_up, p.w_down)
