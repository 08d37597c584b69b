# SPDX-License-Identifier: MIT
"""Rotary position embedding: the torch reference."""

import torch
from torch import Tensor

from .registry import register


@register("rope_angles", backend="torch")
def rope_angles(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 `cos[n,2i]`, `sin[n,2i]` of `positions[n] * inv_freq[i]`, each twice."""
    angles = positions.float().unsqueeze(-1) * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@register("rope", backend="torch")
def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of `x[n,...,h]` by angles given as `cos[n,h]`, `sin[n,h]`.

    `(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)` with x1 the first h/2 elements (Su et al.
    2021, half layout), in float32 at least, rounded once to the dtype of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    shape = (x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos.view(shape) + turned * sin.view(shape)).to(x.dtype)


@register("rope_pairs", backend="torch")
def rope_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of `x[n,...,h]` by angles given as the first halves of `cos`, `sin` `[n,h]`.

    `(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)` with x1 the even and x2 the odd elements (Su
    et al. 2021), in float32 at least, rounded once to the dtype of `x`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    half = x.shape[-1] // 2
    shape = (x.shape[0], *[1] * (x.dim() - 2), half)
    c, s = cos[:, :half].reshape(shape), sin[:, :half].reshape(shape)
    first, second = wide[..., ::2], wide[..., 1::2]
    turned = torch.stack((first * c - second * s, second * c + first * s), dim=-1)
    return turned.flatten(-2).to(x.dtype)
