# SPDX-License-Identifier: MIT
"""Rows of Hugging Face tables that families share: a layer's parameter, and its source in there."""

from collections.abc import Mapping, Sequence

from .checkpoint import Source

Row = tuple[str, Source]


def row(path: str, name: str, pattern: str, half: int = 0) -> Row:
    """Return a row for one tensor."""
    return path, Source(name, pattern, half)


NORMS: tuple[Row, ...] = (
    row("attn_norm", "input_layernorm.weight", "d -> d"),
    row("mlp_norm", "post_attention_layernorm.weight", "d -> d"),
)
ATTENTION: tuple[Row, ...] = (
    row("attn.wq", "self_attn.q_proj.weight", "(k g h) d -> d k g h"),
    row("attn.wk", "self_attn.k_proj.weight", "(k h) d -> d k h"),
    row("attn.wv", "self_attn.v_proj.weight", "(k h) d -> d k h"),
    row("attn.wo", "self_attn.o_proj.weight", "d (k g h) -> k g h d"),
)
QKV_BIAS: tuple[Row, ...] = (
    row("attn.bq", "self_attn.q_proj.bias", "(k g h) -> k g h"),
    row("attn.bk", "self_attn.k_proj.bias", "(k h) -> k h"),
    row("attn.bv", "self_attn.v_proj.bias", "(k h) -> k h"),
)
O_BIAS: tuple[Row, ...] = (row("attn.bo", "self_attn.o_proj.bias", "d -> d"),)
QK_NORM: tuple[Row, ...] = (
    row("attn.q_norm", "self_attn.q_norm.weight", "h -> h"),
    row("attn.k_norm", "self_attn.k_norm.weight", "h -> h"),
)
MLP: tuple[Row, ...] = (
    row("mlp.w_gate", "mlp.gate_proj.weight", "f d -> d f"),
    row("mlp.w_up", "mlp.up_proj.weight", "f d -> d f"),
    row("mlp.w_down", "mlp.down_proj.weight", "d f -> f d"),
)
MLP_BIAS: tuple[Row, ...] = (
    row("mlp.b_gate", "mlp.gate_proj.bias", "f -> f"),
    row("mlp.b_up", "mlp.up_proj.bias", "f -> f"),
    row("mlp.b_down", "mlp.down_proj.bias", "d -> d"),
)


def moe_rows(
    prefix: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Row, ...]:
    """Return the rows of a router and its experts: a tensor an expert, or all in one in `mlp`."""
    each, both = f"{prefix}.experts.{{e}}", "e (two j) d -> e j d"
    fused = [Source("mlp.experts.gate_up_proj", both, half) for half in (0, 1)]
    down_fused = Source("mlp.experts.down_proj", "e d j -> e d j")
    router = Source("mlp.gate.weight", "o d -> d o")
    return (
        ("moe.router", Source(f"{prefix}.gate.weight", "o d -> d o", other=router)),
        ("moe.w_gate", Source(f"{each}.{gate}.weight", "j d -> e j d", other=fused[0])),
        ("moe.w_up", Source(f"{each}.{up}.weight", "j d -> e j d", other=fused[1])),
        ("moe.w_down", Source(f"{each}.{down}.weight", "d j -> e d j", other=down_fused)),
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
        for path, source in rows:
            found[f"layers.{index}.{path}"] = source.under(f"{prefix}layers.{index}.")
    return found
