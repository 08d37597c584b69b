# SPDX-License-Identifier: MIT
"""Qwen3-Next, Qwen3.5 and 3.6: delta nets, every few layers gated attention; an MLP or experts.

Dims: n tokens, d model, f mlp, z = 1; others as in `delta_net.py`, `gated_attention.py`, `moe.py`.
"""

from typing import Any

import torch
from torch import Tensor

from ..ops import (
    Batch,
    LayerKV,
    LayerState,
    add_rms_norm,
    einsum,
    experts,
    sigmoid,
    softmax_router,
)
from ..sharding import Placed, declare, module, spmd
from .delta_net import DeltaNet, delta_net, layer_state
from .gated_attention import GatedAttention, gated_attention
from .mlp import Mlp, gated_mlp, mlp
from .moe import Moe, Tokens
from .qwen3_next_config import Qwen3NextConfig
from .stream import Angles, Decoder, Ends, Hidden, Stream


@module
class GatedMoe(Moe):
    """Routed experts, and an MLP that computes every token as far as its gate is open."""

    shared: Mlp
    shared_gate: Placed[Tensor, "d z"]


@module
class Norms:
    """Norms of a layer: 1 + what the checkpoint stores, float32 or wider."""

    attn_norm: Placed[Tensor, "d"]
    mlp_norm: Placed[Tensor, "d"]
    q_norm: Placed[Tensor, "h"]
    k_norm: Placed[Tensor, "h"]


@module
class Layer:
    """One decoder layer: each sublayer and the norm before it."""

    attn_norm: Placed[Tensor, "d"]
    attn: DeltaNet | GatedAttention
    mlp_norm: Placed[Tensor, "d"]
    mlp: Mlp | GatedMoe


@spmd(budget="all_reduce<=1")
def moe(p: GatedMoe, x: Tokens, config: Qwen3NextConfig) -> Hidden:
    """Return the update of routed and shared experts for normed `x[n,d]`: one sum for both."""
    scores = einsum("n d, d o -> n o", x, p.router)
    ids, weights = softmax_router(scores, config.active, config.renormalise)
    routed = experts(x, ids, weights, p.w_gate, p.w_up, p.w_down)
    gate = sigmoid(einsum("n d, d z -> n z", x, p.shared_gate))
    return routed + einsum("n d, n z -> n d", gated_mlp(p.shared, x), gate)


@spmd
def layer(
    p: Layer,
    stream: Stream,
    kv: LayerKV | LayerState,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: Qwen3NextConfig,
) -> tuple[Stream, LayerKV | LayerState]:
    """Run one layer: each norm first adds the update that the sublayer before it left."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    after: LayerKV | LayerState
    if isinstance(p.attn, DeltaNet):
        assert isinstance(kv, LayerState), "declared together"
        update, after = delta_net(p.attn, x, kv, batch, config.norm_eps)
    else:
        assert isinstance(kv, LayerKV), "declared together"
        update, after = gated_attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    update = mlp(p.mlp, x) if isinstance(p.mlp, Mlp) else moe(p.mlp, x, config)
    return Stream(residual=residual, update=update), after


def params(config: Qwen3NextConfig, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    sizes, wide = config.sizes(), torch.promote_types(dtype, torch.float32)
    norms, last = declare(Norms, sizes, wide), declare(Ends, sizes, wide).norm
    heads: Any = {"q_norm": norms.q_norm, "k_norm": norms.k_norm}
    state = declare(DeltaNet, sizes, dtype)
    full = declare(GatedAttention, sizes, dtype, **heads)
    dense = declare(Mlp, sizes, dtype)
    shared = declare(Mlp, {**sizes, "f": config.shared_size}, dtype)
    mixture = declare(GatedMoe, sizes, dtype, shared=shared)
    kinds = list(zip(config.linear, config.sparse, strict=True))
    # Equal layers are one object: what is done once for one is not done again.
    layers = {
        (linear, sparse): Layer(
            attn_norm=norms.attn_norm,
            attn=state if linear else full,
            mlp_norm=norms.mlp_norm,
            mlp=mixture if sparse else dense,
        )
        for linear, sparse in kinds
    }
    present = [] if config.tied else ["head"]
    return declare(
        Decoder, sizes, dtype, present, norm=last, layers=tuple(layers[k] for k in kinds)
    )


def caches(
    config: Qwen3NextConfig, block_size: int, dtype: torch.dtype
) -> tuple[LayerKV | LayerState, ...]:
    """Declare the cache or state of each layer."""
    full = declare(LayerKV, {**config.sizes(), "b": None, "s": block_size}, dtype)
    state = layer_state(config.delta, dtype)
    return tuple(state if linear else full for linear in config.linear)
