# SPDX-License-Identifier: MIT
"""Grouped-query attention: projections, optional norms of each head, rope, a paged cache.

Dims: n tokens, d model, k kv heads, g query heads per kv head, h head, r rotary angles; cache:
b blocks, s slots in a block.
"""

import torch
from torch import Tensor

from ..ops import Batch, LayerKV, WindowKV, einsum, paged_attention, rms_norm, rope, sink_attention
from ..sharding import Placed, declare, module, spmd
from .decoder_config import GqaConfig
from .stream import Angles, Hidden

QKV_BIAS = ("bq", "bk", "bv")
QK_NORM = ("q_norm", "k_norm")


@module
class Attention:
    """Projections of one attention, and the biases, norms and sinks that the config has."""

    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wv: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    bq: Placed[Tensor, "k@tp g h"] | None
    bk: Placed[Tensor, "k@tp h"] | None
    bv: Placed[Tensor, "k@tp h"] | None
    bo: Placed[Tensor, "d"] | None
    q_norm: Placed[Tensor, "h"] | None
    k_norm: Placed[Tensor, "h"] | None
    sinks: Placed[Tensor, "k@tp g"] | None


def biased(x: Tensor, b: Tensor | None) -> Tensor:
    """Return `x + b`, or `x` where the config has no bias."""
    return x if b is None else x + b


@spmd(budget="all_reduce<=1")
def attention(
    p: Attention,
    x: Hidden,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: GqaConfig,
) -> tuple[Hidden, LayerKV]:
    """Return the update of grouped-query attention for normed `x[n,d]`, and the cache."""
    q = biased(einsum("n d, d k g h -> n k g h", x, p.wq), p.bq)
    k = biased(einsum("n d, d k h -> n k h", x, p.wk), p.bk)
    v = biased(einsum("n d, d k h -> n k h", x, p.wv), p.bv)
    if p.q_norm is not None and p.k_norm is not None:
        q, k = rms_norm(q, p.q_norm, config.norm_eps), rms_norm(k, p.k_norm, config.norm_eps)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, kv = attend(q, k, v, p.sinks, kv, batch, config)
    return biased(einsum("n k g h, k g h d -> n d", o, p.wo), p.bo), kv


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    kv: LayerKV,
    batch: Batch,
    config: GqaConfig,
) -> tuple[Tensor, LayerKV]:
    """Return what heads `q[n,k,g,h]` read, `[n,k,g,h]`, and the cache; its type says how far."""
    scale = config.head_dim**-0.5
    window = kv.span if isinstance(kv, WindowKV) else 0
    if sinks is not None:
        return sink_attention(q, k, v, sinks, kv, batch, scale, window)
    if window:
        return paged_attention(q, k, v, kv, batch, scale, window)
    return paged_attention(q, k, v, kv, batch, scale)


def caches(config: GqaConfig, block_size: int, dtype: torch.dtype) -> tuple[LayerKV, ...]:
    """Declare the cache of each layer; the number of blocks is known at run time."""
    sizes = {**config.sizes(), "b": None, "s": block_size}
    full = declare(LayerKV, sizes, dtype)
    windowed = declare(WindowKV, sizes, dtype, span=config.window)
    flags = config.windowed or (False,) * config.num_layers
    return tuple(windowed if flag else full for flag in flags)
