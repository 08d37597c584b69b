# SPDX-License-Identifier: MIT
"""Rows of Hugging Face tables that families share: parameter, name, einops pattern.

A row's file name is the layer's prefix, the name, and the kind (`weight` or `bias`).
"""

from collections.abc import Mapping, Sequence

from .checkpoint import Source

Row = tuple[str, str, str]

NORMS: tuple[Row, ...] = (
    ("attn_norm", "input_layernorm.weight", "d -> d"),
    ("mlp_norm", "post_attention_layernorm.weight", "d -> d"),
)
ATTENTION: tuple[Row, ...] = (
    ("attn.wq", "self_attn.q_proj.weight", "(k g h) d -> d k g h"),
    ("attn.wk", "self_attn.k_proj.weight", "(k h) d -> d k h"),
    ("attn.wv", "self_attn.v_proj.weight", "(k h) d -> d k h"),
    ("attn.wo", "self_attn.o_proj.weight", "d (k g h) -> k g h d"),
)
QKV_BIAS: tuple[Row, ...] = (
    ("attn.bq", "self_attn.q_proj.bias", "(k g h) -> k g h"),
    ("attn.bk", "self_attn.k_proj.bias", "(k h) -> k h"),
    ("attn.bv", "self_attn.v_proj.bias", "(k h) -> k h"),
)
O_BIAS: tuple[Row, ...] = (("attn.bo", "self_attn.o_proj.bias", "d -> d"),)
MLP: tuple[Row, ...] = (
    ("mlp.w_gate", "mlp.gate_proj.weight", "f d -> d f"),
    ("mlp.w_up", "mlp.up_proj.weight", "f d -> d f"),
    ("mlp.w_down", "mlp.down_proj.weight", "d f -> f d"),
)
MLP_BIAS: tuple[Row, ...] = (
    ("mlp.b_gate", "mlp.gate_proj.bias", "f -> f"),
    ("mlp.b_up", "mlp.up_proj.bias", "f -> f"),
    ("mlp.b_down", "mlp.down_proj.bias", "d -> d"),
)


def table(
    layers: Sequence[Sequence[Row]], tied: bool, prefix: str = "model."
) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path of a decoder, given each layer's rows."""
    found = {
        "embed": Source(f"{prefix}embed_tokens.weight", "v d -> v d"),
        "norm": Source(f"{prefix}norm.weight", "d -> d"),
    }
    if not tied:
        found["head"] = Source("lm_head.weight", "v d -> v d")
    for index, rows in enumerate(layers):
        for path, name, pattern in rows:
            source = Source(f"{prefix}layers.{index}.{name}", pattern)
            found[f"layers.{index}.{path}"] = source
    return found
