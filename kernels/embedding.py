# SPDX-License-Identifier: MIT
"""Table lookup on a slice of the rows: the torch reference."""

import torch
from torch import Tensor

from .registry import register


@register("embedding", backend="torch")
def embedding(tokens: Tensor, table: Tensor, start: int = 0) -> Tensor:
    """Return rows `table[tokens[n] - start]` `[n,d]`; ids outside the slice give zero rows.

    `table[v,d]` holds the rows `start` to `start + v` of the whole table.
    """
    ids = tokens - start
    outside = (ids < 0) | (ids >= table.shape[0])
    rows = table.index_select(0, torch.where(outside, 0, ids))
    return rows.masked_fill(outside.unsqueeze(-1), 0)
