# SPDX-License-Identifier: MIT
"""DeepSeek V2 and V3 (R1, V3.1, Kimi K2): latent attention, shared experts, grouped routing.

Dims: n tokens, d model, f mlp; experts as in `moe.py`, attention as in `latent.py`.
"""

import torch
from torch import Tensor

from ..ops import (
    Batch,
    LayerLatent,
    add_rms_norm,
    einsum,
    experts,
    sigmoid_router,
    softmax_router,
    widen,
)
from ..sharding import Placed, declare, module, spmd
from .deepseek_config import DeepseekConfig
from .latent import LatentAttention, attention, latent_attention_params
from .mlp import Mlp, gated_mlp, mlp
from .moe import Moe, Tokens
from .stream import Angles, Decoder, Hidden, Stream, decoder


@module
class Scores:
    """What the router multiplies: float32 or wider, whatever the model is."""

    router: Placed[Tensor, "d o"]


@module
class SharedMoe(Moe):
    """Routed experts, and one MLP that computes every token."""

    shared: Mlp


@module
class Layer:
    """One dense layer: each sublayer and the norm before it."""

    attn_norm: Placed[Tensor, "d"]
    attn: LatentAttention
    mlp_norm: Placed[Tensor, "d"]
    mlp: Mlp


@module
class MoeLayer:
    """One layer with experts."""

    attn_norm: Placed[Tensor, "d"]
    attn: LatentAttention
    mlp_norm: Placed[Tensor, "d"]
    moe: SharedMoe


def route(p: SharedMoe, x: Tensor, config: DeepseekConfig) -> tuple[Tensor, Tensor]:
    """Return `(ids, weights)` `[n,a]`; scores are computed in float32, router weights kept so."""
    scores = einsum("n d, d o -> n o", widen(x), p.router)
    active, groups, kept = config.active, config.groups, config.kept_groups
    if p.correction is None:
        return softmax_router(scores, active, False, groups, kept, config.routed_scale)
    return sigmoid_router(scores, p.correction, active, groups, kept, 1e-20, config.routed_scale)


@spmd(budget="all_reduce<=1")
def moe(p: SharedMoe, x: Tokens, config: DeepseekConfig) -> Hidden:
    """Return the update of routed and shared experts for normed `x[n,d]`: one sum for both."""
    ids, weights = route(p, x, config)
    return experts(x, ids, weights, p.w_gate, p.w_up, p.w_down) + gated_mlp(p.shared, x)


@spmd
def layer(
    p: Layer | MoeLayer,
    stream: Stream,
    kv: LayerLatent,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: DeepseekConfig,
) -> tuple[Stream, LayerLatent]:
    """Run one layer: each norm first adds the update that the sublayer before it left."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    update = mlp(p.mlp, x) if isinstance(p, Layer) else moe(p.moe, x, config)
    return Stream(residual=residual, update=update), kv


def params(config: DeepseekConfig, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    sizes = config.sizes()
    attn = latent_attention_params(config, dtype)
    shared = declare(Mlp, {**sizes, "f": config.shared_size}, dtype)
    present = ["correction"] if config.sigmoid else []
    scores = declare(Scores, sizes, torch.promote_types(dtype, torch.float32))
    mixture = declare(SharedMoe, sizes, dtype, present, router=scores.router, shared=shared)
    dense = declare(Layer, sizes, dtype, attn=attn)
    sparse = declare(MoeLayer, sizes, dtype, attn=attn, moe=mixture)
    first = min(config.first_sparse, config.num_layers)
    return decoder(config, (dense,) * first + (sparse,) * (config.num_layers - first), dtype)
