# SPDX-License-Identifier: MIT
"""What a decode step reads of its slots: the torch reference."""

from torch import Tensor

from .registry import register


@register("decode_columns", backend="torch")
def decode_columns(
    slots: Tensor, lens: Tensor, last_token: Tensor, table: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return tokens, positions, cache slots and block tables of rows of one new token each.

    `slots[r]` and `lens[r]`, which count the new token, `last_token[s]` and `table[s,t]` are
    int32; blocks have `size` tokens.  Returns int32 `[r]`, int32 `[r]`, int64 `[r]`, int32 `[r,t]`.
    """
    rows = slots.long()
    blocks = table[rows]
    positions = lens - 1
    block = blocks.gather(1, (positions // size).long()[:, None])[:, 0].long()
    return last_token[rows], positions, block * size + positions % size, blocks
