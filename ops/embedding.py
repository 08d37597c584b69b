# SPDX-License-Identifier: MIT
"""Lookups of rows by id: token embeddings, and rows of an activation."""

from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.reduction import SUM1
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(
    rule("n, v d -> n d", shard="n v d", sums="v", linear=((1,),), offset="v", reduce=SUM1),
    dtype_of=1,
)
def embedding(tokens: Tensor, table: Tensor, start: int = 0) -> Tensor:
    """Return `table[tokens]` `[n,d]`; `table[v,d]` holds the rows from `start` on.

    Ids outside the slice give zero rows, so that slices on several ranks sum to the whole.
    """
    y: Tensor = kernel("embedding", table)(tokens, table, start)
    return y


@register_rule(
    rule(
        "n d, m -> m d",
        shard="n m d",
        sums="n",
        linear=((0,),),
        offset="n",
        rows="n m",
        reduce=SUM1,
        copies=True,
    )
)
def take_rows(x: Tensor, rows: Tensor, start: int = 0) -> Tensor:
    """Return `x[rows]` `[m,d]`; `x[n,d]` holds the rows from `start` on, others give zeros."""
    y: Tensor = kernel("embedding", x)(rows, x, start)
    return y


@register_rule(rule("... -> ...", shard="...", linear=((0,),), constant=True))
def zeros_like(x: Tensor) -> Tensor:
    """Return zeros of the shape of `x`."""
    return x.new_zeros(x.shape)
