# SPDX-License-Identifier: MIT
"""Root-mean-square norm with a gate: the torch reference."""

import torch
from torch import Tensor
from torch.nn import functional

from .registry import register
from .rms_norm import rms_norm


@register("gated_rms_norm", backend="torch")
def gated_rms_norm(x: Tensor, z: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `rms_norm(x, w) * silu(z)` for `x`, `z` `[n,l,w,u]`; norm first, then the gate."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (rms_norm(x, w, eps).to(wide) * functional.silu(z.to(wide))).to(x.dtype)
