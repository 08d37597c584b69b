# SPDX-License-Identifier: MIT
"""MiniMax-M2: q and k normed over all heads together, partial rope, experts in every layer.

Dims: n tokens, d model, k kv heads, g query heads per kv head, h head, e experts, o the experts as
the router offers them, j expert mlp, v vocabulary, r rotary angles.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from ..ops import (
    Batch,
    LayerKV,
    add_rms_norm,
    einsum,
    rms_norm_by_total,
    rope,
    squares,
    stack_totals,
)
from ..sharding import Placed, declare, module, spmd
from .attention import attend
from .config import expect, int_of, refuse_unknown
from .decoder_config import GQA_KEYS, GqaConfig, gqa_fields, head_dim_of
from .moe import Moe, expert_sizes, sigmoid_moe
from .stream import Angles, Decoder, Hidden, Stream, decoder

# Keys of released files, and the one value that this family computes.
_FIXED = {
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "use_qk_norm": True,
    "use_routing_bias": True,
}
# Multi-token prediction and the lightning layers of older models are not part of the decoder.
_UNUSED_TEXT = """
layernorm_full_attention_beta layernorm_linear_attention_beta layernorm_mlp_beta
mlp_intermediate_size mtp_transformer_layers num_mtp_modules shared_moe_mode use_mtp
"""
_USED_TEXT = """
attn_type_list intermediate_size num_experts_per_tok num_local_experts rotary_dim
"""
_USED = GQA_KEYS | set(_FIXED) | set(_UNUSED_TEXT.split()) | set(_USED_TEXT.split())


@attrs.frozen(kw_only=True)
class MiniMaxM2Config(GqaConfig):
    """Sizes and switches of a MiniMax-M2 checkpoint; `active` experts compute a token."""

    expert_size: int
    num_experts: int
    active: int

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "MiniMaxM2Config":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "minimax_m2")
        for key, value in _FIXED.items():
            expect(config, key, value)
        expect(config, "attn_type_list", [1] * int_of(config, "num_hidden_layers"))
        # `rotary_dim` is the older name of the same; the class keeps both.
        head_dim = head_dim_of(config)
        share = int_of(config, "rotary_dim", head_dim) / head_dim
        given = {"partial_rotary_factor": share, **config}
        return MiniMaxM2Config(
            **gqa_fields(given, ["partial_rotary_factor"]),
            expert_size=int_of(config, "intermediate_size"),
            num_experts=int_of(config, "num_local_experts"),
            active=int_of(config, "num_experts_per_tok"),
        )

    def sizes(self) -> dict[str, int | None]:
        return {**super().sizes(), **expert_sizes(self.num_experts, self.expert_size)}


@module
class WideNormAttention:
    """Projections of one attention, and the norms of all its query and key heads together."""

    wq: Placed[Tensor, "d k@tp g h"]
    wk: Placed[Tensor, "d k@tp h"]
    wv: Placed[Tensor, "d k@tp h"]
    wo: Placed[Tensor, "k@tp g h d"]
    q_norm: Placed[Tensor, "k@tp g h"]
    k_norm: Placed[Tensor, "k@tp h"]


@module
class Layer:
    """One decoder layer: each sublayer and the norm before it."""

    attn_norm: Placed[Tensor, "d"]
    attn: WideNormAttention
    mlp_norm: Placed[Tensor, "d"]
    moe: Moe


# One moves the update, one two numbers a token; where kv heads are fewer than ranks the queries'
# total is owed over more axes than the keys', and the two are paid apart.
@spmd(budget="all_reduce<=3")
def attention(
    p: WideNormAttention,
    x: Hidden,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: MiniMaxM2Config,
) -> tuple[Hidden, LayerKV]:
    """Return the update of grouped-query attention for normed `x[n,d]`, and the cache."""
    q = einsum("n d, d k g h -> n k g h", x, p.wq)
    k = einsum("n d, d k h -> n k h", x, p.wk)
    v = einsum("n d, d k h -> n k h", x, p.wv)
    totals = stack_totals(squares(q), squares(k))
    width, eps = config.num_heads * config.head_dim, config.norm_eps
    q = rms_norm_by_total(q, totals, p.q_norm, 0, width, eps)
    k = rms_norm_by_total(k, totals, p.k_norm, 1, config.num_kv_heads * config.head_dim, eps)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, kv = attend(q, k, v, None, kv, batch, config)
    return einsum("n k g h, k g h d -> n d", o, p.wo), kv


@spmd
def layer(
    p: Layer,
    stream: Stream,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: MiniMaxM2Config,
) -> tuple[Stream, LayerKV]:
    """Run one layer."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    return Stream(residual=residual, update=sigmoid_moe(p.moe, x, config.active)), kv


def params(config: MiniMaxM2Config, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    each = declare(Layer, config.sizes(), dtype, ["correction"])
    return decoder(config, (each,) * config.num_layers, dtype)
