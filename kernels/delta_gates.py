# SPDX-License-Identifier: MIT
"""Decay and rate of the gated delta rule: the torch reference."""

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register


@register("delta_gates", backend="torch")
def delta_gates(a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return `-exp(a_log) softplus(a + dt_bias)` and `sigmoid(b)`, in float32 at least.

    All `[n,l,w]`; `a_log`, `dt_bias` `[l,w]`.  The sigmoid is rounded to the dtype of `b` first.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    decay = -a_log.to(wide).exp() * functional.softplus(a.to(wide) + dt_bias.to(wide))
    return decay, b.sigmoid().to(wide)
