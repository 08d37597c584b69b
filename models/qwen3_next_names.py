# SPDX-License-Identifier: MIT
"""Where the parameters of a Qwen3-Next, Qwen3.5 or 3.6 stand in a checkpoint, by HF names."""

from collections.abc import Mapping, Sequence

import attrs

from .checkpoint import Source
from .names import MLP, Row, moe_rows, row, table
from .qwen3_next_config import Qwen3NextConfig


def shifted(path: str, name: str, pattern: str) -> Row:
    """Return a row for a norm, whose weight is stored around 0."""
    return path, Source(name, pattern, shift=1.0)


_NORMS = (
    shifted("attn_norm", "input_layernorm.weight", "d -> d"),
    shifted("mlp_norm", "post_attention_layernorm.weight", "d -> d"),
)
# Each query head's rows are followed by those of its gate.
_ATTENTION = (
    row("attn.wq", "self_attn.q_proj.weight", "(k g two h) d -> d k g h", 0),
    row("attn.w_gate", "self_attn.q_proj.weight", "(k g two h) d -> d k g h", 1),
    row("attn.wk", "self_attn.k_proj.weight", "(k h) d -> d k h"),
    row("attn.wv", "self_attn.v_proj.weight", "(k h) d -> d k h"),
    row("attn.wo", "self_attn.o_proj.weight", "d (k g h) -> k g h d"),
    shifted("attn.q_norm", "self_attn.q_norm.weight", "h -> h"),
    shifted("attn.k_norm", "self_attn.k_norm.weight", "h -> h"),
)
_DELTA_NET = (
    row("attn.a_log", "linear_attn.A_log", "(l w) -> l w"),
    row("attn.dt_bias", "linear_attn.dt_bias", "(l w) -> l w"),
    row("attn.norm", "linear_attn.norm.weight", "u -> u"),
    row("attn.wo", "linear_attn.out_proj.weight", "d (l w u) -> l w u d"),
)
_MOE = (
    row("moe.shared.w_gate", "mlp.shared_expert.gate_proj.weight", "f d -> d f"),
    row("moe.shared.w_up", "mlp.shared_expert.up_proj.weight", "f d -> d f"),
    row("moe.shared.w_down", "mlp.shared_expert.down_proj.weight", "d f -> f d"),
    row("moe.shared_gate", "mlp.shared_expert_gate.weight", "z d -> d z"),
)


def projection_rows(config: Qwen3NextConfig) -> Sequence[Row]:
    """Return the rows of a delta net's projections and convolutions: parts of wider tensors."""
    delta, at = config.delta, "linear_attn"
    keys, values = delta.key_dim, delta.value_heads * delta.value_dim
    conv = f"{at}.conv1d.weight"
    all_keys, all_values = delta.key_heads * keys, delta.key_heads * values
    rows = [
        row("attn.conv_q", conv, f"(l p +{all_keys + all_values}) one x -> l p x"),
        row("attn.conv_k", conv, f"({all_keys}+ l p +{all_values}) one x -> l p x"),
        row("attn.conv_v", conv, f"({2 * all_keys}+ l w u) one x -> l w u x"),
    ]
    if config.interleaved:
        qkvz, ba = f"{at}.in_proj_qkvz.weight", f"{at}.in_proj_ba.weight"
        return [
            *rows,
            row("attn.wq", qkvz, f"(l 0+ p +{keys + 2 * values}) d -> d l p"),
            row("attn.wk", qkvz, f"(l {keys}+ p +{2 * values}) d -> d l p"),
            row("attn.wv", qkvz, f"(l {2 * keys}+ w u +{values}) d -> d l w u"),
            row("attn.wz", qkvz, f"(l {2 * keys + values}+ w u) d -> d l w u"),
            row("attn.wb", ba, "(l two w) d -> d l w", 0),
            row("attn.wa", ba, "(l two w) d -> d l w", 1),
        ]
    qkv = f"{at}.in_proj_qkv.weight"
    return [
        *rows,
        row("attn.wq", qkv, f"(l p +{all_keys + all_values}) d -> d l p"),
        row("attn.wk", qkv, f"({all_keys}+ l p +{all_values}) d -> d l p"),
        row("attn.wv", qkv, f"({2 * all_keys}+ l w u) d -> d l w u"),
        row("attn.wz", f"{at}.in_proj_z.weight", "(l w u) d -> d l w u"),
        row("attn.wb", f"{at}.in_proj_b.weight", "(l w) d -> d l w"),
        row("attn.wa", f"{at}.in_proj_a.weight", "(l w) d -> d l w"),
    ]


def hf(config: Qwen3NextConfig) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    mixers = {True: [*_DELTA_NET, *projection_rows(config)], False: _ATTENTION}
    mixture = [(path.replace("moe.", "mlp."), source) for path, source in (*moe_rows(), *_MOE)]
    layers = [
        [*_NORMS, *mixers[linear], *(mixture if sparse else MLP)]
        for linear, sparse in zip(config.linear, config.sparse, strict=True)
    ]
    found = dict(table(layers, config.tied, config.prefix))
    found["norm"] = attrs.evolve(found["norm"], shift=1.0)
    return found
