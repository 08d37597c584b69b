# SPDX-License-Identifier: MIT
"""The table of families: which one computes an architecture."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from . import (
    deepseek,
    deepseek_config,
    deepseek_names,
    gpt_oss,
    gpt_oss_names,
    latent,
    llama,
    llama_names,
    minimax_m2,
    minimax_m2_names,
    qwen2,
    qwen2_names,
    qwen3,
    qwen3_moe,
    qwen3_moe_names,
    qwen3_names,
    qwen3_next,
    qwen3_next_config,
    qwen3_next_names,
)
from .attention import caches
from .config import ConfigError
from .decoder_config import GqaConfig
from .family import Family
from .layer import layer
from .stream import decode, wanted

LLAMA = Family(
    name="llama",
    config=llama.LlamaConfig.from_hf,
    params=llama.params,
    caches=caches,
    forward=partial(decode, layer),
    hidden=partial(decode, layer, end=wanted),
    hf=llama_names.hf,
    derived=GqaConfig.derived,
)
QWEN2 = Family(
    name="qwen2",
    config=qwen2.Qwen2Config.from_hf,
    params=qwen2.params,
    caches=caches,
    forward=partial(decode, layer),
    hidden=partial(decode, layer, end=wanted),
    hf=qwen2_names.hf,
    derived=GqaConfig.derived,
)
QWEN3 = Family(
    name="qwen3",
    config=qwen3.Qwen3Config.from_hf,
    params=qwen3.params,
    caches=caches,
    forward=partial(decode, layer),
    hidden=partial(decode, layer, end=wanted),
    hf=qwen3_names.hf,
    derived=GqaConfig.derived,
)
QWEN3_MOE = Family(
    name="qwen3_moe",
    config=qwen3_moe.Qwen3MoeConfig.from_hf,
    params=qwen3_moe.params,
    caches=caches,
    forward=partial(decode, qwen3_moe.layer),
    hidden=partial(decode, qwen3_moe.layer, end=wanted),
    hf=qwen3_moe_names.hf,
    derived=GqaConfig.derived,
)
GPT_OSS = Family(
    name="gpt_oss",
    config=gpt_oss.GptOssConfig.from_hf,
    params=gpt_oss.params,
    caches=caches,
    forward=partial(decode, gpt_oss.layer),
    hidden=partial(decode, gpt_oss.layer, end=wanted),
    hf=gpt_oss_names.hf,
    derived=GqaConfig.derived,
)
MINIMAX_M2 = Family(
    name="minimax_m2",
    config=minimax_m2.MiniMaxM2Config.from_hf,
    params=minimax_m2.params,
    caches=caches,
    forward=partial(decode, minimax_m2.layer),
    hidden=partial(decode, minimax_m2.layer, end=wanted),
    hf=minimax_m2_names.hf,
    derived=GqaConfig.derived,
)

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    config=deepseek_config.DeepseekConfig.from_v2,
    params=deepseek.params,
    caches=latent.caches,
    forward=partial(decode, deepseek.layer),
    hidden=partial(decode, deepseek.layer, end=wanted),
    hf=deepseek_names.hf,
    derived=deepseek_config.DeepseekConfig.derived,
)
DEEPSEEK_V3 = attrs.evolve(
    DEEPSEEK_V2, name="deepseek_v3", config=deepseek_config.DeepseekConfig.from_v3
)

QWEN3_NEXT = Family(
    name="qwen3_next",
    config=qwen3_next_config.Qwen3NextConfig.from_next,
    params=qwen3_next.params,
    caches=qwen3_next.caches,
    forward=partial(decode, qwen3_next.layer),
    hidden=partial(decode, qwen3_next.layer, end=wanted),
    hf=qwen3_next_names.hf,
    derived=GqaConfig.derived,
)
QWEN3_5 = attrs.evolve(
    QWEN3_NEXT, name="qwen3_5", config=qwen3_next_config.Qwen3NextConfig.from_3_5
)

# Architecture names, of transformers and of older files.
FAMILIES: Mapping[str, Family[Any]] = {
    "GptOssForCausalLM": GPT_OSS,
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "LlamaForCausalLM": LLAMA,
    "MiniMaxM2ForCausalLM": MINIMAX_M2,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "Qwen3NextForCausalLM": QWEN3_NEXT,
    "Qwen3_5ForCausalLM": QWEN3_5,
    "Qwen3_5ForConditionalGeneration": QWEN3_5,
    "Qwen3_5MoeForCausalLM": QWEN3_5,
    "Qwen3_5MoeForConditionalGeneration": QWEN3_5,
}


def family_of(architecture: str) -> Family[Any]:
    """Return the family of an architecture name.

    Raises:
        ConfigError: no family computes it.
    """
    if architecture not in FAMILIES:
        raise ConfigError(
            f"architecture {architecture!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]
