# SPDX-License-Identifier: MIT
"""Pre-norm decoder layers: grouped-query attention, then an MLP or experts.  Dims: d model."""

from torch import Tensor

from ..ops import Batch, LayerKV, add_rms_norm
from ..sharding import Placed, module, spmd
from .attention import Attention, attention
from .decoder_config import GqaConfig
from .mlp import Mlp, mlp
from .moe import Moe
from .stream import Angles, Stream


@module
class Layer:
    """One decoder layer: each sublayer and the norm before it."""

    attn_norm: Placed[Tensor, "d"]
    attn: Attention
    mlp_norm: Placed[Tensor, "d"]
    mlp: Mlp


@module
class MoeLayer:
    """One decoder layer with experts."""

    attn_norm: Placed[Tensor, "d"]
    attn: Attention
    mlp_norm: Placed[Tensor, "d"]
    moe: Moe


@spmd
def layer(
    p: Layer, stream: Stream, kv: LayerKV, batch: Batch, cos: Angles, sin: Angles, config: GqaConfig
) -> tuple[Stream, LayerKV]:
    """Run one dense layer: each norm first adds the update that the sublayer before it left."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    return Stream(residual=residual, update=mlp(p.mlp, x)), kv
