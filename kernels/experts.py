# SPDX-License-Identifier: MIT
"""Experts of a mixture: the torch references, one expert at a time over the tokens that chose it.

Dims: n tokens, a active experts of a token, e experts, d model, j expert mlp.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register


@register("experts", backend="torch")
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    start: int = 0,
) -> Tensor:
    """Return `sum_a weights[n,a] * mlp_ids[n,a](x[n,d])` `[n,d]`.

    `w_gate[e,j,d]`, `w_up[e,j,d]`, `w_down[e,d,j]` hold the experts from `start` on; others add
    nothing.  `mlp_e(x) = w_down_e (silu(w_gate_e x) * (w_up_e x))`.
    """
    y = torch.zeros_like(x)
    for expert, rows, share in _chosen(ids, weights, start, w_gate.shape[0]):
        chosen = x[rows]
        gate = functional.linear(chosen, w_gate[expert])
        hidden = functional.silu(gate) * functional.linear(chosen, w_up[expert])
        update = functional.linear(hidden, w_down[expert]) * share
        y.index_add_(0, rows, update.to(x.dtype))
    return y


@register("clamped_experts", backend="torch")
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
    """Return as `experts` does, with `b_gate[e,j]`, `b_up[e,j]` and a clamped activation.

    `gate <= limit`, `-limit <= up <= limit`, then `(up + 1) * gate * sigmoid(slope * gate)`
    (GPT-OSS release).
    """
    y = torch.zeros_like(x)
    for expert, rows, share in _chosen(ids, weights, start, w_gate.shape[0]):
        chosen = x[rows]
        gate = functional.linear(chosen, w_gate[expert], b_gate[expert]).clamp(max=limit)
        up = functional.linear(chosen, w_up[expert], b_up[expert]).clamp(-limit, limit)
        hidden = (up + 1) * gate * torch.sigmoid(slope * gate)
        update = functional.linear(hidden, w_down[expert]) * share
        y.index_add_(0, rows, update.to(x.dtype))
    return y


@register("expert_bias", backend="torch")
def expert_bias(ids: Tensor, weights: Tensor, bias: Tensor, start: int = 0) -> Tensor:
    """Return `sum_a weights[n,a] * bias[ids[n,a]]` `[n,d]`; `bias[e,d]` begins at `start`."""
    at = ids.long() - start
    outside = (at < 0) | (at >= bias.shape[0])
    share = weights.masked_fill(outside, 0).to(bias.dtype)
    return torch.einsum("na,nad->nd", share, bias[at.masked_fill(outside, 0)])


def _chosen(
    ids: Tensor, weights: Tensor, start: int, count: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (expert from 0, its tokens' rows, their weights `[rows,1]`) of experts in use here."""
    flat = ids.flatten().long() - start
    order = flat.argsort(stable=True)
    used, counts = torch.unique_consecutive(flat[order], return_counts=True)
    active = ids.shape[1]
    share = weights.flatten()
    for expert, places in zip(used.tolist(), torch.split(order, counts.tolist()), strict=True):
        if 0 <= expert < count:
            yield expert, places // active, share[places, None]
