# SPDX-License-Identifier: MIT
"""Where the parameters of a Qwen3-MoE stand in a checkpoint, by Hugging Face names."""

from collections.abc import Mapping

from .checkpoint import Source
from .names import ATTENTION, MLP, NORMS, O_BIAS, QK_NORM, QKV_BIAS, moe_rows, table
from .qwen3_moe import Qwen3MoeConfig


def hf(config: Qwen3MoeConfig) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    rows = [*NORMS, *ATTENTION, *QK_NORM]
    rows += [*QKV_BIAS, *O_BIAS] if config.attention_bias else []
    experts = moe_rows()
    layers = [[*rows, *(experts if sparse else MLP)] for sparse in config.sparse]
    return table(layers, config.tied)
