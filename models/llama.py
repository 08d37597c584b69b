# SPDX-License-Identifier: MIT
"""Llama (2, 3, 3.x, SmolLM2): the plain decoder, with optional biases.

Dims: d model, k kv heads, g query heads per kv head, h head, f mlp, v vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from ..sharding import declare
from .attention import QKV_BIAS
from .config import ConfigError, int_of, refuse_unknown
from .decoder_config import GQA_KEYS, GqaConfig, gqa_fields
from .layer import Layer
from .mlp import MLP_BIAS
from .stream import Decoder, decoder

_USED = GQA_KEYS | {"attention_bias", "intermediate_size", "mlp_bias", "rope_interleaved"}


@attrs.frozen(kw_only=True)
class LlamaConfig(GqaConfig):
    """Sizes and switches of a Llama checkpoint; its `sizes` add f mlp."""

    intermediate_size: int
    attention_bias: bool
    mlp_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "LlamaConfig":
        """Read a `config.json`.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        refuse_unknown(config, _USED, "llama")
        if config.get("rope_interleaved"):
            raise ConfigError("llama needs half rope, got config key 'rope_interleaved' = True")
        return LlamaConfig(
            **gqa_fields(config),
            intermediate_size=int_of(config, "intermediate_size"),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
        )

    def sizes(self) -> dict[str, int | None]:
        return {**super().sizes(), "f": self.intermediate_size}


def params(config: LlamaConfig, dtype: torch.dtype) -> Decoder:
    """Declare the parameters of a config."""
    present = [*QKV_BIAS, "bo"] if config.attention_bias else []
    present += MLP_BIAS if config.mlp_bias else []
    each = declare(Layer, config.sizes(), dtype, present)
    return decoder(config, (each,) * config.num_layers, dtype)
