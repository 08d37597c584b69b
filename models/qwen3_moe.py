# SPDX-License-Identifier: MIT
"""Qwen3-MoE: Qwen3 with experts in some layers, chosen by a softmax over all of them.

Dims: d model, k kv heads, g query heads per kv head, h head, f mlp, e experts, j expert mlp,
v vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ..ops import Batch, LayerKV, add_rms_norm
from ..sharding import declare, spmd
from .attention import QK_NORM, QKV_BIAS, attention
from .config import int_of, refuse_unknown
from .decoder_config import GQA_KEYS, WINDOW_KEYS, GqaConfig, gqa_fields, window_fields
from .layer import Layer, MoeLayer
from .mlp import mlp
from .moe import expert_sizes, softmax_moe
from .stream import Angles, Decoder, Stream, decoder

_USED_TEXT = """
attention_bias decoder_sparse_step intermediate_size mlp_only_layers moe_intermediate_size
norm_topk_prob num_experts num_experts_per_tok num_local_experts
"""
_USED = GQA_KEYS | WINDOW_KEYS | frozenset(_USED_TEXT.split())


@attrs.frozen(kw_only=True)
class Qwen3MoeConfig(GqaConfig):
    """Sizes and switches of a Qwen3-MoE checkpoint; its `sizes` add f mlp, e experts, j their mlp.

    `sparse` says which layers have experts; `active` of them compute a token.
    """

    intermediate_size: int
    expert_size: int
    num_experts: int
    active: int
    renormalise: bool
    sparse: tuple[bool, ...]
    attention_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "Qwen3MoeConfig":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "qwen3_moe")
        step, dense = int_of(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
        layers = range(int_of(config, "num_hidden_layers"))
        windows = bool(config.get("use_sliding_window") and config.get("sliding_window"))
        experts = config.get("num_experts") or config.get("num_local_experts")
        return Qwen3MoeConfig(
            **gqa_fields(config),
            **window_fields(config, windows, lambda layer: True),
            intermediate_size=int_of(config, "intermediate_size"),
            expert_size=int_of(config, "moe_intermediate_size"),
            num_experts=int_of({"num_experts": experts}, "num_experts"),
            active=int_of(config, "num_experts_per_tok"),
            renormalise=bool(config.get("norm_topk_prob", False)),
            sparse=tuple(i not in dense and (i + 1) % step == 0 for i in layers),
            attention_bias=bool(config.get("attention_bias", False)),
        )

    def sizes(self) -> dict[str, int | None]:
        experts = expert_sizes(self.num_experts, self.expert_size)
        return {**super().sizes(), **experts, "f": self.intermediate_size}


@spmd
def layer(
    p: Layer | MoeLayer,
    stream: Stream,
    kv: LayerKV,
    batch: Batch,
    cos: Angles,
    sin: Angles,
    config: Qwen3MoeConfig,
) -> tuple[Stream, LayerKV]:
    """Run one layer, dense or with experts."""
    x, residual = add_rms_norm(stream.update, stream.residual, p.attn_norm, config.norm_eps)
    update, kv = attention(p.attn, x, kv, batch, cos, sin, config)
    x, residual = add_rms_norm(update, residual, p.mlp_norm, config.norm_eps)
    if isinstance(p, Layer):
        update = mlp(p.mlp, x)
    else:
        update = softmax_moe(p.moe, x, config.active, config.renormalise)
    return Stream(residual=residual, update=update), kv


def params(config: Qwen3MoeConfig, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    present = [*QK_NORM, *QKV_BIAS, "bo"] if config.attention_bias else QK_NORM
    dense = declare(Layer, config.sizes(), dtype, present)
    sparse = declare(MoeLayer, config.sizes(), dtype, present)
    return decoder(config, tuple(sparse if flag else dense for flag in config.sparse), dtype)
