# SPDX-License-Identifier: MIT
"""The gated MLP.  Dims: n tokens, d model, f mlp."""

from torch import Tensor

from ..ops import einsum, silu_mul
from ..sharding import Placed, module, spmd
from .attention import biased
from .stream import Hidden

MLP_BIAS = ("b_gate", "b_up", "b_down")


@module
class Mlp:
    """Projections of one gated MLP, with biases if the config has them."""

    w_gate: Placed[Tensor, "d f@tp"]
    w_up: Placed[Tensor, "d f@tp"]
    w_down: Placed[Tensor, "f@tp d"]
    b_gate: Placed[Tensor, "f@tp"] | None
    b_up: Placed[Tensor, "f@tp"] | None
    b_down: Placed[Tensor, "d"] | None


def gated_mlp(p: Mlp, x: Tensor) -> Tensor:
    """Return the update of the MLP for `x[n,d]`; its sum may still be owed."""
    gate = biased(einsum("n d, d f -> n f", x, p.w_gate), p.b_gate)
    up = biased(einsum("n d, d f -> n f", x, p.w_up), p.b_up)
    hidden = silu_mul(gate, up)
    return biased(einsum("n f, f d -> n d", hidden, p.w_down), p.b_down)


@spmd(budget="all_reduce<=1")
def mlp(p: Mlp, x: Hidden) -> Hidden:
    """Return the update of the gated MLP for normed `x[n,d]`."""
    return gated_mlp(p, x)
