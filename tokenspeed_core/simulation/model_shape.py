# SPDX-License-Identifier: MIT
"""What of a model decides its speed: sizes of weights, of a token's work and of its KV."""

from collections.abc import Mapping
from typing import Any

import attrs


class ModelShapeError(ValueError):
    """A config that does not tell a decoder's sizes."""


@attrs.frozen
class ModelShape:
    """A decoder-only transformer, dense or with routed experts in every layer."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of an expert, if there are any
    vocab: int
    experts: int = 0
    experts_per_token: int = 0

    @property
    def dense_params(self) -> int:
        """Weights that every token meets in the layers: attention, and the MLP or the router."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        rest = self.hidden * self.experts if self.experts else self._mlp_params
        return self.layers * (attention + rest)

    @property
    def expert_params(self) -> int:
        """Weights of all routed experts."""
        return self.layers * self.experts * self._mlp_params

    @property
    def head_params(self) -> int:
        """Weights of the output projection; the embedding is as large and read by rows only."""
        return self.vocab * self.hidden

    @property
    def kv_values(self) -> int:
        """Numbers that the cache keeps of a token, in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def pair_flops(self) -> int:
        """FLOPs of attention for a token and one that it looks at: two products, in all layers."""
        return 4 * self.layers * self.heads * self.head_dim

    @property
    def _mlp_params(self) -> int:
        return 3 * self.hidden * self.intermediate

    @classmethod
    def of_config(cls, name: str, config: Mapping[str, Any]) -> "ModelShape":
        """Read a Hugging Face config.

        Raises:
            ModelShapeError: a size is missing, is no positive number, or attention keeps latents.
        """
        if config.get("kv_lora_rank"):
            raise ModelShapeError(
                f"{name} keeps latent KV (kv_lora_rank = {config['kv_lora_rank']}), which the "
                f"simulator has no costs for; give one of {', '.join(sorted(MODELS))}"
            )

        def size(*keys: str, default: int | None = None) -> int:
            for key in keys:
                value = config.get(key)
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ModelShapeError(f"{name}: {key} = {value!r} is no positive number")
                return value
            if default is None:
                raise ModelShapeError(f"{name}: the config has no {keys[0]}")
            return default

        heads = size("num_attention_heads")
        hidden = size("hidden_size")
        experts = size("num_experts", "num_local_experts", "n_routed_experts", default=0)
        return cls(
            name=name,
            layers=size("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=size("num_key_value_heads", default=heads),
            head_dim=size("head_dim", default=max(1, hidden // heads)),
            intermediate=(
                size("moe_intermediate_size", "intermediate_size")
                if experts
                else size("intermediate_size")
            ),
            vocab=size("vocab_size"),
            experts=experts,
            experts_per_token=size("num_experts_per_tok") if experts else 0,
        )


# Sizes as in the models' published configs.
MODELS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152),
        ModelShape("qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 151936),
        ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936),
        ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936),
        ModelShape("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 768, 151936, 128, 8),
        ModelShape("qwen3-235b-a22b", 94, 4096, 64, 4, 128, 1536, 151936, 128, 8),
        ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        ModelShape("llama-3.3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
    )
}
