# SPDX-License-Identifier: MIT
"""Choice of experts: the torch references.  Ties go to the lower expert on every rank.

Dims: n tokens, e experts, a active experts of a token.
"""

import torch
from torch import Tensor

from .registry import register


@register("softmax_router", backend="torch")
def softmax_router(logits: Tensor, active: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: the likeliest experts of `logits[n,e]`.

    Weights are probabilities in float32 at least, divided by their sum if `renormalise`, then in
    the dtype of `logits`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights, ids = _top(wide.softmax(dim=-1), active)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return ids.int(), weights.to(logits.dtype)


@register("topk_softmax_router", backend="torch")
def topk_softmax_router(logits: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: a softmax over the largest `logits[n,e]` only."""
    top, ids = _top(logits, active)
    wide = top.to(torch.promote_types(logits.dtype, torch.float32))
    return ids.int(), wide.softmax(dim=-1).to(logits.dtype)


@register("sigmoid_router", backend="torch")
def sigmoid_router(
    logits: Tensor,
    bias: Tensor,
    active: int,
    groups: int,
    kept_groups: int,
    epsilon: float,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])` by `sigmoid(logits[n,e]) + bias[e]`.

    Experts lie in `groups` groups; only those of the `kept_groups` groups whose two best sums are
    largest may be chosen.  Weights are the sigmoids without bias, divided by their sum +
    `epsilon`, times `factor` (DeepSeek-V3 2024), in float32 at least.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.sigmoid()
    biased = scores + bias
    if kept_groups < groups:
        grouped = biased.view(biased.shape[0], groups, -1)
        best = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(best, dtype=torch.bool).scatter_(
            1, _top(best, kept_groups)[1], True
        )
        biased = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    ids = _top(biased, active)[1]
    weights = scores.gather(1, ids)
    return ids.int(), weights / (weights.sum(dim=-1, keepdim=True) + epsilon) * factor


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest scores of each row and where they stand; ties go to the lower place."""
    values, places = scores.sort(dim=-1, descending=True, stable=True)
    return values[:, :count], places[:, :count]
