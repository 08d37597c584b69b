# SPDX-License-Identifier: MIT
"""Grouped-query attention whose result is gated by the hidden state.

Dims: n tokens, d model, k kv heads, g query heads per kv head, h head.
"""

from torch import Tensor

from ..ops import Batch, LayerKV, einsum, paged_attention, rms_norm, rope, sigmoid
from ..sharding import Placed, module, spmd
from .decoder_config import GqaConfig
from .stream import Angles, Hidden


@module
class GatedAttention:
    """Projections of one attention, and the norms of each head."""

    wq: Placed[Tensor, "d k@tp g h"]
    w_gate: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wv: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    q_norm: Placed[Tensor, "h"]
    k_norm: Placed[Tensor, "h"]


@spmd(budget="all_reduce<=1")
def gated_attention(
    p: GatedAttention,
    x: Hidden,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: GqaConfig,
) -> tuple[Hidden, LayerKV]:
    """Return the update of gated attention for normed `x[n,d]`, and the cache."""
    q = einsum("n d, d k g h -> n k g h", x, p.wq)
    gate = einsum("n d, d k g h -> n k g h", x, p.w_gate)
    k, v = einsum("n d, d k h -> n k h", x, p.wk), einsum("n d, d k h -> n k h", x, p.wv)
    q, k = rms_norm(q, p.q_norm, config.norm_eps), rms_norm(k, p.k_norm, config.norm_eps)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, kv = paged_attention(q, k, v, kv, batch, config.head_dim**-0.5)
    return einsum("n k g h, k g h d -> n d", o * sigmoid(gate), p.wo), kv
