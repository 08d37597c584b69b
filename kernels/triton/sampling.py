# SPDX-License-Identifier: MIT
"""Draws of tokens without a sort, for a search finds the last key that top-k and top-p keep.

Keys, masses and noise are those of `kernels/sampling.py`, so a draw depends on the logits, the
seed and the position alone, not on how many rows are drawn beside it.
"""

import torch
from torch import Tensor

from .draw_parts import draw_by_parts
from .draw_rows import draw_by_rows

# As many rows as programs of a device take whole: fewer are shared between programs.
FEW_ROWS = 16


def draw_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seed: Tensor,
    position: Tensor,
    filtered: bool,
) -> Tensor:
    """Return float64 pairs `[m,2]`: the greatest score of what is kept, and its token."""
    if not len(logits):
        return torch.empty(0, 2, dtype=torch.float64, device=logits.device)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    draw = draw_by_parts if len(logits) <= FEW_ROWS else draw_by_rows
    return draw(logits, temperature, top_k, top_p, seed, position, filtered)
