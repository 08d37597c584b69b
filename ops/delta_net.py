# SPDX-License-Identifier: MIT
"""Gated delta nets: their ops, and the state that one layer keeps of each request.

Dims: n tokens, l key heads, w value heads a key head, p key dim, u value dim, x convolution taps,
y inputs that a convolution keeps (x - 1), b states.
"""

import torch
from torch import Tensor

from ..sharding import Placed, module
from ..sharding.op import register_rule
from ..sharding.rule import rule
from .batch import Batch
from .cache_kind import CacheKind
from .kernel import kernel


@module
class LayerState:
    """What one delta net keeps of a request, whatever its length: linear values, as `LayerKV`.

    The last inputs of the convolutions over q, k and v, and the float32 (or wider) state of the
    delta rule.
    """

    conv_q: Placed[Tensor, "~b l@tp p y"]
    conv_k: Placed[Tensor, "~b l@tp p y"]
    conv_v: Placed[Tensor, "~b l@tp w u y"]
    delta: Placed[Tensor, "~b l@tp w p u"]

    keeps = CacheKind.STATE


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@register_rule(
    rule(
        "n ..., ... x, b ... y -> n ..., b ... y",
        shard="...",
        depends=((0, 1, 2), (0, 2)),
        rows="n b",
    ),
    donates=((2, 1),),
)
def causal_conv(x: Tensor, w: Tensor, inputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return silu of the depthwise convolution of `x[n,...]` with taps `w[...,x]`, and `inputs`.

    The last tap meets the token itself; `inputs[b,...,y]` are those before the step's tokens.
    """
    y: Tensor = kernel("causal_conv", x)(x, w, inputs, batch)
    return y, inputs


@register_rule(rule("n l w, n l w, l w, l w -> n l w, n l w", shard="n l w"), dtype=_wide)
def delta_gates(a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decay's logarithm `-exp(a_log) softplus(a + dt_bias)`, and the rate `sigmoid(b)`.

    All `[n,l,w]`, the weights `[l,w]`; results in float32 or wider.
    """
    pair: tuple[Tensor, Tensor] = kernel("delta_gates", a)(a, b, a_log, dt_bias)
    return pair


@register_rule(rule("... p -> ... p", shard="..."), dtype=_wide)
def l2_norm(x: Tensor, eps: float) -> Tensor:
    """Return `x / sqrt(sum_p(x^2) + eps)` for `x[...,p]`, in float32 or wider."""
    y: Tensor = kernel("l2_norm", x)(x, eps)
    return y


@register_rule(
    rule(
        "n l p, n l p, n l w u, n l w, n l w, b l w p u -> n l w u, b l w p u",
        shard="l w u",
        depends=((0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),
        rows="n b",
    ),
    dtype_of=2,
    donates=((5, 1),),
)
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    states: Tensor,
    batch: Batch,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return `o[n,l,w,u]` and `states[b,l,w,p,u]` with this step in (Yang et al. 2024).

    A value head's state S decays by `exp(decay[n,l,w])`, then writes `k (beta (v - S^T k))^T`, then
    is read: `o = scale S^T q`; `q`, `k` `[n,l,p]`, `v[n,l,w,u]`.
    """
    o: Tensor = kernel("gated_delta_rule", v)(q, k, v, decay, beta, states, batch, scale)
    return o, states


@register_rule(rule("... u, ... u, u -> ... u", shard="..."))
def gated_rms_norm(x: Tensor, z: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x, w) * silu(z)`: the mean square over `u` of `x[...,u]`, then the gate."""
    y: Tensor = kernel("gated_rms_norm", x)(x, z, w, eps)
    return y
