# SPDX-License-Identifier: MIT
"""Where the parameters of a Qwen3 stand in a checkpoint, by Hugging Face names."""

from collections.abc import Mapping

from .checkpoint import Source
from .names import ATTENTION, MLP, NORMS, O_BIAS, QK_NORM, QKV_BIAS, table
from .qwen3 import Qwen3Config


def hf(config: Qwen3Config) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    rows = [*NORMS, *ATTENTION, *QK_NORM, *MLP]
    rows += [*QKV_BIAS, *O_BIAS] if config.attention_bias else []
    return table([rows] * config.num_layers, config.tied)
