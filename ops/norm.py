# SPDX-License-Identifier: MIT
"""Root-mean-square norms."""

import torch
from torch import Tensor

from ..sharding.op import register_rule
from ..sharding.reduction import SUMSQ
from ..sharding.rule import rule
from .kernel import kernel


@register_rule(rule("... d, d -> ... d", shard="..."), after_add="add_rms_norm")
def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return `w * x / sqrt(mean_d(x^2) + eps)`, `x[n,d]`, `w[d]` (Zhang and Sennrich 2019).

    The norm is rounded to the dtype of `w` before their product, which is rounded to that of `x`.
    """
    run = kernel("rms_norm", x) if w.dtype == x.dtype else kernel("rms_norm", x, "wide_weight")
    y: Tensor = run(x, w, eps)
    return y


@register_rule(rule("... d, ... d, d -> ... d, ... d", shard="..."))
def add_rms_norm(x: Tensor, residual: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `(rms_norm(residual + x), residual + x)`; a sum owed by `x` is paid just before."""
    plain = w.dtype == x.dtype
    run = kernel("add_rms_norm", x) if plain else kernel("add_rms_norm", x, "wide_weight")
    pair: tuple[Tensor, Tensor] = run(x, residual, w, eps)
    return pair


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@register_rule(rule("n ... -> n", shard="n ...", sums="...", reduce=SUMSQ), dtype=_wide)
def squares(x: Tensor) -> Tensor:
    """Return the sum of squares of each row of `x[n,...]`, `[n]`, in float32 or wider."""
    y: Tensor = kernel("squares", x)(x)
    return y


@register_rule(
    rule("n, n -> n z", shard="n", linear=((0, 1),), copies=True),
    sizes=lambda sizes, args: {"z": 2},
)
def stack_totals(left: Tensor, right: Tensor) -> Tensor:
    """Return `[n,2]` of `left[n]`, `right[n]`: sums owed by both are paid in one."""
    y: Tensor = kernel("stack_totals", left)(left, right)
    return y


@register_rule(
    rule("n ..., n z, ... -> n ...", shard="n ...", linear=((0,),)),
    hosts={3: "index z", 4: "extent ..."},
)
def rms_norm_by_total(
    x: Tensor, totals: Tensor, w: Tensor, column: int, width: int, eps: float
) -> Tensor:
    """Return `w * x / sqrt(totals[n,column] / width + eps)`, `x[n,...]`, `w[...]`.

    A norm over sharded dims: the total is the sum of `squares` of all `width` elements of a row.
    """
    y: Tensor = kernel("rms_norm_by_total", x)(x, totals, w, column, width, eps)
    return y
