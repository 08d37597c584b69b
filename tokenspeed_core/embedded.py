# SPDX-License-Identifier: MIT
"""What a step of an embedder gives in the place of sampled tokens: its rows."""

import torch
from torch import Tensor

from .block_table import Int32
from .sampled import Sampled
from .told import Told


def embedded(rows: Tensor, slots: Int32, reported: bool) -> Sampled:
    """Return token 0 for each of the `rows[m,d]`, and tell them as those of `slots`.

    A row that is not finite has token -1, as where tokens are sampled.  A log-probability that is
    `reported` is NaN.
    """
    rows = rows[: len(slots)]
    tokens = torch.where(rows.isfinite().all(-1), 0, -1).int()
    logprobs = rows.new_full((len(slots),), torch.nan) if reported else None
    told = [Told(slot, hidden=row) for slot, row in zip(slots.tolist(), rows, strict=True)]
    return Sampled.download(tokens, logprobs, told)
