# SPDX-License-Identifier: MIT
"""Choice of experts: the torch references.  Ties go to the lower expert on every rank.

Dims: n tokens, e experts, a active experts of a token.
"""

import torch
from torch import Tensor

from .registry import register


@register("softmax_router", backend="torch")
def softmax_router(
    logits: Tensor,
    active: int,
    renormalise: bool,
    groups: int = 1,
    kept_groups: int = 1,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: the likeliest experts of `logits[n,e]`.

    Experts lie in `groups` groups; only those of the `kept_groups` groups whose likeliest expert
    is likeliest may be chosen (DeepSeek-V2 2024).  Weights are probabilities in float32 at least,
    divided by their sum if `renormalise`, times `factor`, then in the dtype of `logits`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.softmax(dim=-1)
    if kept_groups < groups:
        scores = _kept(scores, groups, kept_groups, best=1, others=0.0)
    weights, ids = _top(scores, active)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return ids.int(), (weights * factor).to(logits.dtype)


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
        biased = _kept(biased, groups, kept_groups, best=2, others=float("-inf"))
    ids = _top(biased, active)[1]
    weights = scores.gather(1, ids)
    return ids.int(), weights / (weights.sum(dim=-1, keepdim=True) + epsilon) * factor


def _kept(scores: Tensor, groups: int, kept_groups: int, best: int, others: float) -> Tensor:
    """Return scores with `others` outside the groups whose `best` largest scores sum highest."""
    grouped = scores.view(scores.shape[0], groups, -1)
    sums = grouped.topk(best, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(sums, dtype=torch.bool).scatter_(1, _top(sums, kept_groups)[1], True)
    return grouped.masked_fill(~kept.unsqueeze(-1), others).flatten(1)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest scores of each row and where they stand; ties go to the lower place."""
    values, places = scores.sort(dim=-1, descending=True, stable=True)
    return values[:, :count], places[:, :count]
