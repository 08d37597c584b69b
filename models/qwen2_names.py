# SPDX-License-Identifier: MIT
"""Where the parameters of a Qwen2 stand in a checkpoint, by Hugging Face names."""

from collections.abc import Mapping

from .checkpoint import Source
from .names import ATTENTION, MLP, NORMS, QKV_BIAS, table
from .qwen2 import Qwen2Config


def hf(config: Qwen2Config) -> Mapping[str, Source]:
    """Return the checkpoint tensor of each parameter path."""
    return table([[*NORMS, *ATTENTION, *QKV_BIAS, *MLP]] * config.num_layers, config.tied)
