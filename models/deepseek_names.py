# SPDX-License-Identifier: MIT
"""Where the parameters of a DeepSeek V2 or V3 stand in a checkpoint, by Hugging Face names."""

from collections.abc import Mapping, Sequence

from .checkpoint import Source
from .deepseek_config import DeepseekConfig
from .names import MLP, NORMS, Row, moe_rows, row, table


def latent_rows(config: DeepseekConfig) -> Sequence[Row]:
    """Return the rows of one latent attention; heads and latents lie beside their rotated parts."""
    c, h, r, u = config.latent_rank, config.plain_dim, config.rotary_dim, config.value_dim
    at = "self_attn"
    if config.query_rank:
        x, name = "q", f"{at}.q_b_proj.weight"
        queries = [
            row("attn.queries.wa", f"{at}.q_a_proj.weight", "q d -> d q"),
            row("attn.queries.norm", f"{at}.q_a_layernorm.weight", "q -> q"),
        ]
    else:
        x, name, queries = "d", f"{at}.q_proj.weight", []
    return [
        *queries,
        row("attn.queries.wh", name, f"(k 0+ h +{r}) {x} -> {x} k h"),
        row("attn.queries.wr", name, f"(k {h}+ r) {x} -> {x} k r"),
        row("attn.wc", f"{at}.kv_a_proj_with_mqa.weight", f"(c +{r}) d -> d c"),
        row("attn.wr", f"{at}.kv_a_proj_with_mqa.weight", f"({c}+ r) d -> d r"),
        row("attn.norm", f"{at}.kv_a_layernorm.weight", "c -> c"),
        row("attn.w_key", f"{at}.kv_b_proj.weight", f"(k 0+ h +{u}) c -> k h c"),
        row("attn.w_value", f"{at}.kv_b_proj.weight", f"(k {h}+ u) c -> k u c"),
        row("attn.wo", f"{at}.o_proj.weight", "d (k u) -> k u d"),
    ]


def hf(config: DeepseekConfig) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    rows = [*NORMS, *latent_rows(config)]
    experts = [
        *moe_rows("mlp"),
        row("moe.shared.w_gate", "mlp.shared_experts.gate_proj.weight", "f d -> d f"),
        row("moe.shared.w_up", "mlp.shared_experts.up_proj.weight", "f d -> d f"),
        row("moe.shared.w_down", "mlp.shared_experts.down_proj.weight", "d f -> f d"),
    ]
    if config.sigmoid:
        experts.append(row("moe.correction", "mlp.gate.e_score_correction_bias", "o -> o"))
    dense = min(config.first_sparse, config.num_layers)
    layers = [[*rows, *MLP]] * dense + [[*rows, *experts]] * (config.num_layers - dense)
    return table(layers, config.tied)
