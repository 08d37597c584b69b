# SPDX-License-Identifier: MIT
"""Qwen2 and Qwen2.5: the plain decoder, biases on q, k and v, optional sliding windows.

Dims: d model, k kv heads, g query heads per kv head, h head, f mlp, v vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ..sharding import declare
from .attention import QKV_BIAS
from .config import int_of, refuse_unknown
from .decoder_config import GQA_KEYS, WINDOW_KEYS, GqaConfig, gqa_fields, window_fields
from .layer import Layer
from .stream import Decoder, decoder

_USED = GQA_KEYS | WINDOW_KEYS | {"intermediate_size"}


@attrs.frozen(kw_only=True)
class Qwen2Config(GqaConfig):
    """Sizes and switches of a Qwen2 checkpoint; its `sizes` add f mlp."""

    intermediate_size: int

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "Qwen2Config":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "qwen2")
        return Qwen2Config(
            **gqa_fields(config),
            **upper_windows(config),
            intermediate_size=int_of(config, "intermediate_size"),
        )

    def sizes(self) -> dict[str, int | None]:
        return {**super().sizes(), "f": self.intermediate_size}


def upper_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the window fields of Qwen2 and Qwen3: layers from `max_window_layers` on have one."""
    enabled = bool(config.get("use_sliding_window") and config.get("sliding_window"))
    full = int_of(config, "max_window_layers", 28)
    return window_fields(config, enabled, lambda layer: layer >= full)


def params(config: Qwen2Config, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    each = declare(Layer, config.sizes(), dtype, QKV_BIAS)
    return decoder(config, (each,) * config.num_layers, dtype)
