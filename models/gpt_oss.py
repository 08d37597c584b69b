# SPDX-License-Identifier: MIT
"""GPT-OSS: attention with sinks, every other layer windowed; biased experts, clamped activation.

Dims: n tokens, d model, k kv heads, g query heads per kv head, h head, e experts, o the experts as
the router offers them, j expert mlp, v vocabulary.
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
    clamped_experts,
    einsum,
    expert_bias,
    topk_softmax_router,
)
from ..sharding import Placed, declare, module, spmd
from .attention import QKV_BIAS, Attention, attention
from .config import float_of, int_of, refuse_unknown
from .decoder_config import GQA_KEYS, WINDOW_KEYS, GqaConfig, gqa_fields, window_fields
from .moe import Tokens, expert_sizes
from .stream import Angles, Decoder, Hidden, Stream, WideNormEnds, decoder

_USED_TEXT = """
attention_bias experts_per_token initial_context_length intermediate_size num_experts_per_tok
num_local_experts swiglu_alpha swiglu_limit
"""
_USED = GQA_KEYS | WINDOW_KEYS | set(_USED_TEXT.split())


@attrs.frozen(kw_only=True)
class GptOssConfig(GqaConfig):
    """Sizes and switches of a GPT-OSS checkpoint; `active` experts compute a token.

    `limit` and `slope` are those of the experts' activation, see `ops.clamped_experts`.
    """

    expert_size: int
    num_experts: int
    active: int
    limit: float
    slope: float
    attention_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "GptOssConfig":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "gpt_oss")
        return GptOssConfig(
            **gqa_fields(config),
            **window_fields(config, True, lambda layer: layer % 2 == 0),
            expert_size=int_of(config, "intermediate_size"),
            num_experts=int_of(config, "num_local_experts"),
            active=int_of(config, "num_experts_per_tok"),
            limit=float_of(config, "swiglu_limit", 7.0),
            slope=float_of(config, "swiglu_alpha", 1.702),
            attention_bias=bool(config.get("attention_bias", True)),
        )

    def sizes(self) -> dict[str, int | None]:
        return {**super().sizes(), **expert_sizes(self.num_experts, self.expert_size)}


@module
class BiasedMoe:
    """The router and the experts, all with biases."""

    router: Placed[Tensor, "d o"]
    router_bias: Placed[Tensor, "o"]
    w_gate: Placed[Tensor, "e j@tp d"]
    w_up: Placed[Tensor, "e j@tp d"]
    w_down: Placed[Tensor, "e d j@tp"]
    b_gate: Placed[Tensor, "e j@tp"]
    b_up: Placed[Tensor, "e j@tp"]
    b_down: Placed[Tensor, "e d"]


@module
class Layer:
    """One decoder layer: each sublayer and the norm before it, whose weight is in float32."""

    attn_norm: Placed[Tensor, "d", torch.float32]
    attn: Attention
    mlp_norm: Placed[Tensor, "d", torch.float32]
    moe: BiasedMoe


@spmd(budget="all_reduce<=1")
def moe(p: BiasedMoe, x: Tokens, config: GptOssConfig) -> Hidden:
    """Return the update of the experts with the largest scores for normed `x[n,d]`."""
    scores = einsum("n d, d o -> n o", x, p.router) + p.router_bias
    ids, weights = topk_softmax_router(scores, config.active)
    y = clamped_experts(
        x, ids, weights, p.w_gate, p.w_up, p.w_down, p.b_gate, p.b_up, config.limit, config.slope
    )
    # Apart from the experts: where they are cut over j, their sum is owed and the bias is not.
    return y + expert_bias(ids, weights, p.b_down)


@spmd
def layer(
    p: Layer,
    stream: Stream,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: GptOssConfig,
) -> tuple[Stream, LayerKV]:
    """Run one layer."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    return Stream(residual=residual, update=moe(p.moe, x, config)), kv


def params(config: GptOssConfig, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    present = ["sinks", *QKV_BIAS, "bo"] if config.attention_bias else ["sinks"]
    each = declare(Layer, config.sizes(), dtype, present)
    return decoder(config, (each,) * config.num_layers, dtype, WideNormEnds)
