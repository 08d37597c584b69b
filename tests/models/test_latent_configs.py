# SPDX-License-Identifier: MIT
"""Configs of the families with latent attention or delta nets: what is read, what is refused."""

from typing import Any

import pytest

from tokenspeed_core.models import ConfigError, family_of

LATENT: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=16,
    num_hidden_layers=4,
    num_attention_heads=4,
    vocab_size=100,
    kv_lora_rank=16,
    q_lora_rank=None,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=20,
    n_routed_experts=8,
    num_experts_per_tok=2,
)
LINEAR: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=100,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
)


def test_a_released_deepseek_v3_is_understood() -> None:
    released = dict(
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        moe_layer_freq=1,
        ep_size=1,
        num_nextn_predict_layers=1,
        norm_topk_prob=True,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=3,
    )
    config = family_of("DeepseekV3ForCausalLM").config({**LATENT, **released})
    assert (config.sigmoid, config.groups, config.kept_groups) == (True, 4, 2)
    assert (config.first_sparse, config.query_rank, config.rope_pairs) == (3, 0, True)


def test_yarn_sharpens_the_logits_of_latent_attention() -> None:
    yarn = dict(rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0, rope_theta=1e4)
    sizes = dict(qk_nope_head_dim=128, qk_rope_head_dim=64, max_position_embeddings=163840)
    plain = family_of("DeepseekV3ForCausalLM").config({**LATENT, **sizes})
    sharp = family_of("DeepseekV3ForCausalLM").config({**LATENT, **sizes, "rope_parameters": yarn})
    assert plain.scale == pytest.approx(0.0722, abs=1e-4)
    assert sharp.scale == pytest.approx(0.1352, abs=1e-4)


def test_groups_are_read_where_the_method_of_v2_uses_them() -> None:
    groups = dict(n_group=4, topk_group=2)
    for method, expected in (("greedy", 1), ("group_limited_greedy", 4)):
        changes = {**LATENT, **groups, "topk_method": method}
        assert family_of("DeepseekV2ForCausalLM").config(changes).groups == expected


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("DeepseekV2ForCausalLM", {"norm_topk_prob": True}, "'norm_topk_prob' = True"),
        ("DeepseekV2ForCausalLM", {"topk_method": "noaux_tc"}, "'noaux_tc'"),
        ("DeepseekV3ForCausalLM", {"norm_topk_prob": False}, "'norm_topk_prob'"),
        ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}, "'scoring_func' = 'softmax'"),
        ("DeepseekV3ForCausalLM", {"attention_bias": True}, "'attention_bias'"),
        ("DeepseekV3ForCausalLM", {"n_group": 3}, "n_group = 3"),
        ("DeepseekV3ForCausalLM", {"index_topk": 2048}, "'index_topk'"),
    ],
)
def test_what_latent_families_do_not_compute_is_refused(
    architecture: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        family_of(architecture).config({**LATENT, **changes})
    assert named in str(raised.value)


def test_every_fourth_layer_has_full_attention_unless_types_say_otherwise() -> None:
    family = family_of("Qwen3_5ForCausalLM")
    assert family.config(LINEAR).linear == (True, True, True, False) * 2
    types = ["full_attention"] + ["linear_attention"] * 7
    assert family.config({**LINEAR, "layer_types": types}).linear == (False, *[True] * 7)
    assert family.config(LINEAR).rotary_dim == 4, "a quarter of a head is turned"


def test_the_text_part_of_a_model_that_sees_is_read() -> None:
    nested = {"text_config": LINEAR, "vision_config": {"depth": 3}, "image_token_id": 5}
    family = family_of("Qwen3_5ForConditionalGeneration")
    config = family.config(nested)
    name = family.hf(config)["layers.0.attn.wq"].name
    assert name == "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"linear_num_value_heads": 3}, "3 value heads"),
        ({"layer_types": ["sliding_attention"] * 8}, "'layer_types'"),
        ({"attention_bias": True}, "'attention_bias'"),
        ({"attn_output_gate": False}, "'attn_output_gate'"),
        ({"sliding_window": 64}, "'sliding_window'"),
    ],
)
def test_what_delta_families_do_not_compute_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        family_of("Qwen3NextForCausalLM").config({**LINEAR, **changes})
    assert named in str(raised.value)
