# SPDX-License-Identifier: MIT
"""Casts."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.rule import rule


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@register_rule(rule("... -> ...", shard="...", linear=((0,),), copies=True), dtype=_wide)
def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it is that already."""
    return x.to(_wide(x.dtype))
