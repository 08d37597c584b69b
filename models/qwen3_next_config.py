# SPDX-License-Identifier: MIT
"""Configs of Qwen3-Next, Qwen3.5 and 3.6 checkpoints."""

from collections.abc import Mapping
from typing import Any

import attrs

from .config import ConfigError, expect, int_of, refuse_unknown
from .decoder_config import GQA_KEYS, GqaConfig, gqa_fields
from .delta_net import DELTA_KEYS, DeltaSizes
from .moe import expert_sizes

_OWN_TEXT = """
attention_bias attn_output_gate decoder_sparse_step full_attention_interval intermediate_size
layer_types mlp_only_layers moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok
num_local_experts partial_rotary_factor shared_expert_intermediate_size
"""
# Layers that predict tokens further ahead are stored apart and not read; states are float32.
_UNUSED = {"mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"}
_USED = GQA_KEYS | DELTA_KEYS | frozenset(_OWN_TEXT.split()) | _UNUSED
# Three equal position rows are one: for text this rope is the plain one.
_ROPE_KEYS = {"partial_rotary_factor", "mrope_section", "mrope_interleaved"}
_TYPES = {"full_attention": False, "linear_attention": True}


@attrs.frozen(kw_only=True)
class Qwen3NextConfig(GqaConfig):
    """Sizes and switches; its `sizes` add f mlp and those of delta nets and experts.

    `linear` says which layers are delta nets, `sparse` which have experts; `interleaved` whether
    the projections of a delta net are stored head by head; `prefix` begins the checkpoint's names.
    """

    delta: DeltaSizes
    intermediate_size: int
    expert_size: int
    shared_size: int
    num_experts: int
    active: int
    renormalise: bool
    linear: tuple[bool, ...]
    sparse: tuple[bool, ...]
    interleaved: bool
    prefix: str = "model."

    @staticmethod
    def from_next(config: Mapping[str, Any]) -> "Qwen3NextConfig":
        """Read the `config.json` of a Qwen3-Next checkpoint.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        return _read(config, interleaved=True, renormalise=bool(config.get("norm_topk_prob", True)))

    @staticmethod
    def from_3_5(config: Mapping[str, Any]) -> "Qwen3NextConfig":
        """Read the `config.json` of a Qwen3.5 or 3.6 checkpoint, of the text part if it has more.

        Raises:
            ConfigError: a key that may change the result is not understood.
        """
        text = config.get("text_config")
        found = _read(config if text is None else text, interleaved=False, renormalise=True)
        return found if text is None else attrs.evolve(found, prefix="model.language_model.")

    def sizes(self) -> dict[str, int | None]:
        experts = expert_sizes(self.num_experts, self.expert_size)
        own = {"f": self.intermediate_size, "z": 1}
        return {**super().sizes(), **self.delta.sizes(), **own, **experts}


def _read(config: Mapping[str, Any], *, interleaved: bool, renormalise: bool) -> Qwen3NextConfig:
    refuse_unknown(config, _USED, "qwen3_next")
    expect(config, "attention_bias", False)
    expect(config, "attn_output_gate", True)
    count, step = int_of(config, "num_hidden_layers"), int_of(config, "decoder_sparse_step", 1)
    every = int_of(config, "full_attention_interval", 4)
    types = config.get("layer_types")
    if types is None:
        types = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    if len(types) != count or not set(types) <= set(_TYPES):
        raise ConfigError(
            f"config key 'layer_types' must name {' or '.join(_TYPES)} for each of {count} layers, "
            f"got {types!r}"
        )
    experts = int_of(config, "num_experts", 0)
    dense = config.get("mlp_only_layers") or ()
    return Qwen3NextConfig(
        **gqa_fields({"partial_rotary_factor": 0.25, **config}, _ROPE_KEYS),
        delta=DeltaSizes.from_hf(config),
        intermediate_size=int_of(config, "intermediate_size", 0),
        expert_size=int_of(config, "moe_intermediate_size", 0),
        shared_size=int_of(config, "shared_expert_intermediate_size", 0),
        num_experts=experts,
        active=int_of(config, "num_experts_per_tok", 0),
        renormalise=renormalise,
        linear=tuple(_TYPES[each] for each in types),
        sparse=tuple(
            bool(experts) and i not in dense and (i + 1) % step == 0 for i in range(count)
        ),
        interleaved=interleaved,
    )
