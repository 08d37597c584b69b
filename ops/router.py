# SPDX-License-Identifier: MIT
"""Routers: which experts compute a token, and with what weight.

Dims: n tokens, e experts, a active experts of a token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule
from .kernel import kernel


def _active(sizes: Mapping[str, int | None], args: tuple[Any, ...]) -> Mapping[str, int | None]:
    return {"a": next(arg for arg in args if isinstance(arg, int))}


def _dtypes(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    return torch.int32, dtype


def _wide(dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    return torch.int32, torch.promote_types(dtype, torch.float32)


@register_rule(
    rule("n e -> n a, n a", shard="n"), sizes=_active, dtype=_dtypes, hosts={1: "count e"}
)
def softmax_router(
    logits: Tensor,
    active: int,
    renormalise: bool,
    groups: int = 1,
    kept_groups: int = 1,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: the likeliest experts of `logits[n,e]`.

    Only experts of the `kept_groups` groups of `groups` that hold the likeliest ones may be chosen.
    Weights are probabilities, divided by their sum if `renormalise`, times `factor`, in the dtype
    of `logits`.
    """
    run = kernel("softmax_router", logits)
    pair: tuple[Tensor, Tensor]
    pair = run(logits, active, renormalise, groups, kept_groups, factor)
    return pair


@register_rule(
    rule("n e -> n a, n a", shard="n"), sizes=_active, dtype=_dtypes, hosts={1: "count e"}
)
def topk_softmax_router(logits: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])`: a softmax over the largest `logits[n,e]` only."""
    pair: tuple[Tensor, Tensor] = kernel("topk_softmax_router", logits)(logits, active)
    return pair


@register_rule(
    rule("n e, e -> n a, n a", shard="n"), sizes=_active, dtype=_wide, hosts={2: "count e"}
)
def sigmoid_router(
    logits: Tensor,
    bias: Tensor,
    active: int,
    groups: int = 1,
    kept_groups: int = 1,
    epsilon: float = 0.0,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return `(ids[n,a] int32, weights[n,a])` by `sigmoid(logits[n,e]) + bias[e]`.

    Only experts of the `kept_groups` groups of `groups` whose two best scores sum highest may be
    chosen.  Weights are sigmoids without bias, divided by their sum + `epsilon`, times `factor`,
    in float32 at least.
    """
    run = kernel("sigmoid_router", logits)
    pair: tuple[Tensor, Tensor]
    pair = run(logits, bias, active, groups, kept_groups, epsilon, factor)
    return pair
