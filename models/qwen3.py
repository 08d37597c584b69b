# SPDX-License-Identifier: MIT
"""Qwen3: the plain decoder, q and k normed a head at a time, optional biases and windows.

Dims: d model, k kv heads, g query heads per kv head, h head, f mlp, v vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ..sharding import declare
from .attention import QK_NORM, QKV_BIAS
from .config import int_of, refuse_unknown
from .decoder_config import GQA_KEYS, WINDOW_KEYS, GqaConfig, gqa_fields
from .layer import Layer
from .qwen2 import upper_windows
from .stream import Decoder, decoder

_USED = GQA_KEYS | WINDOW_KEYS | {"attention_bias", "intermediate_size"}


@attrs.frozen(kw_only=True)
class Qwen3Config(GqaConfig):
    """Sizes and switches of a Qwen3 checkpoint; its `sizes` add f mlp."""

    intermediate_size: int
    attention_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "Qwen3Config":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "qwen3")
        return Qwen3Config(
            **gqa_fields({"head_dim": 128, **config}),
            **upper_windows(config),
            intermediate_size=int_of(config, "intermediate_size"),
            attention_bias=bool(config.get("attention_bias", False)),
        )

    def sizes(self) -> dict[str, int | None]:
        return {**super().sizes(), "f": self.intermediate_size}


def params(config: Qwen3Config, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    biases = [*QKV_BIAS, "bo"] if config.attention_bias else []
    each = declare(Layer, config.sizes(), dtype, [*QK_NORM, *biases])
    return decoder(config, (each,) * config.num_layers, dtype)
