# SPDX-License-Identifier: MIT
"""Merging of attention that was computed in shares of its keys."""

from collections.abc import Sequence

import torch
from torch import Tensor


def merged(shares: Sequence[Tensor]) -> Tensor:
    """Return softmax-weighted sums `[..., h]` from shares `[..., h + 1]` over parts of their terms.

    The last column of a share is the log of its weights' sum, minus infinity if it had none
    (Milakov and Gimelshein 2018).
    """
    values, lse = torch.stack(list(shares)).split((shares[0].shape[-1] - 1, 1), -1)  # type: ignore[no-untyped-call]
    weights = (lse - lse.amax(0).clamp(min=torch.finfo(lse.dtype).min)).exp()
    total = weights.sum(0)
    whole: Tensor = (values * weights).sum(0) / total.where(total > 0, torch.ones_like(total))
    return whole
