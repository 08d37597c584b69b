# SPDX-License-Identifier: MIT
"""Where the parameters of a Llama stand in a checkpoint, by Hugging Face names.

GGUF files are read under the same names: `tokenspeed_core/checkpoint/` translates them.
"""

from collections.abc import Mapping

from .checkpoint import Source
from .llama import LlamaConfig
from .names import ATTENTION, MLP, MLP_BIAS, NORMS, O_BIAS, QKV_BIAS, table


def hf(config: LlamaConfig) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    rows = [*NORMS, *ATTENTION, *MLP]
    rows += [*QKV_BIAS, *O_BIAS] if config.attention_bias else []
    rows += MLP_BIAS if config.mlp_bias else []
    return table([rows] * config.num_layers, config.tied)
