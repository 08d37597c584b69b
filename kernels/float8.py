# SPDX-License-Identifier: MIT
"""Numbers of eight bits (e4m3: Micikevicius et al. 2022), and matrices kept in them."""

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from .registry import register

FLOAT8 = torch.float8_e4m3fn
MOST = 448.0  # the largest finite number


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` as a cache of `dtype` keeps it: float8 saturates, where a cast would give NaN."""
    return x.clamp(-MOST, MOST).to(dtype) if dtype == FLOAT8 else x.to(dtype)


@attrs.frozen(eq=False)
class Float8Matrix:
    """A matrix in float8: `data[o,i]`, and `scale[p,q]` float32 for blocks of `block` elements.

    Element (o, i) is `data[o, i] * scale[o // block[0], i // block[1]]`.
    """

    data: Tensor
    scale: Tensor
    block: tuple[int, int]

    @classmethod
    def of(cls, matrix: Tensor, block: tuple[int, int]) -> "Float8Matrix":
        """Return the nearest such matrix to `matrix[o,i]`; a block's greatest element is exact."""
        rows, columns = matrix.shape
        (tall, wide), padded = block, _padded(matrix, block)
        blocks = padded.view(padded.shape[0] // tall, tall, padded.shape[1] // wide, wide).float()
        scale = blocks.abs().amax((1, 3)).clamp(min=torch.finfo(torch.float32).tiny) / MOST
        data = kept(blocks / scale[:, None, :, None], FLOAT8).view(padded.shape)
        return cls(data[:rows, :columns].contiguous(), scale, block)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix `[o,i]` in `dtype`."""
        rows, columns = self.data.shape
        tall, wide = self.block
        scale = self.scale.repeat_interleave(tall, 0)[:rows]
        if self.scale.shape[1] > 1:
            scale = scale.repeat_interleave(wide, 1)[:, :columns]
        return (self.data.float() * scale).to(dtype)


Matrix = Tensor | Float8Matrix


def linear_op(w: Matrix) -> str:
    """Return the op that multiplies by a matrix."""
    return "float8_linear" if isinstance(w, Float8Matrix) else "linear"


@register("float8_linear", backend="torch")
def float8_linear(x: Tensor, w: Float8Matrix) -> Tensor:
    """Return `y[n,o] = sum_i x[n,i] w[o,i]`, the matrix rounded to the dtype of `x` first."""
    return functional.linear(x, w.dequantised(x.dtype))


def _padded(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the matrix with zeros behind it up to whole blocks."""
    (rows, columns), (tall, wide) = matrix.shape, block
    return functional.pad(matrix, (0, -columns % wide, 0, -rows % tall))
