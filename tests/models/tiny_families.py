# SPDX-License-Identifier: MIT
"""A tiny config of every family, and the layouts that its plans are held to."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenspeed_core.sharding import Layout

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
WINDOWED = dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


def qwen2() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        **SIZES, **WINDOWED, intermediate_size=48, num_hidden_layers=4, tie_word_embeddings=True
    )


def qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        **SIZES,
        **WINDOWED,
        head_dim=16,
        intermediate_size=48,
        num_hidden_layers=4,
        rope_parameters={**YARN, "rope_theta": 1e6},
    )


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **SIZES,
        head_dim=16,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=4,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        mlp_only_layers=[2],
    )


def gpt_oss() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **SIZES,
        head_dim=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_local_experts=8,
        num_experts_per_tok=3,
        sliding_window=8,
        rope_parameters={**YARN, "rope_theta": 15e4, "truncate": False},
    )


def minimax_m2() -> Any:
    from transformers import MiniMaxM2Config

    return MiniMaxM2Config(
        **SIZES,
        head_dim=16,
        rotary_dim=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_local_experts=8,
        num_experts_per_tok=3,
        bos_token_id=None,
        eos_token_id=None,
    )


LATENT = dict(
    vocab_size=96,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    intermediate_size=48,
    moe_intermediate_size=16,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=20,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_experts_per_tok=3,
    n_routed_experts=8,
)
LATENT_YARN = dict(
    **YARN, rope_theta=1e4, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.7
)


def deepseek_v2() -> Any:
    from transformers import DeepseekV2Config

    return DeepseekV2Config(
        **LATENT,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        routed_scaling_factor=2.0,
        rope_parameters=LATENT_YARN,
    )


def deepseek_v2_lite() -> Any:
    from transformers import DeepseekV2Config

    changes = dict(q_lora_rank=None, topk_method="greedy", n_shared_experts=2)
    return DeepseekV2Config(**{**LATENT, **changes})


def deepseek_v3() -> Any:
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **LATENT, n_group=4, topk_group=2, num_mtp_layers=0, rope_parameters=LATENT_YARN
    )


LINEAR = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
    num_hidden_layers=4,
)
EXPERTS = dict(
    moe_intermediate_size=16,
    shared_expert_intermediate_size=24,
    num_experts=8,
    num_experts_per_tok=3,
)
TEXT_ROPE = dict(
    rope_type="default",
    rope_theta=1e7,
    partial_rotary_factor=0.5,
    mrope_section=[3, 3, 2],
    mrope_interleaved=True,
)


def qwen3_next() -> Any:
    from transformers import Qwen3NextConfig

    return Qwen3NextConfig(
        **SIZES, **LINEAR, **EXPERTS, head_dim=16, intermediate_size=48, mlp_only_layers=[1]
    )


def qwen3_5() -> Any:
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(
        **SIZES, **LINEAR, head_dim=32, intermediate_size=48, rope_parameters=TEXT_ROPE
    )


def qwen3_5_moe() -> Any:
    from transformers import Qwen3_5MoeTextConfig

    return Qwen3_5MoeTextConfig(
        **SIZES, **LINEAR, **EXPERTS, head_dim=32, rope_parameters=TEXT_ROPE
    )


DENSE: dict[str, Callable[[], Any]] = {"qwen2": qwen2, "qwen3": qwen3, "qwen3.5": qwen3_5}
MIXTURES: dict[str, Callable[[], Any]] = {
    "qwen3-moe": qwen3_moe,
    "gpt-oss": gpt_oss,
    "minimax-m2": minimax_m2,
    "deepseek-v2": deepseek_v2,
    "deepseek-v2-lite": deepseek_v2_lite,
    "deepseek-v3": deepseek_v3,
    "qwen3-next": qwen3_next,
    "qwen3.5-moe": qwen3_5_moe,
}
FAMILIES = {**DENSE, **MIXTURES}

LAYOUTS = {
    "tp2": Layout("tp=2"),
    "sp2": Layout("tp=2", types={"Hidden": "n@tp d"}),
    "factored": Layout("tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep"}),
    "factored-sp": Layout(
        "tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep"}, types={"Hidden": "n@tp d"}
    ),
    "dp-tp": Layout("dp=2 tp=2"),
}
EXPERT_LAYOUTS = {
    "experts2": Layout("tp=2", place={"j": "", "e": "tp"}),
    "experts2-sp": Layout("tp=2", place={"j": "", "e": "tp"}, types={"Hidden": "n@tp d"}),
    "experts-by-both": Layout(
        "tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep", "e": "kv", "j": "rep"}
    ),
    "experts4": Layout("tp=(kv=2,rep=2)", place={"k": "kv", "g": "rep", "e": "tp", "j": ""}),
}
# Families without query groups: all their heads divide over a mesh.
HEADS = {
    name: Layout(mesh, place=place, types=types)
    for name, (mesh, place, types) in {
        "tp2": ("tp=2", {}, {}),
        "sp4": ("tp=4", {}, {"Hidden": "n@tp d"}),
        "dp-tp": ("dp=2 tp=2", {}, {}),
        "experts2-sp": ("tp=2", {"j": "", "e": "tp"}, {"Hidden": "n@tp d"}),
        "experts4": ("tp=4", {"j": "", "e": "tp"}, {}),
    }.items()
}
# Families with delta nets: value heads of one key head divide as query groups do.
DELTA = {
    name: Layout(mesh, place=place, types=types)
    for name, (mesh, place, types) in {
        "tp2": ("tp=2", {}, {}),
        "sp2": ("tp=2", {}, {"Hidden": "n@tp d"}),
        "dp-tp": ("dp=2 tp=2", {}, {}),
        "factored-sp": (
            "tp=(kv=2,rep=2)",
            {"k": "kv", "g": "rep", "l": "kv", "w": "rep"},
            {"Hidden": "n@tp d"},
        ),
    }.items()
}


def layouts(family: str) -> Mapping[str, Layout]:
    """Return the layouts that a family's plans are held to."""
    if "deepseek" in family:
        return HEADS
    if family in ("qwen3-next", "qwen3.5", "qwen3.5-moe"):
        placed = {"experts2": EXPERT_LAYOUTS["experts2"]} if family in MIXTURES else {}
        return {**DELTA, **placed}
    return {**LAYOUTS, **(EXPERT_LAYOUTS if family in MIXTURES else {})}


CASES = [(family, layout) for family in FAMILIES for layout in layouts(family)]
