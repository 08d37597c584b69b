# SPDX-License-Identifier: MIT
"""Where the parameters of a GPT-OSS stand in an unquantised checkpoint, by Hugging Face names.

Experts are stored `[experts, in, out]`, gate and up columns by turns.
"""

from collections.abc import Mapping

from .checkpoint import Source
from .gpt_oss import GptOssConfig
from .names import ATTENTION, NORMS, O_BIAS, QKV_BIAS, Row, row, table

_MOE: tuple[Row, ...] = (
    row("attn.sinks", "self_attn.sinks", "(k g) -> k g"),
    row("moe.router", "mlp.router.weight", "o d -> d o"),
    row("moe.router_bias", "mlp.router.bias", "o -> o"),
    row("moe.w_gate", "mlp.experts.gate_up_proj", "e d (j two) -> e j d", 0),
    row("moe.w_up", "mlp.experts.gate_up_proj", "e d (j two) -> e j d", 1),
    row("moe.w_down", "mlp.experts.down_proj", "e j d -> e d j"),
    row("moe.b_gate", "mlp.experts.gate_up_proj_bias", "e (j two) -> e j", 0),
    row("moe.b_up", "mlp.experts.gate_up_proj_bias", "e (j two) -> e j", 1),
    row("moe.b_down", "mlp.experts.down_proj_bias", "e d -> e d"),
)


def hf(config: GptOssConfig) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    biases = [*QKV_BIAS, *O_BIAS] if config.attention_bias else []
    return table([[*NORMS, *ATTENTION, *biases, *_MOE]] * config.num_layers, config.tied)
