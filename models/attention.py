# SPDX-License-Identifier: MIT
"""Grouped-query attention: projections with optional biases, rope, a paged cache.

Dims: n tokens, d model, k kv heads, g query heads per kv head, h head, r rotary angles; cache:
b blocks, s slots in a block.
"""

import torch
from torch import Tensor

from ..ops import Batch, LayerKV, einsum, paged_attention, rope
from ..sharding import Placed, declare, module, spmd
from .decoder_config import GqaConfig
from .stream import Angles, Hidden

QKV_BIAS = ("bq", "bk", "bv")


@module
class Attention:
    """Projections of one attention, with biases if the config has them."""

    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wv: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    bq: Placed[Tensor, "k@tp g h"] | None
    bk: Placed[Tensor, "k@tp h"] | None
    bv: Placed[Tensor, "k@tp h"] | None
    bo: Placed[Tensor, "d"] | None


def biased(x: Tensor, b: Tensor | None) -> Tensor:
    """Return `x + b`, or `x` where the config has no bias."""
    return x if b is None else x + b


@spmd(budget="all_reduce<=1")
def attention(
    p: Attention, x: Hidden, kv: LayerKV, batch: Batch, cos: Angles, sin: Angles
) -> tuple[Hidden, LayerKV]:
    """Return the update of grouped-query attention for normed `x[n,d]`, and the cache."""
    q = biased(einsum("n d, d k g h -> n k g h", x, p.wq), p.bq)
    k = biased(einsum("n d, d k h -> n k h", x, p.wk), p.bk)
    v = biased(einsum("n d, d k h -> n k h", x, p.wv), p.bv)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, kv = paged_attention(q, k, v, kv, batch, q.shape[-1] ** -0.5)
    return biased(einsum("n k g h, k g h d -> n d", o, p.wo), p.bo), kv


def caches(config: GqaConfig, block_size: int, dtype: torch.dtype) -> tuple[LayerKV, ...]:
    """Declare the cache of each layer; the number of blocks is known at run time."""
    sizes = {**config.sizes(), "b": None, "s": block_size}
    return (declare(LayerKV, sizes, dtype),) * config.num_layers
